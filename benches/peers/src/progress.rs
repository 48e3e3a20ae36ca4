//! How far a measurement is, on stderr.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// Where there is no terminal to draw on, a line is printed per case.
    last: Option<String>,
}

impl Progress {
    #[expect(clippy::new_without_default, reason = "it starts to draw")]
    pub fn new() -> Self {
        let style = ProgressStyle::with_template(
            "{elapsed_precise} [{bar:30}] {pos}/{len}, {eta} left, {msg}",
        );
        let bar = ProgressBar::new(0).with_style(style.expect("a template"));
        if stderr().is_terminal() {
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Self { bar, last: None }
    }

    /// That many more steps are to come.
    pub fn expect(&self, steps: usize) {
        self.bar.inc_length(steps as u64);
    }

    pub fn step(&mut self, what: &str, subject: &str) {
        self.bar.inc(1);
        self.bar.set_message(format!("{what}: {subject}"));
        if !stderr().is_terminal() && self.last.as_deref() != Some(what) {
            let (done, of) = (self.bar.position(), self.bar.length().unwrap_or(0));
            eprintln!("{:>5} s  {done}/{of}  {what}", self.bar.elapsed().as_secs());
            self.last = Some(what.to_owned());
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
