//! The handle that users hold.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, mem};

use tokio_util::sync::CancellationToken;

use crate::error::{Closed, JobError, ShutdownTimeout, StartError, TrySubmitError};
use crate::intake::{Claim, Intake, Refusal};
use crate::job::{JobHandle, PendingJob, Receipt, Reply};
use crate::panics::{Shielded, discard, guard};
use crate::processor::BatchProcessor;
use crate::report::Stats;
use crate::storage::BatchStorage;
use crate::worker::Worker;

/// Groups single jobs into small batches and gives every caller its own
/// result.
///
/// Cheap to clone; all clones feed the same loop, and dropping the last one
/// stops it as [`shutdown`](Self::shutdown) does, without waiting.
///
/// Where one stage's processor submits to the next, give each stage a token of
/// its own and await their `shutdown` first to last. With one token for all, the
/// last closes at once, and what the first drains into it is refused.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), microbatch::JobError> {
/// let squares = MicroBatch::new_running(CancellationToken::new(), |jobs: Vec<u64>| async move {
///     Ok::<_, String>(jobs.iter().map(|job| job * job).collect())
/// });
///
/// let (three, four) = tokio::join!(squares.submit(3), squares.submit(4));
/// assert_eq!((three?, four?), (9, 16));
/// # Ok(())
/// # }
/// ```
pub struct MicroBatch<J, R> {
    /// The way to room of tower's `poll_ready`, which belongs to this clone
    /// alone. Boxed, so that a clone is two words whatever a job is. Before the
    /// owner, so that the last clone gives the room back before it closes.
    #[cfg(feature = "tower")]
    pub(crate) place: Option<Box<Claim<J, R>>>,
    owner: Arc<Owner<J, R>>,
}

/// What the users share, and by whose drop the loop learns that they are gone.
struct Owner<J, R> {
    intake: Arc<Intake<J, R>>,
    weigher: Option<Shielded<Weigher<J>>>,
    max_batch_weight: usize,
    stage: Mutex<Stage>,
}

pub(crate) type Weigher<J> = Box<dyn Fn(&J) -> usize + Send + Sync>;

/// Starts the worker, whose processor and storage have types of their own.
type Launch = Box<dyn FnOnce(CancellationToken) -> Run + Send>;
type Run = Pin<Box<dyn Future<Output = Result<(), ShutdownTimeout>> + Send>>;

enum Stage {
    Idle(Launch),
    Started,
    /// Stopped before it was started.
    Skipped,
}

impl<J, R> Drop for Owner<J, R> {
    fn drop(&mut self) {
        self.intake.close();
    }
}

impl<J: Send + 'static, R: Send + 'static> MicroBatch<J, R> {
    pub(crate) fn new_idle<P, S>(
        intake: Arc<Intake<J, R>>,
        weigher: Option<Shielded<Weigher<J>>>,
        max_batch_weight: usize,
        worker: Worker<J, R, P, S>,
    ) -> Self
    where
        P: BatchProcessor<J, R>,
        S: BatchStorage<J, R>,
    {
        let launch: Launch = Box::new(|cancel| Box::pin(worker.run(cancel)));
        Self::of(Arc::new(Owner {
            intake,
            weigher,
            max_batch_weight,
            stage: Mutex::new(Stage::Idle(launch)),
        }))
    }

    /// Starts the loop on the current runtime.
    pub(crate) fn spawn(&self, cancel: CancellationToken) {
        // The loop logs how it ends, and `shutdown` tells.
        drop(tokio::spawn(self.start(cancel)));
    }

    /// Runs the loop until it is stopped and drained: by `cancel`, by
    /// [`shutdown`](Self::shutdown), or by dropping the last `MicroBatch`.
    ///
    /// The call claims the loop at once, so a second call fails even before the
    /// first future is polled; the future must then be awaited or spawned.
    /// Batches run in tasks of their own on the same runtime.
    ///
    /// # Errors
    ///
    /// [`StartError::AlreadyStarted`] for every call but the first, and
    /// [`StartError::ShutdownTimeout`] where a stop took longer than
    /// `shutdown_timeout`. After a `shutdown` that came before any `start`
    /// there is nothing to run, and the result is `Ok`.
    ///
    /// # Panics
    ///
    /// The future panics outside a Tokio runtime, or in one without its time
    /// driver.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the loop without draining: intake closes,
    /// batches in flight are aborted, and every job that was accepted and has
    /// no result resolves as [`JobError::Abandoned`].
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch::{CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = MicroBatch::new(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) });
    /// let early = echo.submit(1);
    ///
    /// let cancel = CancellationToken::new();
    /// let run = tokio::spawn(echo.start(cancel.clone()));
    /// cancel.cancel();
    /// run.await??; // drained
    /// assert_eq!(early.await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn start(
        &self,
        cancel: CancellationToken,
    ) -> impl Future<Output = Result<(), StartError>> + Send + 'static + use<J, R> {
        let mut stage = self.owner.stage();
        let claimed = mem::replace(&mut *stage, Stage::Started);
        if matches!(claimed, Stage::Skipped) {
            *stage = Stage::Skipped;
        }
        drop(stage);
        async move {
            match claimed {
                Stage::Idle(launch) => Ok(launch(cancel).await?),
                Stage::Started => Err(StartError::AlreadyStarted),
                Stage::Skipped => Ok(()),
            }
        }
    }

    /// Stops: closes the intake, drains what was accepted without waiting for
    /// the interval, and waits for the end, `shutdown_timeout` at most. May be
    /// called any number of times and by anyone; all calls wait for the same
    /// end.
    ///
    /// Before `start` nothing can be processed, so jobs that wait in the queue
    /// resolve as [`JobError::Abandoned`]. A processor that awaits this waits
    /// for itself, until the stop runs out of time. The time is kept by the loop:
    /// while the future of `start` is neither polled nor dropped, there is no
    /// end.
    ///
    /// # Errors
    ///
    /// [`ShutdownTimeout`] says how many jobs were given up because time ran out.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the stop goes on by itself; dropping the future only stops
    /// the waiting.
    pub fn shutdown(
        &self,
    ) -> impl Future<Output = Result<(), ShutdownTimeout>> + Send + 'static + use<J, R> {
        let owner = Arc::clone(&self.owner);
        async move {
            owner.intake.close();
            owner.skip();
            owner.intake.drained().await
        }
    }

    /// Submits a job, and returns a handle that resolves to its result.
    ///
    /// Accepts the job at once when the queue has room. Otherwise the job stands
    /// in line for it from now on, first come first served, whether the handle is
    /// polled or not; dropping the handle there withdraws the job. The line has no
    /// limit of its own: where that matters, [`JobHandle::accepted`],
    /// [`reserve`](Self::reserve) and [`try_submit`](Self::try_submit) wait or
    /// refuse before there is more.
    ///
    /// A processor that awaits a job of its own micro-batcher may wait for itself:
    /// its batch keeps its place in flight meanwhile.
    ///
    /// Never fails by itself: a job that is not accepted resolves its handle as
    /// [`JobError::Closed`] or [`JobError::TooHeavy`], and as
    /// [`JobError::Panicked`] where the weight function panics.
    pub fn submit(&self, job: J) -> JobHandle<R> {
        let (job, receipt) = match self.owner.weigh(&job) {
            Ok(weight) => self.owner.pending(job, weight),
            Err(error) => return self.owner.refuse(job, error),
        };
        match self.owner.intake.push(job) {
            Ok(None) => receipt.accepted_by(&self.owner.intake),
            Ok(Some(ticket)) => receipt.waiting(self.owner.intake.clone(), ticket),
            Err(Closed) => receipt.refused(JobError::Closed),
        }
    }

    /// Submits a job if the queue has room for it now.
    ///
    /// # Errors
    ///
    /// [`TrySubmitError`] says why not, and gives the job back.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch::{MicroBatch, TrySubmitError};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .queue_capacity(1)
    ///     .build()?;
    /// let _first = echo.try_submit(1)?;
    /// let refused = echo.try_submit(2).expect_err("the queue holds one job");
    /// assert_eq!(refused, TrySubmitError::Full(2));
    /// assert_eq!(refused.into_job(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_submit(&self, job: J) -> Result<JobHandle<R>, TrySubmitError<J>> {
        let (job, receipt) = match self.owner.weigh(&job) {
            Ok(weight) => self.owner.pending(job, weight),
            Err(JobError::TooHeavy { .. }) => return Err(TrySubmitError::TooHeavy(job)),
            Err(error) => return Ok(self.owner.refuse(job, error)),
        };
        match self.owner.intake.try_push(job) {
            Ok(()) => Ok(receipt.accepted_by(&self.owner.intake)),
            Err((Refusal::Full, job)) => Err(TrySubmitError::Full(job.into_job())),
            Err((Refusal::Closed, job)) => Err(TrySubmitError::Closed(job.into_job())),
        }
    }

    /// Waits for room in the queue and reserves it for one job, first come
    /// first served.
    ///
    /// Whoever has polled it stands in line, and in the end holds room, until the
    /// future is polled again or dropped. A task that stops polling one, in a
    /// `select!` that it has left for something else, stands in its own way, too.
    ///
    /// # Errors
    ///
    /// [`Closed`] where no more jobs are taken.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in line.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let permit = echo.reserve().await?; // nothing is read before there is room
    /// let job = 7;
    /// assert_eq!(permit.submit(job).await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn reserve(&self) -> Result<Permit<'_, J, R>, Closed> {
        let mut claim = self.claim();
        claim.granted().await?;
        Ok(Permit {
            micro_batch: self,
            claim,
        })
    }

    /// Submits all jobs, waiting for room for each, and returns their results
    /// in the same order.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the job that waits for room and submits
    /// none of those behind it; of those accepted the handles are dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), JobError> {
    /// # let double = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u64>| async move { Ok::<_, String>(jobs.iter().map(|job| job * 2).collect()) },
    /// # );
    /// let results = double.submit_all(1..=3).await;
    /// let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(results, [2, 4, 6]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit_all(&self, jobs: impl IntoIterator<Item = J>) -> Vec<Result<R, JobError>> {
        let mut handles = Vec::new();
        for job in jobs {
            let mut handle = self.submit(job);
            // A refusal is the handle's result, too.
            let _ = handle.accepted().await;
            handles.push(handle);
        }
        let mut results = Vec::with_capacity(handles.len());
        for handle in handles {
            results.push(handle.await);
        }
        results
    }

    /// Flushes everything accepted so far without waiting for size or interval,
    /// and waits until it is processed. Limits hold, and so does the order.
    ///
    /// The request is made when the future is first polled. Before `start` it
    /// waits for the start; after the end it returns at once. A processor that
    /// awaits this waits for itself.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the flush goes on by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let echo = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let handle = echo.submit(1);
    /// echo.flush().await;
    /// assert!(handle.is_finished());
    /// # }
    /// ```
    pub fn flush(&self) -> impl Future<Output = ()> + Send + 'static + use<J, R> {
        let intake = Arc::clone(&self.owner.intake);
        async move {
            let (done, receipt): (Reply<()>, Receipt<()>) = Reply::new();
            intake.flush(done);
            // Whether it was flushed or will never be: there is no more to wait
            // for.
            let _ = receipt.accepted().await;
        }
    }

    /// Returns whether the loop has been started and has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(*self.owner.stage(), Stage::Started) && !self.owner.intake.is_over()
    }

    /// Returns whether jobs are no longer accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.owner.intake.is_closed()
    }

    /// Returns counters and gauges of this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.owner.intake.stats()
    }
}

impl<J, R> MicroBatch<J, R> {
    fn of(owner: Arc<Owner<J, R>>) -> Self {
        Self {
            #[cfg(feature = "tower")]
            place: None,
            owner,
        }
    }

    /// Returns a claim to room for one job, not yet in line.
    pub(crate) fn claim(&self) -> Claim<J, R> {
        Claim::new(&self.owner.intake)
    }

    /// Flushes if so many accepted jobs, or more, wait for their batch.
    pub(crate) fn flush_if_all_wait(&self, jobs: usize) -> bool {
        self.owner.intake.flush_if_all_wait(jobs)
    }
}

impl<J: Send + 'static, R: Send + 'static> MicroBatch<J, R> {
    /// Submits a job into the room that was granted to the claim.
    pub(crate) fn submit_into(&self, claim: Claim<J, R>, job: J) -> JobHandle<R> {
        let (job, receipt) = match self.owner.weigh(&job) {
            Ok(weight) => self.owner.pending(job, weight),
            Err(error) => return self.owner.refuse(job, error),
        };
        match claim.redeem(job) {
            Ok(()) => receipt.accepted_by(&self.owner.intake),
            Err(Closed) => receipt.refused(JobError::Closed),
        }
    }
}

impl<J, R> Owner<J, R> {
    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a loop that was never started, which answers its jobs.
    fn skip(&self) {
        let mut stage = self.stage();
        if matches!(*stage, Stage::Idle(_)) {
            let idle = mem::replace(&mut *stage, Stage::Skipped);
            drop(stage);
            drop(idle);
        }
    }

    /// Drops a job that cannot be accepted.
    fn refuse(&self, job: J, error: JobError) -> JobHandle<R> {
        discard([job], self.intake.name());
        JobHandle::refused(error)
    }

    #[inline]
    fn pending(&self, job: J, weight: usize) -> (PendingJob<J, R>, Receipt<R>) {
        if self.intake.cancels_on_drop() {
            return PendingJob::cancellable(job, weight);
        }
        PendingJob::new(job, weight)
    }

    /// Returns the job's weight, or why it cannot be accepted.
    #[inline]
    fn weigh(&self, job: &J) -> Result<usize, JobError> {
        match &self.weigher {
            None => Ok(0),
            Some(weigher) => self.weigh_by(weigher, job),
        }
    }

    #[inline(never)]
    fn weigh_by(&self, weigher: &Weigher<J>, job: &J) -> Result<usize, JobError> {
        let weight = guard(|| weigher(job)).map_err(JobError::Panicked)?;
        let limit = self.max_batch_weight;
        if weight > limit {
            return Err(JobError::TooHeavy { weight, limit });
        }
        Ok(weight)
    }
}

impl<J, R> Clone for MicroBatch<J, R> {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.owner))
    }
}

impl<J, R> fmt::Debug for MicroBatch<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MicroBatch")
            .field("stats", &self.owner.intake.stats())
            .field("closed", &self.owner.intake.is_closed())
            .finish_non_exhaustive()
    }
}

/// Room in the queue for one job, from [`MicroBatch::reserve`].
///
/// Dropping it gives the room to the next in line. It does not hold up a stop.
#[must_use = "a permit holds room in the queue until it is used or dropped"]
pub struct Permit<'a, J, R> {
    micro_batch: &'a MicroBatch<J, R>,
    claim: Claim<J, R>,
}

impl<J: Send + 'static, R: Send + 'static> Permit<'_, J, R> {
    /// Submits a job into the reserved room, at once.
    ///
    /// The handle resolves as [`JobError::Closed`] where the micro-batcher was
    /// stopped after the reservation, and as [`JobError::TooHeavy`] for a job
    /// that no batch can hold.
    pub fn submit(self, job: J) -> JobHandle<R> {
        self.micro_batch.submit_into(self.claim, job)
    }
}

impl<J, R> fmt::Debug for Permit<'_, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
