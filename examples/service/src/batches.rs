//! What is known of the batches that are done: sizes, reasons, times.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use microbatch::{BatchReport, FlushReason, JobError};
use serde::Serialize;

/// Filled by the hook `on_batch`.
#[derive(Default)]
pub struct BatchLog(Mutex<Batches>);

pub struct Batches {
    pub by_reason: BTreeMap<FlushReason, Flushed>,
    pub failures: BTreeMap<&'static str, u64>,
    /// How long the processor had batches in hand, added up.
    pub busy: Duration,
    pub size: Distribution,
    pub waited: Distribution,
    pub took: Distribution,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Flushed {
    pub batches: u64,
    pub jobs: u64,
}

/// A histogram with given buckets.
pub struct Distribution {
    pub bounds: &'static [f64],
    /// One more than there are bounds.
    pub counts: Vec<u64>,
    pub sum: f64,
}

const SIZES: &[f64] = &[1., 2., 5., 10., 20., 50., 100., 200., 500., 1000.];
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1., 2., 5., 10.,
];

impl BatchLog {
    pub fn add(&self, report: &BatchReport<'_>) {
        let mut batches = self.lock();
        let flushed = batches.by_reason.entry(report.reason).or_default();
        flushed.batches += 1;
        flushed.jobs += report.size as u64;
        batches.busy += report.took;
        batches.size.add(report.size as f64);
        batches.waited.add(report.waited.as_secs_f64());
        batches.took.add(report.took.as_secs_f64());
        if let Some(error) = report.error {
            let kind = match error {
                JobError::Panicked(_) => "panic",
                JobError::ResultCount { .. } => "result_count",
                _ => "error",
            };
            *batches.failures.entry(kind).or_default() += 1;
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Batches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            by_reason: BTreeMap::new(),
            failures: BTreeMap::new(),
            busy: Duration::ZERO,
            size: Distribution::new(SIZES),
            waited: Distribution::new(SECONDS),
            took: Distribution::new(SECONDS),
        }
    }
}

impl Distribution {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn add(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }
}
