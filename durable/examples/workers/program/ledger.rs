//! What the parent knows of the workers.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) workers: Vec<Tally>,
    /// Which worker was killed, and when.
    pub(crate) killed: Option<(usize, Instant)>,
    /// Jobs that were done with a later delivery than the first.
    pub(crate) delivered_again: u64,
    /// From the kill until the first and the last of these jobs was done.
    pub(crate) waited: Option<(Duration, Duration)>,
    pub(crate) took: Duration,
}

/// What one worker did, as far as it has told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) jobs: u64,
    pub(crate) batches: u64,
}

impl Ledger {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers: vec![Tally::default(); workers],
            killed: None,
            delivered_again: 0,
            waited: None,
            took: Duration::ZERO,
        }
    }

    /// Jobs that workers have told of.
    pub(crate) fn done(&self) -> u64 {
        self.workers.iter().map(|worker| worker.jobs).sum()
    }

    pub(crate) fn is_killed(&self, worker: usize) -> bool {
        self.killed.is_some_and(|(killed, _)| killed == worker)
    }

    /// Notes a batch.
    pub(crate) fn note(&mut self, worker: usize, done: u64, attempt: u32) {
        self.workers[worker].jobs += done;
        self.workers[worker].batches += 1;
        if attempt > 1 && done > 0 {
            self.delivered_again += done;
            if let Some((_, at)) = self.killed {
                let waited = at.elapsed();
                let first = self.waited.map_or(waited, |(first, _)| first);
                self.waited = Some((first, waited));
            }
        }
    }
}
