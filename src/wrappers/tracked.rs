//! Results by the caller's own id.
//!
//! A job's slot travels with the job, inside the micro-batcher, and sees to it
//! that the job is found wherever it ends: in a batch, with its outcome, or by
//! being dropped, as abandoned. So nothing has to be told of withdrawals, stops
//! and storages that drop jobs. Where jobs are found is the `board`.

mod status_table;

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::builder::MicroBatchBuilder;
use crate::engine::panics::{Call, Shielded, catch, discard, trace};
use crate::error::{BuildError, JobError, ShutdownTimeout, StartError, TrySubmitError};
use crate::handle::JobHandle;
use crate::micro_batch::MicroBatch;
use crate::processor::BatchProcessor;
use crate::report::Stats;
use crate::storage::{BatchStorage, MemoryStorage};

use status_table::{Board, Slot, finish};

/// A micro-batcher whose jobs have ids, by which anyone finds how a job stands:
/// for results that are asked for later, and for requests that may be sent
/// twice.
///
/// A finished job is found until its retention ends, by
/// [number](TrackedBuilder::retain_jobs) or by
/// [age](TrackedBuilder::retain_for). That is memory: a result is kept beside
/// the one that the handle gives, so `R` is `Clone`, and an `Arc` where it is
/// large. Where the clone panics, [`JobError::Panicked`] is kept instead.
///
/// An id stands for one job for as long as it is known, as an idempotency key
/// does; see [`submit`](Self::submit).
///
/// Cheap to clone; dropping the last one stops it as
/// [`shutdown`](Self::shutdown) does, without waiting.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, JobStatus, Tracked};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let squares = Tracked::builder(|jobs: Vec<u64>| async move {
///     Ok::<_, String>(jobs.iter().map(|job| job * job).collect())
/// })
/// .options(|options| options.max_batch_size(100))
/// .retain_jobs(1000)
/// .build_running(CancellationToken::new())?;
///
/// // Accept a request, and let its caller ask again.
/// squares.submit("order-7", 7).accepted().await?;
/// assert!(matches!(squares.status("order-7"), Some(JobStatus::Submitted)));
/// assert!(squares.status("order-8").is_none());
///
/// squares.flush().await;
/// let Some(JobStatus::Completed(result)) = squares.status("order-7") else {
///     panic!("flushed");
/// };
/// assert_eq!(result?, 49);
/// # Ok(())
/// # }
/// ```
pub struct Tracked<K, J, R> {
    micro_batch: MicroBatch<TrackedJob<K, J, R>, R>,
    board: Arc<Board<K, R>>,
}

/// How a job stands, from [`Tracked::status`]. It goes forward only.
#[derive(Debug, Clone)]
pub enum JobStatus<R> {
    /// It waits: for room, or for its batch.
    Submitted,
    /// The processor has it in hand.
    Processing,
    /// It has ended, with what its handle resolves to.
    Completed(Result<R, JobError>),
}

impl<K, J, R> Tracked<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Clone + Send + Sync + 'static,
{
    /// Makes a tracked micro-batcher with the default options. Nothing is
    /// processed until [`start`](Self::start).
    pub fn new<P: BatchProcessor<J, R>>(processor: P) -> Self {
        Self::builder(processor).assemble()
    }

    /// Makes a tracked micro-batcher with the default options and starts it on
    /// the current runtime. It stops when `cancel` is cancelled.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn new_running<P: BatchProcessor<J, R>>(cancel: CancellationToken, processor: P) -> Self {
        let tracked = Self::new(processor);
        tracked.micro_batch.spawn(cancel);
        tracked
    }

    /// Returns a builder with the default options.
    pub fn builder<P: BatchProcessor<J, R>>(processor: P) -> TrackedBuilder<K, J, R, P> {
        TrackedBuilder {
            options: MicroBatch::builder(Tracking(processor)),
            retain_jobs: 10_000,
            retain_for: Duration::from_secs(60 * 60),
        }
    }

    /// Runs the loop until it is stopped and drained, as
    /// [`MicroBatch::start`] does.
    ///
    /// # Errors
    ///
    /// As for [`MicroBatch::start`].
    ///
    /// # Panics
    ///
    /// As for [`MicroBatch::start`].
    ///
    /// # Cancel safety
    ///
    /// As for [`MicroBatch::start`]: dropping the future abandons what was
    /// accepted, and so it is found.
    pub fn start(
        &self,
        cancel: CancellationToken,
    ) -> impl Future<Output = Result<(), StartError>> + Send + 'static + use<K, J, R> {
        self.micro_batch.start(cancel)
    }

    /// Stops, drains and waits, as [`MicroBatch::shutdown`] does. What has
    /// finished is found afterwards, too.
    ///
    /// # Errors
    ///
    /// [`ShutdownTimeout`] says how many jobs were given up.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the stop goes on by itself.
    pub fn shutdown(
        &self,
    ) -> impl Future<Output = Result<(), ShutdownTimeout>> + Send + 'static + use<K, J, R> {
        self.micro_batch.shutdown()
    }

    /// Submits a job under an id, and returns a handle that resolves to its
    /// result.
    ///
    /// Where the id is known, because its job is on its way or its result is
    /// retained, this job is dropped instead, whatever it is, and the handle
    /// resolves to that result. That goes for errors, too:
    /// [`forget`](Self::forget) the id to try again.
    ///
    /// Where the hash or the comparison of the id panics, the job is dropped and
    /// the handle resolves as [`JobError::Panicked`].
    ///
    /// Otherwise it is as [`MicroBatch::submit`]. A job that is refused at once
    /// leaves no trace. Dropping the handle changes nothing, unless that
    /// withdraws the job: where it still waits for room, or under
    /// [`cancel_on_drop`](MicroBatchBuilder::cancel_on_drop). Whoever else waits
    /// for the id then finds it [`JobError::Abandoned`]; so they do where a stop
    /// refuses a job that waits for room, although its own handle says
    /// [`JobError::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, Tracked};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), JobError> {
    /// # let payments = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u32>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let first = payments.submit("key-1", 250);
    /// let again = payments.submit("key-1", 250); // the client lost patience
    /// assert_eq!((first.await?, again.await?), (250, 250));
    /// assert_eq!(payments.stats().completed, 1); // paid once
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(&self, id: K, job: J) -> JobHandle<R> {
        let (claim, slot) = match self.board.claim(id) {
            Ok(claimed) => claimed,
            Err(handle) => {
                discard([job], None);
                return handle;
            }
        };
        let mut handle = self.micro_batch.submit(TrackedJob::new(slot, job));
        claim.settle(refusal(&mut handle));
        handle
    }

    /// Submits a job under an id if the queue has room for it now, or the id is
    /// known.
    ///
    /// # Errors
    ///
    /// [`TrySubmitError`] says why not, and gives the job back. It leaves no
    /// trace; whoever came with the same id in that moment hears
    /// [`JobError::Closed`].
    pub fn try_submit(&self, id: K, job: J) -> Result<JobHandle<R>, TrySubmitError<J>> {
        let (claim, slot) = match self.board.claim(id) {
            Ok(claimed) => claimed,
            Err(handle) => {
                discard([job], None);
                return Ok(handle);
            }
        };
        match self.micro_batch.try_submit(TrackedJob::new(slot, job)) {
            Ok(mut handle) => {
                claim.settle(refusal(&mut handle));
                Ok(handle)
            }
            Err(refused) => {
                claim.settle(Some(JobError::Closed));
                Err(match refused {
                    TrySubmitError::Full(entry) => TrySubmitError::Full(entry.into_job()),
                    TrySubmitError::Closed(entry) => TrySubmitError::Closed(entry.into_job()),
                    TrySubmitError::TooHeavy(entry) => TrySubmitError::TooHeavy(entry.into_job()),
                })
            }
        }
    }

    /// Returns how the job of that id stands; `None` where the id is not known,
    /// or no more.
    ///
    /// A job is `Completed` before its callers hear of it, except where a stop
    /// runs out of time: there it may follow a moment later, but before
    /// [`shutdown`](Self::shutdown) returns.
    ///
    /// A result whose clone panics is told as [`JobError::Panicked`]. An id
    /// whose hash or comparison panics is not known.
    #[must_use]
    pub fn status<Q>(&self, id: &Q) -> Option<JobStatus<R>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.board.status(id)
    }

    /// Ends the retention of a finished job, so that its id is free for another
    /// one. Returns whether there was one; a job on its way is left alone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, Tracked};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), JobError> {
    /// # let echo = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// assert_eq!(echo.submit("a", 1).await?, 1);
    /// assert_eq!(echo.submit("a", 2).await?, 1); // known
    /// assert!(echo.forget("a"));
    /// assert_eq!(echo.submit("a", 2).await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn forget<Q>(&self, id: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.board.forget(id)
    }

    /// Flushes everything accepted so far, as [`MicroBatch::flush`] does.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the flush goes on by itself.
    pub fn flush(&self) -> impl Future<Output = ()> + Send + 'static + use<K, J, R> {
        self.micro_batch.flush()
    }

    /// Returns whether the loop has been started and has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.micro_batch.is_running()
    }

    /// Returns whether jobs are no longer accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.micro_batch.is_closed()
    }

    /// Returns counters and gauges of this moment. Jobs whose id was known are
    /// not counted: they were not submitted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.micro_batch.stats()
    }
}

/// Returns why the job of this handle, which nobody has polled, was refused, if
/// it was.
fn refusal<R>(handle: &mut JobHandle<R>) -> Option<JobError> {
    // A handle that waits for room is not finished, and must not be polled: it
    // would stand in line.
    if !handle.is_finished() {
        return None;
    }
    handle.accepted().now_or_never()?.err()
}

impl<K, J, R> Clone for Tracked<K, J, R> {
    fn clone(&self) -> Self {
        Self {
            micro_batch: self.micro_batch.clone(),
            board: Arc::clone(&self.board),
        }
    }
}

impl<K, J, R> fmt::Debug for Tracked<K, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked")
            .field("micro_batch", &self.micro_batch)
            .finish_non_exhaustive()
    }
}

/// Sets the options of a [`Tracked`].
///
/// # Default
///
/// | option | default |
/// | --- | --- |
/// | [`retain_jobs`](Self::retain_jobs) | 10 000 jobs |
/// | [`retain_for`](Self::retain_for) | 1 h |
/// | [`options`](Self::options) | those of [`MicroBatchBuilder`] |
#[must_use = "a builder does nothing until `build` or `build_running`"]
pub struct TrackedBuilder<K, J, R, P, S = MemoryStorage<TrackedJob<K, J, R>, R>> {
    options: TrackedOptions<K, J, R, P, S>,
    retain_jobs: usize,
    retain_for: Duration,
}

/// The options of the micro-batcher behind a [`Tracked`].
pub type TrackedOptions<K, J, R, P, S = MemoryStorage<TrackedJob<K, J, R>, R>> =
    MicroBatchBuilder<TrackedJob<K, J, R>, R, Tracking<P>, S>;

impl<K, J, R, P, S> TrackedBuilder<K, J, R, P, S>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Clone + Send + Sync + 'static,
    P: BatchProcessor<J, R>,
    S: BatchStorage<TrackedJob<K, J, R>, R>,
{
    /// Sets the options of the micro-batcher.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |jobs: Vec<&'static str>| async move { Ok::<_, String>(jobs) };
    /// let tracked = Tracked::builder(processor)
    ///     .options(|options| {
    ///         options
    ///             .max_batch_size(100)
    ///             .max_batch_weight(64 * 1024, |entry| entry.job().len())
    ///     })
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(tracked.submit(1, "one").await?, "one");
    /// # Ok(())
    /// # }
    /// ```
    pub fn options<F, T>(self, set: F) -> TrackedBuilder<K, J, R, P, T>
    where
        F: FnOnce(TrackedOptions<K, J, R, P, S>) -> TrackedOptions<K, J, R, P, T>,
    {
        TrackedBuilder {
            options: set(self.options),
            retain_jobs: self.retain_jobs,
            retain_for: self.retain_for,
        }
    }

    /// Sets how many finished jobs are retained; beyond it those are forgotten
    /// that nobody has asked for longest. Default 10 000; zero is refused.
    ///
    /// While a batch ends there may be as many more as it holds.
    pub fn retain_jobs(mut self, jobs: usize) -> Self {
        self.retain_jobs = jobs;
        self
    }

    /// Sets how long a finished job is retained, by the system's clock. Default
    /// 1 h; zero is refused, and [`Duration::MAX`] means for ever.
    ///
    /// What is too old is not found any more; its memory is freed when there is
    /// other work to do.
    pub fn retain_for(mut self, age: Duration) -> Self {
        self.retain_for = age;
        self
    }

    /// Builds the tracked micro-batcher. Nothing is processed until
    /// [`start`](Tracked::start).
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the first option whose value means nothing.
    pub fn build(self) -> Result<Tracked<K, J, R>, BuildError> {
        if self.retain_jobs == 0 {
            return Err(BuildError::Zero("retain_jobs"));
        }
        if self.retain_for.is_zero() {
            return Err(BuildError::Zero("retain_for"));
        }
        let board = Board::new(self.retain_jobs, self.retain_for);
        let micro_batch = self.options.build()?;
        Ok(Tracked { micro_batch, board })
    }

    /// Builds the tracked micro-batcher and starts it on the current runtime.
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build).
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn build_running(self, cancel: CancellationToken) -> Result<Tracked<K, J, R>, BuildError> {
        let tracked = self.build()?;
        tracked.micro_batch.spawn(cancel);
        Ok(tracked)
    }

    /// Puts the parts together, whose values are known to be good.
    fn assemble(self) -> Tracked<K, J, R> {
        Tracked {
            micro_batch: self.options.assemble(),
            board: Board::new(self.retain_jobs, self.retain_for),
        }
    }
}

impl<K, J, R, P, S> fmt::Debug for TrackedBuilder<K, J, R, P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedBuilder")
            .field("retain_jobs", &self.retain_jobs)
            .field("retain_for", &self.retain_for)
            .field("options", &self.options)
            .finish()
    }
}

/// A job with its id, as the micro-batcher behind a [`Tracked`], its weight
/// function and its storage see it.
///
/// Dropping it completes the job as [`JobError::Abandoned`].
pub struct TrackedJob<K, J, R> {
    slot: Slot<K, R>,
    /// There until it is taken.
    job: Shielded<Option<J>>,
}

impl<K, J, R> TrackedJob<K, J, R> {
    fn new(slot: Slot<K, R>, job: J) -> Self {
        let job = Shielded::new(Some(job));
        Self { slot, job }
    }

    fn into_parts(mut self) -> (Slot<K, R>, J) {
        let job = self.job.get_mut().take();
        (self.slot, job.expect("it is taken once"))
    }

    fn into_job(self) -> J {
        self.into_parts().1
    }

    /// Returns the id that the job was submitted under.
    pub fn id(&self) -> &K {
        self.slot.id()
    }

    /// Returns the job.
    pub fn job(&self) -> &J {
        self.job.as_ref().expect("it is taken with the entry")
    }
}

impl<K: fmt::Debug, J: fmt::Debug, R> fmt::Debug for TrackedJob<K, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedJob")
            .field("id", self.id())
            .field("job", self.job())
            .finish_non_exhaustive()
    }
}

/// The processor of a [`Tracked`], with the keeping of its books around it.
#[derive(Debug)]
pub struct Tracking<P>(P);

impl<K, J, R, P> BatchProcessor<TrackedJob<K, J, R>, R> for Tracking<P>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Clone + Send + Sync + 'static,
    P: BatchProcessor<J, R>,
{
    type Error = JobError;

    fn process(
        &self,
        entries: Vec<TrackedJob<K, J, R>>,
    ) -> impl Future<Output = Result<Vec<R>, JobError>> + Send {
        let entries = entries.into_iter().map(TrackedJob::into_parts);
        let (slots, jobs): (Vec<_>, Vec<_>) = entries.unzip();
        slots.iter().for_each(Slot::process);
        // Now, because batches are handed to a processor in order, and their
        // futures may be polled in any.
        let called = Call::new(|| self.0.process(jobs));
        async move {
            // What the micro-batcher would make of it, only earlier: before the
            // callers hear.
            let outcome = match called.await {
                Ok(Ok(results)) if results.len() == slots.len() => Ok(results),
                Ok(Ok(results)) => {
                    let (expected, actual) = (slots.len(), results.len());
                    discard(results, None);
                    Err(JobError::ResultCount { expected, actual })
                }
                // An error that panics when it is boxed is a panic as well.
                Ok(Err(error)) => Err(catch(|| JobError::from_processor(error.into()))
                    .unwrap_or_else(JobError::Panicked)),
                Err(message) => Err(JobError::Panicked(message)),
            };
            match &outcome {
                // Where one cannot be kept, its own caller still gets it.
                Ok(results) => finish(slots, results.iter().map(keep)),
                Err(error) => finish(slots, iter::repeat_with(|| Err(error.clone()))),
            }
            outcome
        }
    }
}

/// Returns the copy of a result that is retained.
fn keep<R: Clone>(result: &R) -> Result<R, JobError> {
    catch(|| result.clone()).map_err(|error| {
        trace(|| error!(%error, "the clone of a result panicked"));
        JobError::Panicked(error)
    })
}
