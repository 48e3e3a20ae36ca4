//! What can go wrong.

use std::io;
use std::path::{Path, PathBuf};

use microbatch::{JobError, SpawnError};

/// Why a search, or what it needs, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file has not been fetched.
    #[error("{} is missing: run examples/search/fetch", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot access {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is malformed: {why}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A text without a word.
    #[error("the text is empty")]
    Empty,
    /// A text longer than the model takes.
    #[error("the text has {tokens} tokens, and the model takes {limit}")]
    TooLong {
        /// How many it has, with the two that mark its ends.
        tokens: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The model or the scan cannot compute.
    #[error("cannot compute: {0}")]
    Compute(String),
    /// A thread for a model cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The batch of the text failed.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The options of the search cannot be met.
    #[error(transparent)]
    Options(#[from] microbatch::BuildError),
}

impl Error {
    /// Returns a function that names the file of an I/O error.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound => Self::Missing { path },
                _ => Self::Io { path, source },
            }
        }
    }

    pub(crate) fn malformed(path: &Path, why: impl ToString) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }

    pub(crate) fn compute(why: impl ToString) -> Self {
        Self::Compute(why.to_string())
    }
}
