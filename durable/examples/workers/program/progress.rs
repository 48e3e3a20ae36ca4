//! How far the producer and each worker have come: a bar each on a terminal, and elsewhere,
//! as in a log, a line every tenth of the way.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::ledger::Ledger;
use super::output::{grouped, say};

pub(crate) struct Progress {
    records: u64,
    all: MultiProgress,
    producer: ProgressBar,
    workers: Vec<ProgressBar>,
    tenths: u128,
}

impl Progress {
    pub(crate) fn new(records: u64, workers: usize) -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{prefix:9} {wide_bar} {msg:24}")?;
        let all = MultiProgress::new();
        let bar = |prefix: String| {
            let bar = ProgressBar::new(records).with_style(style.clone());
            all.add(bar).with_prefix(prefix)
        };
        let producer = bar("producer".to_owned());
        let workers = (1..=workers).map(|n| bar(format!("worker {n}")));
        Ok(Self {
            records,
            producer,
            workers: workers.collect(),
            all,
            tenths: 0,
        })
    }

    pub(crate) fn show(&mut self, submitted: u64, ledger: &Ledger) {
        if self.all.is_hidden() {
            let tenths = u128::from(ledger.done()) * 10 / u128::from(self.records.max(1));
            if tenths > self.tenths {
                self.tenths = tenths;
                say(&self.line(submitted, ledger));
            }
            return;
        }
        self.producer.set_position(submitted);
        self.producer
            .set_message(format!("{} submitted", grouped(submitted)));
        for (n, (bar, worker)) in self.workers.iter().zip(&ledger.workers).enumerate() {
            bar.set_position(worker.jobs);
            let killed = if ledger.is_killed(n) { ", killed" } else { "" };
            bar.set_message(format!("{} done{killed}", grouped(worker.jobs)));
        }
    }

    fn line(&self, submitted: u64, ledger: &Ledger) -> String {
        let workers: Vec<_> = (ledger.workers.iter().enumerate())
            .map(|(n, worker)| {
                let killed = if ledger.is_killed(n) { " (killed)" } else { "" };
                format!("worker {}: {}{killed}", n + 1, grouped(worker.jobs))
            })
            .collect();
        format!("submitted: {}; {}", grouped(submitted), workers.join(", "))
    }

    /// Writes a line above the bars.
    pub(crate) fn say(&self, line: &str) {
        self.all.suspend(|| say(line));
    }

    /// Leaves the bars as they are.
    pub(crate) fn leave(&self) {
        for bar in std::iter::once(&self.producer).chain(&self.workers) {
            bar.abandon();
        }
    }
}
