//! The options, their defaults and their limits.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::engine::batch::{BatchContext, Hook};
use crate::engine::panics::Shielded;
use crate::engine::queue::{Queue, QueueOptions, SharedLimit};
use crate::engine::schedule::Policy;
use crate::engine::worker::Worker;
use crate::error::BuildError;
use crate::micro_batch::{MicroBatch, Weigher};
use crate::processor::BatchProcessor;
use crate::report::BatchReport;
use crate::settings::Settings;
use crate::storage::{BatchStorage, MemoryStorage};

/// Sets the options of a [`MicroBatch`].
///
/// # Default
///
/// | option | default |
/// | --- | --- |
/// | [`max_batch_size`](Self::max_batch_size) | 3 jobs |
/// | [`interval`](Self::interval) | 1 s |
/// | [`queue_capacity`](Self::queue_capacity) | 100 jobs |
/// | [`shutdown_timeout`](Self::shutdown_timeout) | 5 s |
/// | [`max_in_flight`](Self::max_in_flight) | 1 batch |
/// | [`max_batch_weight`](Self::max_batch_weight) | none |
/// | [`flush_when_idle`](Self::flush_when_idle) | false |
/// | [`flush_cost`](Self::flush_cost) | none |
/// | [`cancel_on_drop`](Self::cancel_on_drop) | false |
/// | [`permits`](Self::permits) | none |
/// | [`storage`](Self::storage) | [`MemoryStorage`] |
/// | [`name`](Self::name) | none |
/// | [`on_batch`](Self::on_batch) | none |
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use microbatch::{CancellationToken, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let words = MicroBatch::builder(|words: Vec<&'static str>| async move {
///     Ok::<_, String>(words.iter().map(|word| word.len()).collect())
/// })
/// .max_batch_size(100)
/// .max_batch_weight(64 * 1024, |word| word.len())
/// .interval(Duration::from_millis(5))
/// .name("words")
/// .build_running(CancellationToken::new())?;
///
/// assert_eq!(words.submit("batch").await?, 5);
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until `build` or `build_running`"]
pub struct MicroBatchBuilder<J, R, P, S = MemoryStorage<J, R>> {
    processor: P,
    policy: Policy,
    permits: Vec<Arc<Semaphore>>,
    shared_limit: Option<Arc<SharedLimit>>,
    cancel_on_drop: bool,
    weigher: Option<Weigher<J>>,
    name: Option<Arc<str>>,
    on_batch: Option<Hook>,
    storage: S,
    result: PhantomData<fn() -> R>,
}

impl<J, R, P> MicroBatchBuilder<J, R, P>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
{
    pub(crate) fn new(processor: P) -> Self {
        Self {
            processor,
            policy: Policy {
                settings: Settings::DEFAULT,
                queue_capacity: 100,
                shutdown_timeout: Duration::from_secs(5),
                custom_storage: false,
            },
            permits: Vec::new(),
            shared_limit: None,
            cancel_on_drop: false,
            weigher: None,
            name: None,
            on_batch: None,
            storage: MemoryStorage::new(),
            result: PhantomData,
        }
    }
}

impl<J, R, P, S> MicroBatchBuilder<J, R, P, S>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
    S: BatchStorage<J, R>,
{
    /// Sets how many jobs a batch holds at most; a batch of that size is
    /// flushed at once. A hard limit. Default 3; zero is refused.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Each job learns how many jobs its batch holds.
    /// let sizes = MicroBatch::builder(|jobs: Vec<u8>| async move {
    ///     Ok::<_, String>(vec![jobs.len(); jobs.len()])
    /// })
    /// .max_batch_size(2)
    /// .build_running(CancellationToken::new())?;
    ///
    /// let results = tokio::try_join!(sizes.submit(1), sizes.submit(2), sizes.submit(3))?;
    /// assert_eq!(results, (2, 2, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_batch_size(mut self, jobs: usize) -> Self {
        self.policy.settings.max_batch_size = jobs;
        self
    }

    /// Sets how long the first pending job waits for company at most. Default
    /// 1 s; zero is refused, and [`Duration::MAX`] means for ever.
    ///
    /// The time runs from when the job is accepted, or from the start of the loop,
    /// and so also while `max_in_flight` batches are in flight. Tokio's timer rounds it
    /// up to the next millisecond and may add one, so 200 µs cost a lone caller 1.1 to
    /// 2.2 ms.
    ///
    /// With the feature `fine-timer`, what is due in less than a millisecond,
    /// by this option or by [`flush_cost`](Self::flush_cost), is left to the
    /// timer of `async-io`, which on Linux is exact to some 0.1 ms. It has one
    /// thread for the whole process, started by the first such job and asleep
    /// while nothing is due. Anything later stays with Tokio's timer, and so
    /// does everything on a runtime whose clock is paused or ever was: in
    /// virtual time the feature changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use tokio::time::Instant;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
    ///     .interval(Duration::from_millis(20))
    ///     .build_running(CancellationToken::new())?;
    ///
    /// let start = Instant::now();
    /// assert_eq!(rows.submit(1).await?, 1); // no other job comes
    /// assert!((20..=21).contains(&start.elapsed().as_millis()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn interval(mut self, interval: Duration) -> Self {
        self.policy.settings.interval = interval;
        self
    }

    /// Sets how many jobs may be accepted and not yet taken up by the loop;
    /// beyond it `submit` waits. Default 100; zero is refused. The loop takes
    /// up one full batch and leaves the rest in the queue while the processor
    /// is busy.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::MicroBatch;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
    ///     .queue_capacity(2)
    ///     .build()?; // not started, so nothing leaves the queue
    ///
    /// let _handles = [1, 2, 3].map(|row| rows.submit(row));
    /// let stats = rows.stats();
    /// assert_eq!((stats.queued, stats.waiting), (2, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue_capacity(mut self, jobs: usize) -> Self {
        self.policy.queue_capacity = jobs;
        self
    }

    /// Sets how long a stop may drain before it gives up. Default 5 s; zero is
    /// refused, and [`Duration::MAX`] means for ever.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, MicroBatch, ShutdownTimeout};
    /// # use tokio::time::Instant;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hung = |_: Vec<u8>| std::future::pending::<Result<Vec<u8>, String>>();
    /// let batcher = MicroBatch::builder(hung)
    ///     .shutdown_timeout(Duration::from_secs(2))
    ///     .build_running(CancellationToken::new())?;
    /// let _handle = batcher.submit(1);
    ///
    /// let start = Instant::now();
    /// assert_eq!(batcher.shutdown().await, Err(ShutdownTimeout { abandoned: 1 }));
    /// assert_eq!(start.elapsed().as_secs(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.policy.shutdown_timeout = timeout;
        self
    }

    /// Sets how many batches are processed side by side. Default 1, at which
    /// they run strictly one after the other; zero is refused.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use tokio::time::{Instant, sleep};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let calls = MicroBatch::builder(|jobs: Vec<u8>| async move {
    ///     sleep(Duration::from_secs(1)).await;
    ///     Ok::<_, String>(jobs)
    /// })
    /// .max_batch_size(1)
    /// .max_in_flight(3)
    /// .build_running(CancellationToken::new())?;
    ///
    /// let start = Instant::now();
    /// tokio::try_join!(calls.submit(1), calls.submit(2), calls.submit(3))?;
    /// assert_eq!(start.elapsed().as_secs(), 1); // three batches at the same time
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.policy.settings.max_in_flight = batches;
        self
    }

    /// Limits the summed weight of a batch (bytes, tokens, SQL parameters), a
    /// hard limit, and sets how a job is weighed. Default none; a limit of
    /// zero is refused.
    ///
    /// A job is weighed once, by its caller, when it is submitted. One that
    /// alone weighs more than the limit is refused as
    /// [`JobError::TooHeavy`](crate::JobError::TooHeavy). Jobs of weight zero
    /// are flushed by size and interval.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Each text learns what else is in its batch.
    /// let texts = MicroBatch::builder(|texts: Vec<&'static str>| async move {
    ///     Ok::<_, String>(vec![texts.concat(); texts.len()])
    /// })
    /// .max_batch_weight(8, |text| text.len())
    /// .build_running(CancellationToken::new())?;
    ///
    /// let [a, b, c] = ["four", "five", "six"].map(|text| texts.submit(text));
    /// assert_eq!((a.await?.len(), b.await?.len(), c.await?.len()), (8, 8, 3));
    /// let refused = texts.submit("eleven long").await;
    /// assert!(matches!(refused, Err(JobError::TooHeavy { weight: 11, limit: 8 })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_batch_weight<F>(mut self, limit: usize, weigh: F) -> Self
    where
        F: Fn(&J) -> usize + Send + Sync + 'static,
    {
        self.policy.settings.max_batch_weight = limit;
        self.weigher = Some(Box::new(weigh));
        self
    }

    /// Sets whether to flush at once while no batch is in flight, so that
    /// batches grow only under load. Default false.
    ///
    /// This is the policy of least latency where a flush has no price of its
    /// own (Deb and Serfozo 1973, "Optimal control of batch service queues").
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use tokio::time::{Instant, sleep};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let sizes = MicroBatch::builder(|jobs: Vec<u8>| async move {
    ///     sleep(Duration::from_millis(10)).await;
    ///     Ok::<_, String>(vec![jobs.len(); jobs.len()])
    /// })
    /// .flush_when_idle(true)
    /// .max_batch_size(100)
    /// .build_running(CancellationToken::new())?;
    ///
    /// let start = Instant::now();
    /// let lone = sizes.submit(1);
    /// sleep(Duration::from_millis(5)).await; // its batch is in flight, so these two wait for it
    /// let results = tokio::try_join!(lone, sizes.submit(2), sizes.submit(3))?;
    /// assert_eq!(results, (1, 2, 2));
    /// assert_eq!(start.elapsed().as_millis(), 20); // two batches, and no interval
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush_when_idle(mut self, idle: bool) -> Self {
        self.policy.settings.flush_when_idle = idle;
        self
    }

    /// Sets what a flush costs apart from its jobs, and flushes once the pending
    /// jobs have together waited that long: one job after `cost`, four jobs that
    /// came together after a quarter of it. Size, weight and interval hold as
    /// well. Default none; zero is the same as
    /// [`flush_when_idle(true)`](Self::flush_when_idle).
    ///
    /// For flushes with a price of their own: a paid API call, a commit on a
    /// shared disk, a file in an object store. To measure it, time batches of
    /// one job and of many (`took` in [`BatchReport`]); where the line through
    /// both meets zero jobs is the cost in time. For a price in money, say how
    /// long a job may wait to save one flush.
    ///
    /// No rule that does not know the future comes closer to the best than a
    /// factor of two, which this one keeps (Dooly, Goldman and Scott 2001,
    /// "On-line analysis of the TCP acknowledgment delay problem").
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use tokio::time::Instant;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let orders = MicroBatch::builder(|orders: Vec<u8>| async move { Ok::<_, String>(orders) })
    ///     .flush_cost(Duration::from_millis(40))
    ///     .max_batch_size(100)
    ///     .build_running(CancellationToken::new())?;
    ///
    /// let start = Instant::now();
    /// orders.submit(1).await?;
    /// assert!((40..=41).contains(&start.elapsed().as_millis())); // one job waits 40 ms
    ///
    /// let start = Instant::now();
    /// orders.submit_all([1, 2, 3, 4]).await;
    /// assert!((10..=11).contains(&start.elapsed().as_millis())); // four wait 10 ms each
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush_cost(mut self, cost: Duration) -> Self {
        if cost.is_zero() {
            self.policy.settings.flush_cost = None;
            return self.flush_when_idle(true);
        }
        self.policy.settings.flush_cost = Some(cost);
        self
    }

    /// Sets whether a job whose handle is dropped before its batch is cut is
    /// left out. Default false: it is processed.
    ///
    /// A withdrawn job counts neither towards a batch nor towards `queue_capacity`. It
    /// is dropped at the latest when half of the queued, or half of the pending jobs
    /// are withdrawn. A [`storage`](Self::storage) of your own is then asked for all
    /// its jobs, and the others are appended again in the order in which they were
    /// accepted. Each job costs two more allocations.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .cancel_on_drop(true)
    ///     .build_running(CancellationToken::new())?;
    ///
    /// drop(echo.submit(1)); // its caller has gone
    /// assert_eq!(echo.submit(2).await?, 2);
    /// let stats = echo.stats();
    /// assert_eq!((stats.completed, stats.withdrawn), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel_on_drop(mut self, cancel: bool) -> Self {
        self.cancel_on_drop = cancel;
        self
    }

    /// Has a batch cut only once it holds a permit of this semaphore, which it gives back
    /// when it ends. Default none.
    ///
    /// What comes while it waits joins the batch, up to its limits. So give as many
    /// permits as there are connections, and the batch that waits for one keeps growing.
    /// Several micro-batchers may share a semaphore and so a limit; permits are granted
    /// first come, first served. `max_in_flight` holds as well. A call replaces the
    /// semaphore of an earlier one.
    ///
    /// Where the semaphore is closed, each batch fails when it is due, with
    /// [`JobError::Failed`](crate::JobError::Failed) of a [`tokio::sync::AcquireError`],
    /// and the processor is not called.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use microbatch::{CancellationToken, MicroBatch};
    /// use tokio::sync::Semaphore;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let connections = Arc::new(Semaphore::new(0));
    /// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
    ///     .flush_when_idle(true)
    ///     .permits(connections.clone())
    ///     .build_running(CancellationToken::new())?;
    /// let (first, second) = (rows.submit(1), rows.submit(2));
    /// tokio::task::yield_now().await;
    /// assert_eq!(rows.stats().batches, 0);
    ///
    /// connections.add_permits(1);
    /// assert_eq!((first.await?, second.await?), (1, 2));
    /// assert_eq!(rows.stats().batches, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn permits(mut self, semaphore: Arc<Semaphore>) -> Self {
        self.permits = vec![semaphore];
        self
    }

    /// Shares limits with other micro-batchers: on batches in flight, by a permit after
    /// the user's, and on accepted jobs.
    pub(crate) fn share(mut self, permits: Arc<Semaphore>, limit: Arc<SharedLimit>) -> Self {
        self.permits.push(permits);
        self.shared_limit = Some(limit);
        self
    }

    /// Sets where pending jobs wait. Default [`MemoryStorage`], first in, first
    /// out.
    ///
    /// The loop gives a storage set here up to `queue_capacity` jobs, and at least a
    /// batch, before it leaves the others in the queue.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use microbatch::{CancellationToken, Lanes, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// static BATCHES: AtomicU32 = AtomicU32::new(0);
    /// // Each order learns the number of its batch.
    /// let orders = MicroBatch::builder(|orders: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![BATCHES.fetch_add(1, Ordering::Relaxed); orders.len()])
    /// })
    /// .max_batch_size(1)
    /// .storage(Lanes::new(2, |order: &u32| usize::from(*order < 100))) // large ones first
    /// .build()?;
    ///
    /// let (small, large) = (orders.submit(5), orders.submit(500));
    /// tokio::spawn(orders.start(CancellationToken::new()));
    /// assert_eq!((small.await?, large.await?), (1, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn storage<T: BatchStorage<J, R>>(self, storage: T) -> MicroBatchBuilder<J, R, P, T> {
        MicroBatchBuilder {
            storage,
            processor: self.processor,
            policy: Policy {
                custom_storage: true,
                ..self.policy
            },
            permits: self.permits,
            shared_limit: self.shared_limit,
            cancel_on_drop: self.cancel_on_drop,
            weigher: self.weigher,
            name: self.name,
            on_batch: self.on_batch,
            result: PhantomData,
        }
    }

    /// Sets the `name` field of every span and event, and the label `batcher` of every
    /// metric. Default none; the label is then `default`.
    ///
    /// Each batch is a span at INFO, named `batch`, with the fields `name`, `size`,
    /// `weight`, `reason` and `waited`, within which the processor runs; all that is told
    /// of a batch that goes well is at DEBUG, and of one that fails at ERROR. The span
    /// follows from those that its jobs were submitted in, and they from it, so a layer
    /// that keeps links shows the way from either end: with OpenTelemetry,
    /// `tracing-opentelemetry` 0.33 or later.
    ///
    /// For that, the span of a caller is held open until its batch is cut, or until its
    /// job is withdrawn, even where the caller has gone. A layer that ends a span when it
    /// closes reports it that late, up to an interval later than the caller left it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io;
    /// # use std::sync::{Arc, Mutex};
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use tracing_subscriber::util::SubscriberInitExt;
    /// # #[derive(Clone, Default)]
    /// # struct Log(Arc<Mutex<Vec<u8>>>);
    /// # impl io::Write for Log {
    /// #     fn write(&mut self, text: &[u8]) -> io::Result<usize> {
    /// #         self.0.lock().unwrap().extend_from_slice(text);
    /// #         Ok(text.len())
    /// #     }
    /// #     fn flush(&mut self) -> io::Result<()> {
    /// #         Ok(())
    /// #     }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let log = Log::default();
    /// # let writer = log.clone();
    /// // `log` is a writer in memory.
    /// let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    /// let _guard = subscriber.set_default();
    ///
    /// let rows = MicroBatch::builder(|_: Vec<u8>| async { Err::<Vec<u8>, _>("disk full") })
    ///     .name("rows")
    ///     .build_running(CancellationToken::new())?;
    /// assert!(rows.submit(1).await.is_err()); // logged, within the span of its batch
    /// # let log = String::from_utf8(log.0.lock().unwrap().clone())?;
    /// assert!(log.contains(r#"batch{name="rows" size=1"#), "{log}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(Arc::from(name.into()));
        self
    }

    /// Sets what is called once per finished batch, before its callers get
    /// their results. Default none.
    ///
    /// It runs in the batch's task, so it should be quick. Its panic is logged
    /// and changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, FlushReason, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
    /// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
    ///     .on_batch(move |batch| {
    ///         let _ = sender.send((batch.size, batch.reason, batch.error.is_some()));
    ///     })
    ///     .build_running(CancellationToken::new())?;
    ///
    /// rows.submit_all([1, 2, 3]).await;
    /// assert_eq!(reports.recv().await, Some((3, FlushReason::Size, false)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_batch<F>(mut self, hook: F) -> Self
    where
        F: Fn(&BatchReport<'_>) + Send + Sync + 'static,
    {
        self.on_batch = Some(Box::new(hook));
        self
    }

    /// Builds the micro-batcher. Nothing is processed until
    /// [`start`](MicroBatch::start).
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the first option whose value means nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{BuildError, MicroBatch};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let refused = MicroBatch::builder(echo).max_in_flight(0).build();
    /// assert_eq!(refused.unwrap_err(), BuildError::Zero("max_in_flight"));
    ///
    /// let built = MicroBatch::builder(echo).max_in_flight(2).build()?;
    /// assert!(!built.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn build(self) -> Result<MicroBatch<J, R>, BuildError> {
        self.validate()?;
        Ok(self.assemble())
    }

    /// Builds the micro-batcher and starts it on the current runtime.
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build).
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cancel = CancellationToken::new();
    /// let echo = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .flush_when_idle(true)
    ///     .build_running(cancel.child_token())?;
    /// assert!(echo.is_running());
    /// assert_eq!(echo.submit(1).await?, 1);
    ///
    /// cancel.cancel(); // stops all that have a token of this one
    /// echo.shutdown().await?; // waits for the end
    /// assert!(!echo.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_running(self, cancel: CancellationToken) -> Result<MicroBatch<J, R>, BuildError> {
        let micro_batch = self.build()?;
        micro_batch.spawn(cancel);
        Ok(micro_batch)
    }

    fn validate(&self) -> Result<(), BuildError> {
        let policy = &self.policy;
        let [size, interval, in_flight, weight] = policy.settings.zeros();
        let options = [
            size,
            interval,
            ("queue_capacity", policy.queue_capacity == 0),
            ("shutdown_timeout", policy.shutdown_timeout.is_zero()),
            in_flight,
            weight,
        ];
        match options.into_iter().find(|(_, zero)| *zero) {
            Some((option, _)) => Err(BuildError::Zero(option)),
            None => Ok(()),
        }
    }

    /// Puts the parts together, whose values are valid.
    pub(crate) fn assemble(self) -> MicroBatch<J, R> {
        let policy = self.policy;
        let options = QueueOptions {
            name: self.name,
            capacity: policy.queue_capacity,
            cancel_on_drop: self.cancel_on_drop,
            custom_storage: policy.custom_storage,
            weighs: self.weigher.is_some(),
        };
        let queue = Queue::new(options, policy.settings).under(self.shared_limit);
        // The limits are known before there is a batch.
        #[cfg(feature = "metrics")]
        queue.record_metrics();
        let context = BatchContext {
            processor: Shielded::new(self.processor),
            queue: Arc::clone(&queue),
            on_batch: self.on_batch.map(Shielded::new),
        };
        let worker = Worker::new(context, policy, self.permits, self.storage);
        let weigher = self.weigher.map(Shielded::new);
        MicroBatch::new_idle(queue, weigher, worker)
    }
}

impl<J, R, P, S> fmt::Debug for MicroBatchBuilder<J, R, P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MicroBatchBuilder")
            .field("policy", &self.policy)
            .field("cancel_on_drop", &self.cancel_on_drop)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
