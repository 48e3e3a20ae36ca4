//! Where the files are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// The files that `examples/search/fetch` downloads, and the one that is computed of them.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Returns the files in this folder, which need not exist.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Returns the files where the script puts them: in the workspace's `target/search`.
    #[must_use]
    pub fn fetched() -> Self {
        let member = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = member.ancestors().nth(2).unwrap_or(member);
        Self::new(root.join("target").join("search"))
    }

    /// Returns the model, in ONNX.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.folder.join("model.onnx")
    }

    /// Returns the vocabulary, a JSON array.
    #[must_use]
    pub fn vocabulary(&self) -> PathBuf {
        self.folder.join("vocab.json")
    }

    /// Returns `WordNet`'s nouns.
    #[must_use]
    pub fn nouns(&self) -> PathBuf {
        self.folder.join("data.noun")
    }

    /// Returns the embeddings of the definitions, kept from an earlier run.
    #[must_use]
    pub fn embeddings(&self) -> PathBuf {
        self.folder.join("embeddings.bin")
    }

    /// Checks that everything has been fetched.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] names the first file that is not there, [`Error::Io`] one that
    /// cannot be seen.
    pub fn check(&self) -> Result<(), Error> {
        for path in [self.model(), self.vocabulary(), self.nouns()] {
            fs::metadata(&path).map_err(Error::at(&path))?;
        }
        Ok(())
    }
}
