//! What a worker tells the parent: a line of JSON each, on its standard output.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// A batch is about to be written.
    Begun,
    /// A batch is settled.
    Settled {
        /// Jobs that are written and have left the store.
        done: u64,
        /// Which delivery it was for each of them.
        attempt: u32,
        /// Why the batch failed, if it did. Its jobs come again.
        error: Option<String>,
    },
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
