//! How far something is, on standard error.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// A line that is rewritten in a terminal, and elsewhere written every few seconds.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: usize,
    terminal: bool,
    started: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// Nothing of `total` is done. The first line comes after half a second.
    #[must_use]
    pub fn new(what: impl Into<String>, total: usize) -> Self {
        Self {
            what: what.into(),
            total,
            terminal: stderr().is_terminal(),
            started: Instant::now(),
            shown: None,
        }
    }

    /// So many are done.
    pub fn show(&mut self, done: usize) {
        let pause = Duration::from_millis(if self.terminal { 100 } else { 5000 });
        let due = match self.shown {
            None => self.started.elapsed() >= Duration::from_millis(500),
            Some(shown) => shown.elapsed() >= pause,
        };
        if due {
            self.write(&format!("{done} of {}", self.total));
            self.shown = Some(Instant::now());
        }
    }

    /// Writes that all is done, if anything was written before.
    pub fn end(self) {
        if self.shown.is_some() {
            self.write(&format!("{:.1} s", self.started.elapsed().as_secs_f64()));
            if self.terminal {
                eprintln!();
            }
        }
    }

    fn write(&self, state: &str) {
        // Whether anybody reads this changes nothing.
        let _ = if self.terminal {
            write!(stderr(), "\r\x1b[K{}: {state}", self.what)
        } else {
            writeln!(stderr(), "{}: {state}", self.what)
        };
    }
}
