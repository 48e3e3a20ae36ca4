//! What the worker tells its parent: a line of JSON each, on its standard output.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The store is open.
    Opened {
        /// Jobs that earlier workers left in it.
        waiting: u64,
        /// Records that they left in SQLite.
        stored: u64,
    },
    /// These records are durable. That counts once the parent has read it.
    Acknowledged {
        /// Their lines in the file.
        lines: Vec<u32>,
        /// How many of them the store had already, from an earlier worker.
        duplicates: u64,
        /// Commits of this worker so far.
        commits: u64,
    },
    /// A batch is in SQLite, and done.
    Processed { jobs: u64, attempt: u32 },
    /// The worker gives up.
    Failed { why: String },
}

impl Message {
    /// Writes it. If nobody reads it, the end of the input says so as well.
    pub(crate) fn send(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            let _ = writeln!(io::stdout(), "{line}");
        }
    }
}
