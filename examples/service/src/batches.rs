//! What the page shows of the batches that are done.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use microbatch::{BatchReport, FlushReason};
use serde::Serialize;

/// Filled by the hook `on_batch`.
#[derive(Default)]
pub struct BatchLog(Mutex<Batches>);

#[derive(Default)]
pub struct Batches {
    pub by_reason: BTreeMap<FlushReason, Flushed>,
    /// How long the processor had batches in hand, added up.
    pub busy: Duration,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Flushed {
    pub batches: u64,
    pub jobs: u64,
}

impl BatchLog {
    pub fn add(&self, report: &BatchReport<'_>) {
        let mut batches = self.lock();
        let flushed = batches.by_reason.entry(report.reason).or_default();
        flushed.batches += 1;
        flushed.jobs += report.size as u64;
        batches.busy += report.took;
    }

    pub fn lock(&self) -> MutexGuard<'_, Batches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
