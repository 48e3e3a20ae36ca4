//! How far a pass has come: a bar on a terminal, and elsewhere, as in a log, a
//! line every tenth of the way.

use std::fmt;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::problems::say;

pub(crate) struct Progress {
    name: &'static str,
    bar: ProgressBar,
    rows: u64,
    done: u64,
}

impl Progress {
    pub(crate) fn new(name: &'static str, rows: u64) -> anyhow::Result<Self> {
        let template = "{msg:>13} {wide_bar} {pos}/{len} rows, {rate}, {eta} left";
        let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
            // A bar that cannot be drawn is no reason to stop.
            let _ = write!(out, "{:.0}/s", state.per_sec());
        };
        let style = ProgressStyle::with_template(template)?.with_key("rate", rate);
        let bar = ProgressBar::new(rows).with_style(style);
        bar.set_message(name);
        Ok(Self {
            name,
            bar,
            rows,
            done: 0,
        })
    }

    pub(crate) fn advance(&mut self) {
        let tenths = |done: u64| u128::from(done) * 10 / u128::from(self.rows.max(1));
        let before = tenths(self.done);
        self.done += 1;
        if !self.bar.is_hidden() {
            self.bar.inc(1);
        } else if tenths(self.done) > before {
            say(&format!(
                "{}: {} of {} rows",
                self.name, self.done, self.rows
            ));
        }
    }

    /// Leaves the bar as it is, which may be short of its end.
    pub(crate) fn finish(&self) {
        self.bar.abandon();
    }
}
