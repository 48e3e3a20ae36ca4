//! How far it has come, as the parent sees it: a bar on a terminal, and elsewhere, as in
//! a log, a line every tenth of the way.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::ledger::Ledger;
use crate::report::grouped;
use crate::say;

const WIDTH: usize = 30;

/// Between two pictures of the bar.
const FRAME: Duration = Duration::from_millis(50);

pub(crate) struct Progress {
    records: u64,
    is_terminal: bool,
    tenths: u64,
    drawn: Option<Instant>,
    last: String,
}

impl Progress {
    pub(crate) fn new(records: u64) -> Self {
        Self {
            records,
            is_terminal: io::stderr().is_terminal(),
            tenths: 0,
            drawn: None,
            last: String::new(),
        }
    }

    pub(crate) fn show(&mut self, ledger: &Ledger) {
        let records = self.records.max(1);
        let stored = ledger.stored.min(records);
        let counts = format!(
            "{} acknowledged, {} stored, of {}",
            grouped(ledger.acknowledged()),
            grouped(stored),
            grouped(self.records),
        );
        if self.is_terminal {
            let filled = (stored as u128 * WIDTH as u128 / u128::from(records)) as usize;
            let bar = format!("{}{}", "#".repeat(filled), ".".repeat(WIDTH - filled));
            self.last = format!("[{bar}] {counts}");
            if self.drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME) {
                self.drawn = Some(Instant::now());
                self.draw("");
            }
        } else {
            let tenths = (u128::from(stored) * 10 / u128::from(records)) as u64;
            if tenths > self.tenths {
                self.tenths = tenths;
                say(&counts);
            }
        }
    }

    /// Leaves the bar as it is, for a line to be written below it.
    pub(crate) fn leave(&self) {
        if !self.last.is_empty() {
            self.draw("\n");
        }
    }

    fn draw(&self, end: &str) {
        // A bar that cannot be drawn is no reason to stop.
        let _ = write!(io::stderr(), "\r{}\x1b[K{end}", self.last);
    }
}
