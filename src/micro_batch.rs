//! The micro-batcher as users hold it: start, submit, flush, stop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{fmt, mem};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::builder::MicroBatchBuilder;
use crate::engine::panics::{Shielded, catch, discard};
use crate::engine::queue::{Queue, Refusal, Reservation, WaiterId};
use crate::engine::reply::{self, ReplySender, send_all};
use crate::engine::withdrawal::Withdrawal;
use crate::engine::worker::Worker;
use crate::error::{Closed, JobError, ShutdownTimeout, StartError, TrySubmitError};
use crate::handle::{HandleParts, JobHandle};
use crate::job::PendingJob;
use crate::processor::BatchProcessor;
use crate::report::Stats;
use crate::storage::BatchStorage;

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
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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
    /// What tower's `poll_ready` has reserved, for this clone alone. Boxed, so that a
    /// clone is two words whatever a job is. Before `shared`, so that the last clone
    /// frees the room before it closes the queue.
    #[cfg(feature = "tower")]
    pub(crate) reservation: Option<Box<Reservation<J, R>>>,
    shared: Arc<Shared<J, R>>,
}

/// What all clones share. Its drop closes the queue, which stops the worker.
struct Shared<J, R> {
    queue: Arc<Queue<J, R>>,
    weigher: Option<Shielded<Weigher<J>>>,
    lifecycle: Mutex<Lifecycle>,
}

pub(crate) type Weigher<J> = Box<dyn Fn(&J) -> usize + Send + Sync>;

/// Runs the worker, whatever the types of its processor and storage.
type RunWorker =
    Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, Result<(), ShutdownTimeout>> + Send>;

enum Lifecycle {
    /// Not started yet.
    Idle(RunWorker),
    Started,
    /// Stopped before it was started.
    Skipped,
}

impl<J, R> Drop for Shared<J, R> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<J: Send + 'static, R: Send + 'static> MicroBatch<J, R> {
    /// Makes a micro-batcher with the default options. Nothing is processed
    /// until [`start`](Self::start).
    ///
    /// Jobs may be submitted before; they wait in the queue.
    ///
    /// # Examples
    ///
    /// A program may make it before there is a runtime:
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lengths = MicroBatch::new(|words: Vec<&'static str>| async move {
    ///     Ok::<_, String>(words.iter().map(|word| word.len()).collect())
    /// });
    /// let early = lengths.submit("early");
    ///
    /// let runtime = tokio::runtime::Builder::new_current_thread()
    ///     .enable_all()
    /// #     .start_paused(true)
    ///     .build()?;
    /// runtime.spawn(lengths.start(CancellationToken::new()));
    /// assert_eq!(runtime.block_on(early)?, 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new<P: BatchProcessor<J, R>>(processor: P) -> Self {
        Self::builder(processor).assemble()
    }

    /// Makes a micro-batcher with the default options and starts it on the
    /// current runtime. It stops when `cancel` is cancelled.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cancel = CancellationToken::new();
    /// let echo = MicroBatch::new_running(
    ///     cancel.clone(),
    ///     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// );
    /// assert_eq!(echo.submit(1).await?, 1);
    ///
    /// cancel.cancel();
    /// echo.shutdown().await?; // waits for the end
    /// assert!(matches!(echo.submit(2).await, Err(JobError::Closed)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_running<P: BatchProcessor<J, R>>(cancel: CancellationToken, processor: P) -> Self {
        let micro_batch = Self::new(processor);
        micro_batch.spawn(cancel);
        micro_batch
    }

    /// Returns a builder with the default options.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
    ///     .max_batch_size(500)
    ///     .interval(Duration::from_millis(10))
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(rows.submit(1).await?, 1);
    /// assert_eq!(rows.settings().max_batch_size, 500);
    /// assert_eq!(rows.settings().max_in_flight, 1); // the default
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<P: BatchProcessor<J, R>>(processor: P) -> MicroBatchBuilder<J, R, P> {
        MicroBatchBuilder::new(processor)
    }

    pub(crate) fn new_idle<P, S>(
        queue: Arc<Queue<J, R>>,
        weigher: Option<Shielded<Weigher<J>>>,
        worker: Worker<J, R, P, S>,
    ) -> Self
    where
        P: BatchProcessor<J, R>,
        S: BatchStorage<J, R>,
    {
        let run: RunWorker = Box::new(|cancel| Box::pin(worker.run(cancel)));
        Self::of(Arc::new(Shared {
            queue,
            weigher,
            lifecycle: Mutex::new(Lifecycle::Idle(run)),
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
    /// The call itself takes the loop, so a second call fails even before the first
    /// future is polled; the future must then be awaited or spawned. The processor is
    /// called in other tasks of the same runtime.
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
    /// Dropping the future ends the loop without draining: the queue closes,
    /// batches in flight are aborted, and every job that was accepted and has
    /// no result resolves as [`JobError::Abandoned`].
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch::{CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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
        let mut lifecycle = self.shared.lifecycle();
        let before = mem::replace(&mut *lifecycle, Lifecycle::Started);
        if matches!(before, Lifecycle::Skipped) {
            *lifecycle = Lifecycle::Skipped;
        }
        drop(lifecycle);
        async move {
            match before {
                Lifecycle::Idle(run) => Ok(run(cancel).await?),
                Lifecycle::Started => Err(StartError::AlreadyStarted),
                Lifecycle::Skipped => Ok(()),
            }
        }
    }

    /// Stops: closes the queue, drains what was accepted without waiting for
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
    ///     .interval(Duration::MAX)
    ///     .build_running(CancellationToken::new())?;
    /// let accepted = rows.submit(1);
    /// rows.shutdown().await?;
    /// assert_eq!(accepted.await?, 1); // processed, without waiting for the interval
    /// assert!(matches!(rows.submit(2).await, Err(JobError::Closed)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown(
        &self,
    ) -> impl Future<Output = Result<(), ShutdownTimeout>> + Send + 'static + use<J, R> {
        let shared = Arc::clone(&self.shared);
        async move {
            shared.queue.close();
            shared.skip();
            shared.queue.wait_for_end().await
        }
    }

    /// Submits a job, and returns a handle that resolves to its result.
    ///
    /// Accepts the job at once if the queue has room. Otherwise the job waits for room
    /// from now on, first come, first served, whether the handle is polled or not;
    /// dropping the handle withdraws the job then. Any number of jobs may wait. To
    /// bound them, use [`JobHandle::accepted`] or [`reserve`](Self::reserve), which
    /// wait, or [`try_submit`](Self::try_submit), which refuses.
    ///
    /// A processor that awaits a job of its own micro-batcher may wait for itself: its
    /// batch stays in flight meanwhile.
    ///
    /// Never fails by itself: a job that is not accepted resolves its handle as
    /// [`JobError::Closed`] or [`JobError::TooHeavy`], and as
    /// [`JobError::Panicked`] where the weight function panics.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let square = |jobs: Vec<u64>| async move {
    /// #     Ok::<_, String>(jobs.iter().map(|job| job * job).collect())
    /// # };
    /// # let squares = MicroBatch::new_running(CancellationToken::new(), square);
    /// let handles = [2, 3, 4].map(|job| squares.submit(job)); // one batch of three
    /// let mut sum = 0;
    /// for handle in handles {
    ///     sum += handle.await?;
    /// }
    /// assert_eq!(sum, 4 + 9 + 16);
    /// assert_eq!(squares.stats().batches, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(&self, job: J) -> JobHandle<R> {
        let (job, handle) = match self.shared.weigh(&job) {
            Ok(weight) => self.shared.pending(job, weight),
            Err(error) => return self.shared.refuse(job, error),
        };
        match self.shared.queue.push(job) {
            Ok(None) => handle.accepted(&self.shared.queue),
            Ok(Some(waiter)) => handle.waiting(self.shared.queue.clone(), waiter),
            Err(Closed) => JobHandle::refused(JobError::Closed),
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
        let (job, handle) = match self.shared.weigh(&job) {
            Ok(weight) => self.shared.pending(job, weight),
            Err(error @ JobError::TooHeavy { .. }) => {
                self.shared.queue.count_refused(&error);
                return Err(TrySubmitError::TooHeavy(job));
            }
            Err(error) => return Ok(self.shared.refuse(job, error)),
        };
        match self.shared.queue.try_push(job) {
            Ok(()) => Ok(handle.accepted(&self.shared.queue)),
            Err((Refusal::Full, job)) => Err(TrySubmitError::Full(job.into_job())),
            Err((Refusal::Closed, job)) => Err(TrySubmitError::Closed(job.into_job())),
        }
    }

    /// Waits for room in the queue and reserves it for one job, first come
    /// first served.
    ///
    /// Once polled, the future keeps its position, and later the room, until it is
    /// polled again or dropped. So a task that polls one, leaves it unpolled in a
    /// `select!` loop and submits otherwise may wait for itself.
    ///
    /// # Errors
    ///
    /// [`Closed`] where no more jobs are taken.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the position among those that wait, or the room.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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
        let mut reservation = self.reservation();
        reservation.ready().await?;
        Ok(Permit {
            micro_batch: self,
            reservation,
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
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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
        let queue = Arc::clone(&self.shared.queue);
        async move {
            let (sender, receiver) = reply::channel();
            queue.flush(sender);
            // An error means that there is nothing left to flush.
            let _ = receiver.await;
        }
    }

    /// Returns whether the loop has been started and has not ended.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = MicroBatch::new(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) });
    /// assert!(!echo.is_running());
    /// let run = tokio::spawn(echo.start(CancellationToken::new()));
    /// assert!(echo.is_running());
    /// echo.shutdown().await?;
    /// assert!(!echo.is_running());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(*self.shared.lifecycle(), Lifecycle::Started) && !self.shared.queue.has_ended()
    }

    /// Returns whether jobs are no longer accepted.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let slow = MicroBatch::new_running(CancellationToken::new(), |jobs: Vec<u8>| async move {
    /// #     tokio::time::sleep(Duration::from_secs(1)).await;
    /// #     Ok::<_, String>(jobs)
    /// # });
    /// let ready = || !slow.is_closed(); // what a load balancer asks
    /// assert!(ready());
    /// let handle = slow.submit(1);
    /// let stopping = tokio::spawn(slow.shutdown());
    /// assert_eq!(handle.await?, 1); // drained
    /// assert!(!ready());
    /// # stopping.await??;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.queue.is_closed()
    }

    /// Returns counters and gauges of this moment.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let rows = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |rows: Vec<u8>| async move { Ok::<_, String>(rows) },
    /// # );
    /// let (first, second) = (rows.submit(1), rows.submit(2));
    /// tokio::time::sleep(Duration::from_millis(1)).await; // the loop takes them up
    /// let now = rows.stats();
    /// assert_eq!((now.accepted, now.pending, now.batches), (2, 2, 0)); // no third yet
    ///
    /// tokio::try_join!(first, second, rows.submit(3))?;
    /// let now = rows.stats();
    /// assert_eq!((now.completed, now.pending, now.batches), (3, 0, 1));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.queue.stats()
    }
}

impl<J, R> MicroBatch<J, R> {
    fn of(shared: Arc<Shared<J, R>>) -> Self {
        Self {
            #[cfg(feature = "tower")]
            reservation: None,
            shared,
        }
    }

    /// Returns a reservation of room for one job, which waits from its first poll on.
    pub(crate) fn reservation(&self) -> Reservation<J, R> {
        Reservation::new(&self.shared.queue)
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<J, R>> {
        &self.shared.queue
    }

    /// Returns a handle that keeps nothing running: the stop by the last `MicroBatch`
    /// does not wait for it.
    ///
    /// For processors that submit to their own micro-batcher, which would otherwise keep
    /// it alive, and with it themselves.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # let echo = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let weak = echo.downgrade();
    /// assert!(weak.upgrade().is_some());
    /// drop(echo);
    /// assert!(weak.upgrade().is_none());
    /// # }
    /// ```
    #[must_use]
    pub fn downgrade(&self) -> WeakMicroBatch<J, R> {
        WeakMicroBatch {
            shared: Arc::downgrade(&self.shared),
        }
    }

    /// Requests a flush if at least this many accepted jobs wait for their batch.
    pub(crate) fn flush_if_all_wait(&self, jobs: usize) -> bool {
        self.shared.queue.flush_if_all_wait(jobs)
    }
}

impl<J: Send + 'static, R: Send + 'static> MicroBatch<J, R> {
    /// Submits a job into reserved room.
    pub(crate) fn submit_into(&self, reservation: Reservation<J, R>, job: J) -> JobHandle<R> {
        let (job, handle) = match self.shared.weigh(&job) {
            Ok(weight) => self.shared.pending(job, weight),
            Err(error) => return self.shared.refuse(job, error),
        };
        match reservation.push(job) {
            Ok(()) => handle.accepted(&self.shared.queue),
            Err(Closed) => JobHandle::refused(JobError::Closed),
        }
    }
}

impl<J: Send + 'static, R: Send + 'static> MicroBatch<J, R> {
    /// Submits a job that has room under the limit shared with other micro-batchers.
    /// Returns its id if it waits for room in the queue, and what withdraws it.
    pub(crate) fn submit_with_room(
        &self,
        job: J,
        reply: ReplySender<R>,
    ) -> Result<(Option<WaiterId>, Option<Arc<Withdrawal>>), JobError> {
        let weight = match self.shared.weigh(&job) {
            Ok(weight) => weight,
            Err(error) => {
                self.shared.queue.count_refused(&error);
                send_all([(reply, Err(error.clone()))]);
                discard([job], self.shared.queue.name());
                return Err(error);
            }
        };
        let mut job = PendingJob::with_reply(job, weight, reply);
        let cancels = self.shared.queue.cancels_on_drop();
        let withdrawal = cancels.then(|| job.withdrawable());
        match self.shared.queue.push_with_room(job) {
            Ok(waiter) => Ok((waiter, withdrawal)),
            Err(Closed) => Err(JobError::Closed),
        }
    }
}

impl<J, R> Shared<J, R> {
    fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a worker that was never started, which replies to its jobs.
    fn skip(&self) {
        let mut lifecycle = self.lifecycle();
        if matches!(*lifecycle, Lifecycle::Idle(_)) {
            let idle = mem::replace(&mut *lifecycle, Lifecycle::Skipped);
            drop(lifecycle);
            drop(idle);
        }
    }

    /// Drops a job that cannot be accepted.
    fn refuse(&self, job: J, error: JobError) -> JobHandle<R> {
        self.queue.count_refused(&error);
        discard([job], self.queue.name());
        JobHandle::refused(error)
    }

    #[inline]
    fn pending(&self, job: J, weight: usize) -> (PendingJob<J, R>, HandleParts<R>) {
        let (mut job, reply) = PendingJob::new(job, weight);
        let withdrawal = match self.queue.cancels_on_drop() {
            true => Some(job.withdrawable()),
            false => None,
        };
        (job, HandleParts { reply, withdrawal })
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
        let weight = catch(|| weigher(job)).map_err(JobError::Panicked)?;
        let limit = self.queue.max_batch_weight();
        if weight > limit {
            return Err(JobError::TooHeavy { weight, limit });
        }
        Ok(weight)
    }
}

impl<J, R> Clone for MicroBatch<J, R> {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.shared))
    }
}

impl<J, R> fmt::Debug for MicroBatch<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MicroBatch")
            .field("stats", &self.shared.queue.stats())
            .field("closed", &self.shared.queue.is_closed())
            .finish_non_exhaustive()
    }
}

/// A handle to a [`MicroBatch`] that does not keep it running, from
/// [`MicroBatch::downgrade`].
///
/// # Examples
///
/// A task that looks at a micro-batcher for as long as others use it:
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{CancellationToken, MicroBatch, WeakMicroBatch};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let echo = MicroBatch::new_running(
/// #     CancellationToken::new(),
/// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
/// # );
/// let weak: WeakMicroBatch<u8, u8> = echo.downgrade();
/// let watch = tokio::spawn(async move {
///     let mut completed = Vec::new();
///     while let Some(stats) = weak.upgrade().map(|echo| echo.stats()) {
///         completed.push(stats.completed);
///         tokio::time::sleep(Duration::from_secs(5)).await;
///     }
///     completed
/// });
/// echo.submit(1).await?; // it takes 1 s, the interval
/// echo.submit(2).await?;
/// tokio::time::sleep(Duration::from_secs(5)).await;
/// drop(echo);
/// assert_eq!(watch.await?, [0, 2]);
/// # Ok(())
/// # }
/// ```
pub struct WeakMicroBatch<J, R> {
    shared: Weak<Shared<J, R>>,
}

impl<J, R> WeakMicroBatch<J, R> {
    /// Returns the micro-batcher, or `None` where its last handle was dropped.
    ///
    /// # Examples
    ///
    /// A processor that submits to its own micro-batcher:
    ///
    /// ```
    /// use std::sync::{Arc, OnceLock};
    /// # use microbatch::{CancellationToken, MicroBatch, WeakMicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let own = Arc::new(OnceLock::<WeakMicroBatch<u8, u8>>::new());
    /// let pages = {
    ///     let own = own.clone();
    ///     MicroBatch::new_running(CancellationToken::new(), move |pages: Vec<u8>| {
    ///         for page in pages.iter().filter(|page| **page == 1) {
    ///             if let Some(pages) = own.get().and_then(WeakMicroBatch::upgrade) {
    ///                 drop(pages.submit(page + 1)); // follow the link, without awaiting it
    ///             }
    ///         }
    ///         async move { Ok::<_, String>(pages) }
    ///     })
    /// };
    /// own.get_or_init(|| pages.downgrade());
    /// assert_eq!(pages.submit(1).await?, 1);
    /// pages.flush().await; // page 2
    /// assert_eq!(pages.stats().completed, 2);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn upgrade(&self) -> Option<MicroBatch<J, R>> {
        self.shared.upgrade().map(MicroBatch::of)
    }
}

impl<J, R> Clone for WeakMicroBatch<J, R> {
    fn clone(&self) -> Self {
        Self {
            shared: Weak::clone(&self.shared),
        }
    }
}

impl<J, R> fmt::Debug for WeakMicroBatch<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakMicroBatch").finish_non_exhaustive()
    }
}

/// Room in the queue for one job, from [`MicroBatch::reserve`].
///
/// Dropping it frees the room for the next that waits. A stop does not wait for it.
///
/// # Examples
///
/// ```
/// use microbatch::{MicroBatch, Permit, TrySubmitError};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let echo = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
///     .queue_capacity(1)
///     .build()?;
/// let permit: Permit<'_, u8, u8> = echo.reserve().await?;
/// assert_eq!(echo.try_submit(1).unwrap_err(), TrySubmitError::Full(1));
/// drop(permit);
/// assert!(echo.try_submit(1).is_ok());
/// # Ok(())
/// # }
/// ```
#[must_use = "a permit holds room in the queue until it is used or dropped"]
pub struct Permit<'a, J, R> {
    micro_batch: &'a MicroBatch<J, R>,
    reservation: Reservation<J, R>,
}

impl<J: Send + 'static, R: Send + 'static> Permit<'_, J, R> {
    /// Submits a job into the reserved room, at once.
    ///
    /// The handle resolves as [`JobError::Closed`] where the micro-batcher was
    /// stopped after the reservation, and as [`JobError::TooHeavy`] for a job
    /// that no batch can hold.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let (used, late) = (echo.reserve().await?, echo.reserve().await?);
    /// assert_eq!(used.submit(1).await?, 1);
    /// echo.shutdown().await?; // does not wait for the other permit
    /// assert!(matches!(late.submit(2).await, Err(JobError::Closed)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(self, job: J) -> JobHandle<R> {
        self.micro_batch.submit_into(self.reservation, job)
    }
}

impl<J, R> fmt::Debug for Permit<'_, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
