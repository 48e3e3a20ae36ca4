//! Why the file could not do what it was asked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a [`RedbStore`](super::RedbStore) could not be opened, or could not do what it was
/// asked. Each names the file.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{RedbError, RedbStore, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("jobs.redb");
/// let store = RedbStore::open(&path).await?;
/// match RedbStore::open(&path).await.unwrap_err() {
///     RedbError::InUse { path: file, .. } => assert_eq!(file, path),
///     other => panic!("{other}"),
/// }
/// store.close().await;
/// assert!(matches!(store.depth().await.unwrap_err(), RedbError::Closed { .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RedbError {
    /// Reading or writing failed: no such folder, no right, no room. The store opens the
    /// file anew with the next call, so it goes on once there is room.
    #[error("cannot read or write `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Another store has the file open. A file belongs to one process.
    #[error("`{}` is in use by {holder}", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who has it: this process, another with its number, or somebody unknown.
        holder: String,
    },
    /// The file is not one of this store.
    #[error("`{}` is not a store of jobs: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The file was written by another version of this crate.
    #[error("`{}` is of version {found}; this crate reads version {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version that can be read.
        expected: u64,
    },
    /// The file is damaged. No job in it was changed.
    #[error("`{}` is damaged: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        reason: String,
    },
    /// The store was closed, or its runtime has ended.
    #[error("the store of `{}` is closed", path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
}

impl RedbError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }

    pub(super) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn from_redb(path: &Path, error: ::redb::Error) -> Self {
        let foreign = |reason: String| Self::Foreign {
            path: path.to_owned(),
            reason,
        };
        match error {
            ::redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                foreign(error.to_string())
            }
            ::redb::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::corrupt(path, "it ends too early")
            }
            ::redb::Error::Io(error) => Self::io(path, error),
            error @ ::redb::Error::PreviousIo => Self::io(path, io::Error::other(error)),
            ::redb::Error::DatabaseAlreadyOpen => Self::InUse {
                path: path.to_owned(),
                holder: super::holder::read(path),
            },
            ::redb::Error::Corrupted(reason) => Self::corrupt(path, reason),
            error @ ::redb::Error::RepairAborted => Self::corrupt(path, error.to_string()),
            error @ (::redb::Error::UpgradeRequired(_)
            | ::redb::Error::TableTypeMismatch { .. }
            | ::redb::Error::TableIsMultimap(_)
            | ::redb::Error::TypeDefinitionChanged { .. }) => foreign(error.to_string()),
            error => Self::io(path, io::Error::other(error.to_string())),
        }
    }
}
