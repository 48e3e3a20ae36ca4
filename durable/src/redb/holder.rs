//! Who has a file open, for the error of those who come later. The lock of the file
//! decides; this is a note beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

/// Deletes the note when the file is closed.
#[derive(Debug)]
pub(super) struct HolderNote(PathBuf);

impl HolderNote {
    /// Notes this process as the holder. Without the note, others are told less.
    pub(super) fn write(path: &Path) -> Self {
        let note = note_of(path);
        if let Err(error) = fs::write(&note, process::id().to_string()) {
            tracing::debug!(%error, "could not note who has the file open");
        }
        Self(note)
    }
}

impl Drop for HolderNote {
    fn drop(&mut self) {
        // It may be gone with its folder.
        let _ = fs::remove_file(&self.0);
    }
}

/// Says who holds the file.
pub(super) fn read(path: &Path) -> String {
    let note = fs::read_to_string(note_of(path)).unwrap_or_default();
    match note.trim().parse::<u32>() {
        Ok(id) if id == process::id() => format!("this process ({id})"),
        Ok(id) => format!("process {id}"),
        Err(_) => "another process".to_owned(),
    }
}

fn note_of(path: &Path) -> PathBuf {
    let mut note = path.as_os_str().to_owned();
    note.push(".holder");
    note.into()
}
