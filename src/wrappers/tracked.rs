//! Results by the caller's own id.
//!
//! `status_table` holds the status of every job. Inside the micro-batcher a job owns a
//! `StatusGuard`. A batch records the outcomes of its jobs by their guards; the drop of
//! a guard records its job as abandoned. So withdrawals, stops and storages that drop
//! jobs need no code of their own.

mod builder;
mod processor;
mod status_table;

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::engine::panics::discard;
use crate::error::{JobError, ReconfigureError, ShutdownTimeout, StartError, TrySubmitError};
use crate::handle::JobHandle;
use crate::micro_batch::MicroBatch;
use crate::processor::BatchProcessor;
use crate::report::Stats;
use crate::settings::Settings;

pub use builder::{TrackedBuilder, TrackedOptions};
pub use processor::{TrackedJob, Tracking};
use status_table::StatusTable;

/// A micro-batcher whose jobs have ids, by which the status of a job is found from
/// anywhere: for results that are asked for later, and for requests that may be
/// sent twice.
///
/// A finished job is found until its retention ends, by
/// [number](TrackedBuilder::retain_jobs) or by
/// [age](TrackedBuilder::retain_for). That takes memory: a clone of each result is
/// retained, so `R` must be `Clone`; make it an `Arc` if it is large. If the clone
/// panics, [`JobError::Panicked`] is retained instead.
///
/// An id stands for one job for as long as it is known, as an idempotency key
/// does; see [`submit`](Self::submit).
///
/// Cheap to clone. Dropping the last clone stops it as
/// [`shutdown`](Self::shutdown) does, without waiting.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, JobStatus, Tracked};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let squares = Tracked::builder(|jobs: Vec<u64>| async move {
///     Ok::<_, String>(jobs.iter().map(|job| job * job).collect())
/// })
/// .options(|options| options.max_batch_size(100))
/// .retain_jobs(1000)
/// .build_running(CancellationToken::new())?;
///
/// // Accept a request, whose client asks for the result later.
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
    table: Arc<StatusTable<K, R>>,
}

/// The status of a job, from [`Tracked::status`]. It goes forward only.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, JobStatus, Tracked};
///
/// fn answer(status: Option<JobStatus<u32>>) -> String {
///     match status {
///         None => "404 not found".to_string(),
///         Some(JobStatus::Submitted | JobStatus::Processing) => "202 come back".to_string(),
///         Some(JobStatus::Completed(Ok(result))) => format!("200 {result}"),
///         Some(JobStatus::Completed(Err(error))) => format!("500 {error}"),
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let echo = Tracked::new_running(
/// #     CancellationToken::new(),
/// #     |jobs: Vec<u32>| async move { Ok::<_, String>(jobs) },
/// # );
/// assert_eq!(answer(echo.status("order-7")), "404 not found");
/// let handle = echo.submit("order-7", 49);
/// assert_eq!(answer(echo.status("order-7")), "202 come back");
/// handle.await?;
/// assert_eq!(answer(echo.status("order-7")), "200 49");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub enum JobStatus<R> {
    /// It waits: for room, or for its batch.
    Submitted,
    /// It is being processed.
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobStatus, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = Tracked::new(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) });
    /// let early = echo.submit("a", 7);
    /// assert!(matches!(echo.status("a"), Some(JobStatus::Submitted)));
    ///
    /// tokio::spawn(echo.start(CancellationToken::new()));
    /// assert_eq!(early.await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new<P: BatchProcessor<J, R>>(processor: P) -> Self {
        Self::builder(processor).assemble()
    }

    /// Makes a tracked micro-batcher with the default options and starts it on
    /// the current runtime. It stops when `cancel` is cancelled.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobStatus, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cancel = CancellationToken::new();
    /// let echo = Tracked::new_running(
    ///     cancel.clone(),
    ///     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// );
    /// let handle = echo.submit("a", 7);
    /// cancel.cancel(); // drains first
    /// assert_eq!(handle.await?, 7);
    /// assert!(matches!(echo.status("a"), Some(JobStatus::Completed(Ok(7)))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_running<P: BatchProcessor<J, R>>(cancel: CancellationToken, processor: P) -> Self {
        let tracked = Self::new(processor);
        tracked.micro_batch.spawn(cancel);
        tracked
    }

    /// Returns a builder with the default options.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = Tracked::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .retain_jobs(500) // of what is finished
    ///     .options(|options| options.max_batch_size(50))
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(echo.submit("a", 7).await?, 7);
    /// assert_eq!(echo.settings().max_batch_size, 50);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<P: BatchProcessor<J, R>>(processor: P) -> TrackedBuilder<K, J, R, P> {
        TrackedBuilder::new(processor)
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
    /// As for [`MicroBatch::start`]: dropping the future abandons the accepted jobs,
    /// and they are found as abandoned.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, JobStatus, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let hung = Tracked::new(|_: Vec<u8>| std::future::pending::<Result<Vec<u8>, String>>());
    /// let run = tokio::spawn(hung.start(CancellationToken::new()));
    /// hung.submit("a", 7).accepted().await.expect("there is room");
    /// run.abort(); // the loop ends without a drain
    /// assert!(run.await.is_err());
    ///
    /// let Some(JobStatus::Completed(result)) = hung.status("a") else { panic!("it has ended") };
    /// assert!(matches!(result, Err(JobError::Abandoned)));
    /// # }
    /// ```
    pub fn start(
        &self,
        cancel: CancellationToken,
    ) -> impl Future<Output = Result<(), StartError>> + Send + 'static + use<K, J, R> {
        self.micro_batch.start(cancel)
    }

    /// Stops, drains and waits, as [`MicroBatch::shutdown`] does. Finished jobs
    /// are found afterwards, too.
    ///
    /// # Errors
    ///
    /// [`ShutdownTimeout`] says how many jobs were abandoned.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the stop goes on by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobStatus, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// echo.submit("a", 7).accepted().await?;
    /// echo.shutdown().await?;
    /// assert!(matches!(echo.status("a"), Some(JobStatus::Completed(Ok(7)))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown(
        &self,
    ) -> impl Future<Output = Result<(), ShutdownTimeout>> + Send + 'static + use<K, J, R> {
        self.micro_batch.shutdown()
    }

    /// Submits a job under an id, and returns a handle that resolves to its
    /// result.
    ///
    /// If the id is known, because its job has not finished or its result is
    /// retained, this job is dropped instead, whatever it is, and the handle
    /// resolves to that result. That is so for errors, too:
    /// [`forget`](Self::forget) the id to try again.
    ///
    /// If the hash or the comparison of the id panics, the job is dropped and
    /// the handle resolves as [`JobError::Panicked`].
    ///
    /// Otherwise it is as [`MicroBatch::submit`]. A job that is refused at once
    /// leaves no trace. Dropping the handle changes nothing, unless that
    /// withdraws the job: if it still waits for room, or under
    /// [`cancel_on_drop`](crate::MicroBatchBuilder::cancel_on_drop). Other handles
    /// of the same id then resolve as [`JobError::Abandoned`]. They also do so if a
    /// stop refuses a job that waits for room, although its own handle resolves as
    /// [`JobError::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), JobError> {
    /// # let payments = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u32>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let first = payments.submit("key-1", 250);
    /// let again = payments.submit("key-1", 250); // the client sent it twice
    /// assert_eq!((first.await?, again.await?), (250, 250));
    /// assert_eq!(payments.stats().completed, 1); // paid once
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(&self, id: K, job: J) -> JobHandle<R> {
        let (submit_guard, status_guard) = match self.table.begin(id) {
            Ok(guards) => guards,
            Err(handle) => {
                discard([job], None);
                return handle;
            }
        };
        let mut handle = self.micro_batch.submit(TrackedJob::new(status_guard, job));
        submit_guard.end(refusal(&mut handle));
        handle
    }

    /// Submits a job under an id if the queue has room for it now, or the id is
    /// known.
    ///
    /// # Errors
    ///
    /// [`TrySubmitError`] says why not, and gives the job back. The job leaves no
    /// trace; the handles of calls that came with the same id meanwhile resolve as
    /// [`JobError::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{Tracked, TrySubmitError};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = Tracked::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .options(|options| options.queue_capacity(1))
    ///     .build()?;
    /// let _first = echo.try_submit("a", 7)?;
    /// assert!(echo.try_submit("a", 7).is_ok()); // known, so it needs no room
    /// assert_eq!(echo.try_submit("b", 8).unwrap_err(), TrySubmitError::Full(8));
    /// assert!(echo.status("b").is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_submit(&self, id: K, job: J) -> Result<JobHandle<R>, TrySubmitError<J>> {
        let (submit_guard, status_guard) = match self.table.begin(id) {
            Ok(guards) => guards,
            Err(handle) => {
                discard([job], None);
                return Ok(handle);
            }
        };
        match self
            .micro_batch
            .try_submit(TrackedJob::new(status_guard, job))
        {
            Ok(mut handle) => {
                submit_guard.end(refusal(&mut handle));
                Ok(handle)
            }
            Err(refused) => {
                submit_guard.end(Some(JobError::Closed));
                Err(match refused {
                    TrySubmitError::Full(entry) => TrySubmitError::Full(entry.into_job()),
                    TrySubmitError::Closed(entry) => TrySubmitError::Closed(entry.into_job()),
                    TrySubmitError::TooHeavy(entry) => TrySubmitError::TooHeavy(entry.into_job()),
                })
            }
        }
    }

    /// Returns the status of the job of that id; `None` if the id is not known,
    /// or no longer.
    ///
    /// A job is `Completed` before its handles resolve, unless a stop runs out of
    /// time: then it may be so a moment later, but before
    /// [`shutdown`](Self::shutdown) returns.
    ///
    /// A result whose clone panics is returned as [`JobError::Panicked`]. An id
    /// whose hash or comparison panics is not known.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, JobStatus, Tracked};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fail = |_: Vec<u8>| async {
    ///     tokio::time::sleep(Duration::from_secs(1)).await;
    ///     Err("disk full")
    /// };
    /// let failing = Tracked::<String, _, ()>::new_running(CancellationToken::new(), fail);
    /// failing.submit("order-7".to_string(), 7).accepted().await?;
    /// tokio::time::sleep(Duration::from_millis(1500)).await; // past the interval
    /// assert!(matches!(failing.status("order-7"), Some(JobStatus::Processing)));
    ///
    /// failing.flush().await;
    /// let Some(JobStatus::Completed(Err(error))) = failing.status("order-7") else { panic!() };
    /// assert!(matches!(error, JobError::Failed(cause) if cause.to_string() == "disk full"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn status<Q>(&self, id: &Q) -> Option<JobStatus<R>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.table.status(id)
    }

    /// Ends the retention of a finished job, so that its id is free for another
    /// one. Returns whether there was one. Does nothing to a job that has not
    /// finished.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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
        self.table.forget(id)
    }

    /// Flushes everything accepted so far, as [`MicroBatch::flush`] does.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the flush goes on by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobStatus, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// drop(echo.submit("a", 7)); // its result is asked for by id
    /// echo.flush().await;
    /// assert!(matches!(echo.status("a"), Some(JobStatus::Completed(Ok(7)))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) -> impl Future<Output = ()> + Send + 'static + use<K, J, R> {
        self.micro_batch.flush()
    }

    /// Returns the settings that are in force.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::Tracked;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let echo = Tracked::<u8, _, _>::builder(processor)
    ///     .options(|options| options.max_in_flight(4))
    ///     .build()?;
    /// assert_eq!(echo.settings().max_in_flight, 4);
    /// assert_eq!(echo.settings().max_batch_size, 3); // the default
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.micro_batch.settings()
    }

    /// Changes any number of settings at once, as [`MicroBatch::reconfigure`] does.
    ///
    /// # Errors
    ///
    /// As for [`MicroBatch::reconfigure`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # // Each job learns how many jobs its batch holds.
    /// # let sizes = Tracked::new_running(CancellationToken::new(), |jobs: Vec<u8>| async move {
    /// #     Ok::<_, String>(vec![jobs.len(); jobs.len()])
    /// # });
    /// let handles = [1, 2, 3, 4, 5].map(|id| sizes.submit(id, 7));
    /// let now = sizes.reconfigure(|settings| settings.max_batch_size = 5)?;
    /// assert_eq!(now.max_batch_size, 5);
    /// for handle in handles {
    ///     assert_eq!(handle.await?, 5); // one batch, where there were to be two
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn reconfigure(
        &self,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Settings, ReconfigureError> {
        self.micro_batch.reconfigure(change)
    }

    /// Cuts no more batches until [`resume`](Self::resume), as [`MicroBatch::pause`]
    /// does.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobStatus, Tracked};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # let echo = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// echo.pause();
    /// let _handle = echo.submit("a", 7);
    /// tokio::time::sleep(Duration::from_secs(60)).await;
    /// assert!(matches!(echo.status("a"), Some(JobStatus::Submitted)));
    /// # }
    /// ```
    pub fn pause(&self) {
        self.micro_batch.pause();
    }

    /// Ends a pause.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobStatus, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// echo.pause();
    /// echo.submit("a", 7).accepted().await?;
    /// echo.resume();
    /// echo.flush().await; // without `resume` it would wait
    /// assert!(matches!(echo.status("a"), Some(JobStatus::Completed(Ok(7)))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume(&self) {
        self.micro_batch.resume();
    }

    /// Returns whether batches are held back by [`pause`](Self::pause).
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::Tracked;
    /// let echo = Tracked::<u8, _, _>::new(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) });
    /// echo.pause(); // before the start, so that the first batch waits as well
    /// assert!(echo.is_paused());
    /// echo.resume();
    /// assert!(!echo.is_paused());
    /// ```
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.micro_batch.is_paused()
    }

    /// Records the metrics of this moment, as `MicroBatch::record_metrics` does.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::Tracked;
    /// # use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let recorder = DebuggingRecorder::new();
    /// # let exporter = recorder.snapshotter();
    /// # recorder.install()?;
    /// let payments = Tracked::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .options(|options| options.name("payments"))
    ///     .build()?;
    /// let _first = payments.submit("key-1", 250);
    /// let _again = payments.submit("key-1", 250); // the client sent it twice
    ///
    /// payments.record_metrics();
    /// # let metrics = exporter.snapshot().into_vec().into_iter();
    /// # let mut accepted = metrics.filter_map(|(key, _, _, value)| match value {
    /// #     DebugValue::Counter(n) if key.key().name().contains("accepted") => Some(n),
    /// #     _ => None,
    /// # });
    /// # let accepted = accepted.next();
    /// assert_eq!(accepted, Some(1)); // `microbatch_jobs_accepted_total`
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        self.micro_batch.record_metrics();
    }

    /// Returns whether the loop has been started and has not ended.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = Tracked::<u8, _, _>::new(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) });
    /// let run = tokio::spawn(echo.start(CancellationToken::new()));
    /// assert!(echo.is_running());
    /// echo.shutdown().await?;
    /// run.await??;
    /// assert!(!echo.is_running());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.micro_batch.is_running()
    }

    /// Returns whether jobs are no longer accepted.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobStatus, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// echo.submit("a", 7).accepted().await?;
    /// echo.shutdown().await?;
    /// assert!(echo.is_closed());
    /// assert_eq!(echo.submit("a", 7).await?, 7); // known, so it need not be accepted
    /// assert!(echo.submit("b", 8).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.micro_batch.is_closed()
    }

    /// Returns counters and gauges of this moment. Jobs whose id was known are
    /// not counted: they were not submitted.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = Tracked::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let handles = [("a", 7), ("b", 8), ("a", 7)].map(|(id, job)| echo.submit(id, job));
    /// for handle in handles {
    ///     handle.await?;
    /// }
    /// let stats = echo.stats();
    /// assert_eq!((stats.accepted, stats.completed), (2, 2));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.micro_batch.stats()
    }
}

/// Returns why the job of this handle was refused, if it was. The handle has not been
/// polled.
fn refusal<R>(handle: &mut JobHandle<R>) -> Option<JobError> {
    // Not polled if the job waits for room: the poll would store a waker.
    if !handle.is_finished() {
        return None;
    }
    handle.accepted().now_or_never()?.err()
}

impl<K, J, R> Clone for Tracked<K, J, R> {
    fn clone(&self) -> Self {
        Self {
            micro_batch: self.micro_batch.clone(),
            table: Arc::clone(&self.table),
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
