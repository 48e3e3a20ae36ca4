//! What can be observed from outside: why and how a batch was flushed, and
//! counts of everything.

use std::fmt;
use std::time::Duration;

use crate::error::JobError;

/// Why a batch was flushed. Where several reasons hold, a full batch says so
/// first ([`Size`](Self::Size), then [`Weight`](Self::Weight)), then what was
/// asked for ([`Shutdown`](Self::Shutdown), [`Requested`](Self::Requested)),
/// then the waiting policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FlushReason {
    /// As many jobs were pending as `max_batch_size` allows in a batch.
    Size,
    /// The pending jobs weighed `max_batch_weight` or more.
    Weight,
    /// Its first job had waited for the `interval`.
    Interval,
    /// No batch was in flight, under `flush_when_idle`.
    Idle,
    /// Its jobs had together waited as long as a flush costs, under
    /// `flush_cost`.
    Cost,
    /// [`flush`](crate::MicroBatch::flush) was called.
    Requested,
    /// The micro-batcher was stopping.
    Shutdown,
}

impl fmt::Display for FlushReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Size => "size",
            Self::Weight => "weight",
            Self::Shutdown => "shutdown",
            Self::Requested => "requested",
            Self::Interval => "interval",
            Self::Idle => "idle",
            Self::Cost => "cost",
        })
    }
}

/// One finished batch, as the
/// [`on_batch`](crate::MicroBatchBuilder::on_batch) hook sees it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BatchReport<'a> {
    /// Jobs in the batch.
    pub size: usize,
    /// Their summed weight; zero where no weight function is set.
    pub weight: usize,
    /// Why it was flushed.
    pub reason: FlushReason,
    /// How long the first pending job had waited since it was accepted: the first
    /// of this batch, unless the storage is one of your own and chose others.
    pub waited: Duration,
    /// How long the processor took.
    pub took: Duration,
    /// Why it failed, if it did.
    pub error: Option<&'a JobError>,
}

/// Counters since the start and gauges of this moment.
///
/// They agree with one another: `accepted` is always the sum of `completed`,
/// `failed`, `withdrawn`, `abandoned`, `queued`, `pending` and `processing`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs accepted so far.
    pub accepted: u64,
    /// Jobs that got a result.
    pub completed: u64,
    /// Jobs whose batch failed, panicked or returned a wrong number of results.
    pub failed: u64,
    /// Accepted jobs left out because their handle was dropped first, under
    /// `cancel_on_drop`.
    pub withdrawn: u64,
    /// Jobs whose handle was dropped while they waited for room. They were never
    /// accepted, and are part of no other count.
    pub withdrawn_waiting: u64,
    /// Jobs that were never accepted: there was no room at `try_submit`, the
    /// micro-batcher was closed, or the weight function refused the job. They are part
    /// of no other count.
    pub refused: u64,
    /// Accepted jobs given up without an outcome.
    pub abandoned: u64,
    /// Batches handed to the processor so far.
    pub batches: u64,
    /// Jobs and reservations that wait for room now.
    pub waiting: usize,
    /// Jobs accepted and not yet taken up by the loop.
    pub queued: usize,
    /// Jobs taken up by the loop that wait for their batch.
    pub pending: usize,
    /// Jobs the processor has in hand.
    pub processing: usize,
    /// Batches the processor has in hand.
    pub in_flight: usize,
}

/// The transitions of jobs and batches. Each keeps `accepted` the sum that is promised
/// above; the gauge `queued` and its part of `accepted` are added when asked for.
impl Stats {
    /// Adds the numbers of another micro-batcher.
    pub(crate) fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.completed += other.completed;
        self.failed += other.failed;
        self.withdrawn += other.withdrawn;
        self.withdrawn_waiting += other.withdrawn_waiting;
        self.refused += other.refused;
        self.abandoned += other.abandoned;
        self.batches += other.batches;
        self.waiting += other.waiting;
        self.queued += other.queued;
        self.pending += other.pending;
        self.processing += other.processing;
        self.in_flight += other.in_flight;
    }

    /// The worker took jobs out of the queue.
    pub(crate) fn take_up(&mut self, jobs: usize) {
        self.accepted += jobs as u64;
        self.pending += jobs;
    }

    /// The handle of a waiting job was dropped.
    pub(crate) fn leave_waiting(&mut self) {
        self.withdrawn_waiting += 1;
    }

    pub(crate) fn withdraw_queued(&mut self) {
        self.accepted += 1;
        self.withdrawn += 1;
    }

    pub(crate) fn withdraw_pending(&mut self) {
        self.pending -= 1;
        self.withdrawn += 1;
    }

    pub(crate) fn abandon_queued(&mut self, jobs: usize) {
        self.accepted += jobs as u64;
        self.abandoned += jobs as u64;
    }

    pub(crate) fn abandon_pending(&mut self, jobs: usize) {
        self.remove_pending(jobs);
        self.abandoned += jobs as u64;
    }

    pub(crate) fn start_batch(&mut self, jobs: usize) {
        self.remove_pending(jobs);
        self.processing += jobs;
        self.in_flight += 1;
        self.batches += 1;
    }

    pub(crate) fn finish_batch(&mut self, jobs: usize, failed: bool) {
        self.end_batch(jobs);
        let outcome = match failed {
            false => &mut self.completed,
            true => &mut self.failed,
        };
        *outcome += jobs as u64;
    }

    /// A batch ended without results.
    pub(crate) fn abandon_batch(&mut self, jobs: usize) {
        self.end_batch(jobs);
        self.abandoned += jobs as u64;
    }

    fn end_batch(&mut self, jobs: usize) {
        self.processing -= jobs;
        self.in_flight -= 1;
    }

    fn remove_pending(&mut self, jobs: usize) {
        // A storage that said it was empty, so that its jobs were abandoned, may give
        // them all the same.
        self.pending = self.pending.saturating_sub(jobs);
    }
}
