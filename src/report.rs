//! What can be observed from outside: why and how a batch was flushed, and
//! counts of everything.

use std::fmt;
use std::time::Duration;

use crate::error::JobError;

/// Why a batch was flushed. Where several reasons hold, a full batch says so
/// first ([`Size`](Self::Size), then [`Weight`](Self::Weight)), then what was
/// asked for ([`Shutdown`](Self::Shutdown), [`Requested`](Self::Requested)),
/// then the waiting policy.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, FlushReason, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, mut reasons) = tokio::sync::mpsc::unbounded_channel();
/// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
///     .on_batch(move |batch| drop(sender.send(batch.reason)))
///     .build_running(CancellationToken::new())?;
///
/// rows.submit_all([1, 2, 3]).await; // a full batch
/// rows.submit(4).await?; // none comes to fill its batch
/// let last = rows.submit(5);
/// rows.flush().await;
/// assert_eq!(last.await?, 5);
///
/// assert_eq!(reasons.recv().await, Some(FlushReason::Size));
/// assert_eq!(reasons.recv().await, Some(FlushReason::Interval));
/// let requested = reasons.recv().await.map(|reason| reason.to_string());
/// assert_eq!(requested.as_deref(), Some("requested"));
/// # Ok(())
/// # }
/// ```
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
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{BatchReport, CancellationToken, MicroBatch};
///
/// fn line(batch: &BatchReport<'_>) -> String {
///     let outcome = batch.error.map_or("done".to_string(), |error| error.to_string());
///     let (waited, took) = (batch.waited.as_secs(), batch.took.as_secs());
///     format!("{} jobs, waited {waited} s, took {took} s: {outcome}", batch.size)
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
/// let rows = MicroBatch::builder(|rows: Vec<u8>| async move {
///     tokio::time::sleep(Duration::from_secs(2)).await;
///     Ok::<_, String>(rows)
/// })
/// .on_batch(move |batch| drop(sender.send(line(batch))))
/// .build_running(CancellationToken::new())?;
///
/// tokio::try_join!(rows.submit(1), rows.submit(2))?;
/// assert_eq!(lines.recv().await.as_deref(), Some("2 jobs, waited 1 s, took 2 s: done"));
/// # Ok(())
/// # }
/// ```
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
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{CancellationToken, MicroBatch, Stats};
///
/// /// How many accepted jobs have not ended.
/// fn open(stats: Stats) -> u64 {
///     stats.accepted - stats.completed - stats.failed - stats.withdrawn - stats.abandoned
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let slow = MicroBatch::builder(|jobs: Vec<u8>| async move {
/// #     tokio::time::sleep(Duration::from_secs(1)).await;
/// #     Ok::<_, String>(jobs)
/// # })
/// # .max_batch_size(2)
/// # .build_running(CancellationToken::new())?;
/// let handles = [1, 2, 3, 4, 5].map(|job| slow.submit(job));
/// tokio::time::sleep(Duration::from_millis(1)).await; // a batch of two is in flight
/// let stats = slow.stats();
/// assert_eq!((open(stats), stats.processing, stats.in_flight), (5, 2, 1));
/// assert_eq!(stats.queued + stats.pending, 3);
///
/// slow.flush().await;
/// assert_eq!(open(slow.stats()), 0);
/// # drop(handles);
/// # Ok(())
/// # }
/// ```
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
