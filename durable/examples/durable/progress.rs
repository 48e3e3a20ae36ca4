//! How far it has come, as the parent sees it: a bar on a terminal, and elsewhere, as in
//! a log, a line every tenth of the way.

use indicatif::{ProgressBar, ProgressStyle};

use crate::ledger::Ledger;
use crate::output::{grouped, say};

pub(crate) struct Progress {
    records: u64,
    bar: ProgressBar,
    tenths: u128,
}

impl Progress {
    pub(crate) fn new(records: u64) -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{wide_bar} {msg}")?;
        Ok(Self {
            records,
            bar: ProgressBar::new(records).with_style(style),
            tenths: 0,
        })
    }

    pub(crate) fn show(&mut self, ledger: &Ledger) {
        let stored = ledger.stored.min(self.records);
        let counts = format!(
            "{} acknowledged, {} stored, of {}",
            grouped(ledger.acknowledged()),
            grouped(stored),
            grouped(self.records),
        );
        let tenths = u128::from(stored) * 10 / u128::from(self.records.max(1));
        if !self.bar.is_hidden() {
            self.bar.set_message(counts);
            self.bar.set_position(stored);
        } else if tenths > self.tenths {
            self.tenths = tenths;
            say(&counts);
        }
    }

    /// Leaves the bar as it is, for a line to be written below it, and goes on with another.
    pub(crate) fn leave(&mut self) {
        self.bar.abandon();
        self.bar = ProgressBar::new(self.records).with_style(self.bar.style());
    }
}
