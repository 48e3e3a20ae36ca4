//! What went wrong, line by line: the first few in full, all of them counted.

use std::io::{self, Write};

/// A file that is wrong throughout should not fill the memory or the screen.
const SHOWN: usize = 10;

#[derive(Debug, Default)]
pub(crate) struct Problems {
    first: Vec<String>,
    count: u64,
}

impl Problems {
    pub(crate) fn add(&mut self, problem: String) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(problem);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn print(&self, verdict: &str) {
        for problem in &self.first {
            say(&format!("{verdict}: {problem}"));
        }
        let more = self.count - self.first.len() as u64;
        if more > 0 {
            say(&format!("{verdict}: {more} more like these"));
        }
    }
}

/// Writes a line to standard error. Unlike `eprintln!` it does not panic where
/// nobody reads it.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
