//! Results by the caller's own id.
//!
//! A job's slot travels with the job, inside the micro-batcher, and sees to it
//! that the job is found wherever it ends: in a batch, with its outcome, or by
//! being dropped, as abandoned. So nothing has to be told of withdrawals, stops
//! and storages that drop jobs.
//!
//! # Invariants
//!
//! - An id is in `live` from before its job is submitted until after its
//!   outcome is in `finished`, and whoever asks looks into `live` first. So an
//!   id that is known is never missed in between, and its states go forward
//!   only.
//! - Who puts an id into `live` submits its job; all others who come with the
//!   id wait for that job. `finished` is asked with the id claimed, when nobody
//!   else can put it there or take it up again.
//! - A claim is invisible until the job is accepted, or waits for room, so a
//!   refusal leaves no trace.
//! - No code of the user's but that of ids runs under the lock.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::builder::MicroBatchBuilder;
use crate::error::{BuildError, JobError, ShutdownTimeout, StartError, TrySubmitError};
use crate::job::{JobHandle, Reply};
use crate::micro_batch::MicroBatch;
use crate::panics::message;
use crate::processor::BatchProcessor;
use crate::report::Stats;
use crate::storage::{BatchStorage, MemoryStorage};

/// The cache refuses an age of a thousand years; nobody will miss the rest.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A micro-batcher whose jobs have ids, by which anyone finds how a job stands:
/// for results that are asked for later, and for requests that may be sent
/// twice.
///
/// A finished job is found until its retention ends, by
/// [number](TrackedBuilder::retain_jobs) or by
/// [age](TrackedBuilder::retain_for). That is memory: a result is kept beside
/// the one that the handle gives, so `R` is `Clone`, and an `Arc` where it is
/// large.
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
            Err(handle) => return handle,
        };
        let mut handle = self.micro_batch.submit(TrackedJob { slot, job });
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
            Err(handle) => return Ok(handle),
        };
        match self.micro_batch.try_submit(TrackedJob { slot, job }) {
            Ok(mut handle) => {
                claim.settle(refusal(&mut handle));
                Ok(handle)
            }
            Err(refused) => {
                claim.settle(Some(JobError::Closed));
                Err(match refused {
                    TrySubmitError::Full(entry) => TrySubmitError::Full(entry.job),
                    TrySubmitError::Closed(entry) => TrySubmitError::Closed(entry.job),
                    TrySubmitError::TooHeavy(entry) => TrySubmitError::TooHeavy(entry.job),
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
    /// # Panics
    ///
    /// Where cloning the result does.
    #[must_use]
    pub fn status<Q>(&self, id: &Q) -> Option<JobStatus<R>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        match self.board.stage(id) {
            Some(SUBMITTED) => Some(JobStatus::Submitted),
            Some(PROCESSING) => Some(JobStatus::Processing),
            _ => {
                let outcome = self.board.finished.get(id)?;
                Some(JobStatus::Completed((*outcome).clone()))
            }
        }
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
        if matches!(self.board.stage(id), Some(SUBMITTED | PROCESSING)) {
            return false;
        }
        // `remove` would find an entry that is too old to be found.
        let found = self.board.finished.contains_key(id);
        self.board.finished.invalidate(id);
        found
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

    /// Sets how many finished jobs are retained; beyond it the one that was not
    /// asked for longest is forgotten. Default 10 000; zero is refused.
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
    /// Before the job, whose drop might panic.
    slot: Slot<K, R>,
    job: J,
}

impl<K, J, R> TrackedJob<K, J, R> {
    /// Returns the id that the job was submitted under.
    pub fn id(&self) -> &K {
        &self.slot.record.id
    }

    /// Returns the job.
    pub fn job(&self) -> &J {
        &self.job
    }
}

impl<K: fmt::Debug, J: fmt::Debug, R> fmt::Debug for TrackedJob<K, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedJob")
            .field("id", self.id())
            .field("job", &self.job)
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

    async fn process(&self, entries: Vec<TrackedJob<K, J, R>>) -> Result<Vec<R>, JobError> {
        let entries = entries.into_iter().map(|entry| (entry.slot, entry.job));
        let (slots, jobs): (Vec<_>, Vec<_>) = entries.unzip();
        for slot in &slots {
            slot.record.stage.store(PROCESSING, Ordering::Release);
        }
        // What the micro-batcher would make of it, only earlier: before the
        // callers hear.
        let outcome = AssertUnwindSafe(async {
            let results = self.0.process(jobs).await;
            let results = results.map_err(|error| JobError::from_processor(error.into()))?;
            if results.len() != slots.len() {
                return Err(JobError::ResultCount {
                    expected: slots.len(),
                    actual: results.len(),
                });
            }
            // Cloning is code of the user's, too.
            Ok((results.clone(), results))
        });
        let outcome = outcome.catch_unwind().await;
        let outcome = outcome.unwrap_or_else(|panic| Err(JobError::Panicked(message(&*panic))));
        match outcome {
            Ok((kept, results)) => {
                finish(slots, kept.into_iter().map(Ok));
                Ok(results)
            }
            Err(error) => {
                finish(slots, std::iter::repeat_with(|| Err(error.clone())));
                Err(error)
            }
        }
    }
}

type Outcome<R> = Arc<Result<R, JobError>>;

/// Completes the jobs of a batch.
fn finish<K, R>(slots: Vec<Slot<K, R>>, outcomes: impl Iterator<Item = Result<R, JobError>>) {
    let Some(first) = slots.first() else {
        return;
    };
    let ledger = Arc::clone(&first.ledger);
    let records = slots.into_iter().map(Slot::resolve);
    ledger.finish(records.zip(outcomes.map(Arc::new)).collect());
}

/// Submitted by its claim alone; not seen by others.
const CLAIMED: u8 = 0;
const SUBMITTED: u8 = 1;
const PROCESSING: u8 = 2;
/// Dropped before the submission was settled, which then decides what that
/// means.
const DROPPED: u8 = 3;

/// What a claim, a job's slot and the board have in common.
struct Record<K> {
    id: K,
    stage: AtomicU8,
}

impl<K> Record<K> {
    /// Leaves the state of a claim, unless somebody else was faster.
    fn leave_claim(&self, to: u8) -> Result<u8, u8> {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        self.stage.compare_exchange(CLAIMED, to, order.0, order.1)
    }
}

/// A claim, and the slot for the job that it is for.
type Claimed<'a, K, R> = (Claim<'a, K, R>, Slot<K, R>);

/// The right to submit the job of an id.
struct Claim<'a, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    board: &'a Board<K, R>,
    record: Arc<Record<K>>,
    settled: bool,
}

impl<K, R> Claim<'_, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    /// Gives the claim up, for this outcome.
    fn release(mut self, outcome: &Result<R, JobError>) {
        self.settled = true;
        self.board.release(&self.record.id, outcome);
    }

    /// Says what became of the submission.
    fn settle(mut self, refused: Option<JobError>) {
        if let Some(error) = refused {
            return self.release(&Err(error));
        }
        self.settled = true;
        if self.record.leave_claim(SUBMITTED) == Err(DROPPED) {
            let abandoned = Arc::new(Err(JobError::Abandoned));
            self.board
                .finish(vec![(Arc::clone(&self.record), abandoned)]);
        }
    }
}

impl<K, R> Drop for Claim<'_, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        // The submission panicked: in the drop of a job that was refused.
        if !self.settled {
            let abandoned = Err(JobError::Abandoned);
            self.board.release(&self.record.id, &abandoned);
        }
    }
}

/// What a job owes the board. Dropping it completes the job as abandoned.
struct Slot<K, R> {
    record: Arc<Record<K>>,
    ledger: Arc<dyn Ledger<K, R>>,
    resolved: bool,
}

impl<K, R> Slot<K, R> {
    fn resolve(mut self) -> Arc<Record<K>> {
        self.resolved = true;
        Arc::clone(&self.record)
    }
}

impl<K, R> Drop for Slot<K, R> {
    fn drop(&mut self) {
        if !self.resolved && self.record.leave_claim(DROPPED).is_err() {
            let abandoned = Arc::new(Err(JobError::Abandoned));
            self.ledger
                .finish(vec![(Arc::clone(&self.record), abandoned)]);
        }
    }
}

/// The board as a slot sees it, free of the bounds of its methods, which a
/// `Drop` may not have.
trait Ledger<K, R>: Send + Sync {
    fn finish(&self, finished: Vec<(Arc<Record<K>>, Outcome<R>)>);
}

/// Where everybody finds how a job stands.
struct Board<K, R> {
    live: Mutex<HashMap<K, Live<K, R>>>,
    finished: Cache<K, Outcome<R>>,
}

struct Live<K, R> {
    record: Arc<Record<K>>,
    /// Those who came with the same id.
    others: Vec<Reply<R>>,
}

impl<K, R> Board<K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    fn new(jobs: usize, age: Duration) -> Arc<Self> {
        // Not the default policy, which may prefer what it has to what is new.
        let cache = Cache::builder()
            .max_capacity(jobs as u64)
            .eviction_policy(EvictionPolicy::lru());
        let cache = if age < FOR_EVER {
            cache.time_to_live(age)
        } else {
            cache
        };
        Arc::new(Self {
            live: Mutex::default(),
            finished: cache.build(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Live<K, R>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims an id for a job of the caller's, or joins those who wait for it.
    fn claim(self: &Arc<Self>, id: K) -> Result<Claimed<'_, K, R>, JobHandle<R>> {
        let key = id.clone();
        let record = Arc::new(Record {
            id,
            stage: AtomicU8::new(CLAIMED),
        });
        let live = Live {
            record: Arc::clone(&record),
            others: Vec::new(),
        };
        let mut all = self.lock();
        if let Some(found) = all.get_mut(&key) {
            let handle = found.join();
            drop(all);
            return Err(handle);
        }
        all.insert(key, live);
        drop(all);
        let claim = Claim {
            board: self,
            record: Arc::clone(&record),
            settled: false,
        };
        if let Some(outcome) = self.finished.get(&record.id) {
            let (reply, receipt) = Reply::new();
            answer(reply, &outcome);
            claim.release(&outcome);
            return Err(receipt.accepted());
        }
        let slot = Slot {
            record,
            ledger: Arc::clone(self) as Arc<dyn Ledger<K, R>>,
            resolved: false,
        };
        Ok((claim, slot))
    }

    /// Gives up a claim, and answers those who joined it.
    fn release(&self, id: &K, outcome: &Result<R, JobError>) {
        let live = self.lock().remove_entry(id);
        for reply in live.into_iter().flat_map(|(_, live)| live.others) {
            answer(reply, outcome);
        }
    }

    fn stage<Q>(&self, id: &Q) -> Option<u8>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let all = self.lock();
        Some(all.get(id)?.record.stage.load(Ordering::Acquire))
    }
}

impl<K, R> Ledger<K, R> for Board<K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    fn finish(&self, finished: Vec<(Arc<Record<K>>, Outcome<R>)>) {
        for (record, outcome) in &finished {
            let outcome = Arc::clone(outcome);
            self.finished.insert(record.id.clone(), outcome);
        }
        // Only now, so that whoever does not find a job here finds it there.
        let mut all = self.lock();
        let records = finished.iter().map(|(record, _)| record);
        let left: Vec<_> = records.map(|record| all.remove_entry(&record.id)).collect();
        drop(all);
        // The cache puts its housekeeping off, and holds too much until then.
        self.finished.run_pending_tasks();
        for ((_, outcome), left) in finished.iter().zip(left) {
            for reply in left.into_iter().flat_map(|(_, live)| live.others) {
                answer(reply, outcome);
            }
        }
    }
}

impl<K, R> Live<K, R> {
    /// Returns a handle for one who came with the same id.
    fn join(&mut self) -> JobHandle<R> {
        let others = &mut self.others;
        if others.len() == others.capacity() {
            // Those who have gone make room for those who come, so that asking
            // again and again costs nothing. At least half of it is free then,
            // so this pays for itself.
            others.retain(|reply| !reply.is_unwanted());
            if others.len() > others.capacity() / 2 {
                others.reserve(others.capacity());
            }
        }
        let (reply, receipt) = Reply::new();
        others.push(reply);
        receipt.accepted()
    }
}

fn answer<R: Clone>(reply: Reply<R>, outcome: &Result<R, JobError>) {
    let answer = catch_unwind(AssertUnwindSafe(|| outcome.clone()));
    reply.send(answer.unwrap_or_else(|panic| Err(JobError::Panicked(message(&*panic)))));
}
