//! Batches that hold one key each.
//!
//! Every key that has jobs has a micro-batcher of its own, so what a
//! [`MicroBatch`](crate::MicroBatch) promises holds for each key. `key_map` owns the
//! micro-batchers. `processor` limits how many batches they process at a time, over all
//! keys.

mod builder;
mod key_map;
mod processor;
mod waiting_job;

use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::engine::panics::discard;
use crate::engine::queue::SharedLimit;
use crate::error::{JobError, ReconfigureError, ShutdownTimeout, TrySubmitError};
use crate::handle::JobHandle;
use crate::report::Stats;
use crate::settings::Settings;

pub use builder::{KeyedBuilder, KeyedOptions};
use key_map::{ActiveKey, Factory, KeyMap};
pub use processor::{KeyedJob, PerKey};
use waiting_job::WaitingJob;

/// Groups jobs into batches that hold one key each: a tenant, a table, a shard.
///
/// Each key has a queue, an interval and limits of its own, and jobs of one key
/// are processed in order, as by a [`MicroBatch`](crate::MicroBatch) of its own.
/// Over all keys there is [one limit](KeyedBuilder::max_in_flight_overall) of
/// batches in flight, and under it keys take turns: a key with a million jobs
/// holds another one up by its share of batches, and no more.
///
/// A key costs a loop and some kilobytes while it has jobs, and nothing
/// afterwards.
///
/// Cheap to clone. Dropping the last clone stops all keys as
/// [`shutdown`](Self::shutdown) does, without waiting.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, Keyed};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let rows = Keyed::builder(|table: &'static str, rows: Vec<u64>| async move {
///     Ok::<_, String>(rows.iter().map(|row| format!("{table}/{row} of {}", rows.len())).collect())
/// })
/// .options(|options| options.max_batch_size(2))
/// .build_running(CancellationToken::new())?;
///
/// let (a, b, c) = (rows.submit("users", 1), rows.submit("orders", 7), rows.submit("users", 2));
/// rows.flush().await;
/// assert_eq!(a.await?, "users/1 of 2");
/// assert_eq!(b.await?, "orders/7 of 1");
/// assert_eq!(c.await?, "users/2 of 2");
/// # Ok(())
/// # }
/// ```
pub struct Keyed<K, J, R> {
    key_map: Arc<StopOnDrop<K, J, R>>,
}

/// Shared by all clones of a [`Keyed`]. Its drop stops all keys.
struct StopOnDrop<K, J, R>(Arc<KeyMap<K, KeyedJob<K, J>, R>>);

impl<K, J, R> Drop for StopOnDrop<K, J, R> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Processes a whole batch of jobs that have the same key.
///
/// Every `Fn(K, Vec<J>) -> impl Future<Output = Result<Vec<R>, E>>` is one.
/// Apart from the key it is as a [`BatchProcessor`](crate::BatchProcessor), whose
/// documentation of panics and cancel safety holds here, too.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, Keyed, KeyedProcessor};
///
/// struct Shards;
///
/// impl KeyedProcessor<u8, u64, u64> for Shards {
///     type Error = std::convert::Infallible;
///
///     async fn process(&self, shard: u8, jobs: Vec<u64>) -> Result<Vec<u64>, Self::Error> {
///         Ok(jobs.iter().map(|job| job + u64::from(shard)).collect())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), microbatch::JobError> {
/// let shards = Keyed::new_running(CancellationToken::new(), Shards);
/// assert_eq!(shards.submit(2, 40).await?, 42);
/// # Ok(())
/// # }
/// ```
pub trait KeyedProcessor<K, J, R>: Send + Sync + 'static {
    /// Why a whole batch failed, as for
    /// [`BatchProcessor::Error`](crate::BatchProcessor::Error).
    type Error: Into<Box<dyn Error + Send + Sync>>;

    /// Returns one result per job, in the same order. All jobs have this key.
    ///
    /// # Errors
    ///
    /// As for [`BatchProcessor::process`](crate::BatchProcessor::process).
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch::KeyedProcessor;
    ///
    /// struct Tables;
    ///
    /// impl KeyedProcessor<&'static str, u32, String> for Tables {
    ///     type Error = std::convert::Infallible;
    ///
    ///     async fn process(
    ///         &self,
    ///         table: &'static str,
    ///         ids: Vec<u32>,
    ///     ) -> Result<Vec<String>, Self::Error> {
    ///         // SELECT … FROM table WHERE id = ANY(ids)
    ///         Ok(ids.iter().map(|id| format!("{table}/{id}")).collect())
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let rows = Tables.process("users", vec![7, 8]).await?;
    /// assert_eq!(rows, ["users/7", "users/8"]);
    /// # Ok(())
    /// # }
    /// ```
    fn process(
        &self,
        key: K,
        jobs: Vec<J>,
    ) -> impl Future<Output = Result<Vec<R>, Self::Error>> + Send;
}

impl<K, J, R, E, F, Fut> KeyedProcessor<K, J, R> for F
where
    F: Fn(K, Vec<J>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<R>, E>> + Send,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Error = E;

    fn process(&self, key: K, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, E>> + Send {
        self(key, jobs)
    }
}

impl<K, J, R> Keyed<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// Makes it with the default options, running on the current runtime. It
    /// stops when `cancel` is cancelled.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let greetings = Keyed::new_running(
    ///     CancellationToken::new(),
    ///     |language: &'static str, names: Vec<&'static str>| async move {
    ///         let hello = match language {
    ///             "de" => "Hallo",
    ///             "en" => "Hello",
    ///             _ => return Err(format!("no greeting in {language}")),
    ///         };
    ///         Ok(names.iter().map(|name| format!("{hello} {name}")).collect())
    ///     },
    /// );
    /// assert_eq!(greetings.submit("de", "Ada").await?, "Hallo Ada");
    /// assert!(greetings.submit("tlh", "Ada").await.is_err()); // the batch of that key alone
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_running<P>(cancel: CancellationToken, processor: P) -> Self
    where
        P: KeyedProcessor<K, J, R>,
    {
        let (make, limit) = Self::builder(processor).factory();
        Self::run(make, limit, Settings::DEFAULT, false, &cancel)
    }

    /// Returns a builder with the default options.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .max_in_flight_overall(4) // over all tenants
    ///     .options(|options| options.max_batch_size(50)) // of each tenant
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(tenants.submit(1, 7).await?, 7);
    /// assert_eq!(tenants.settings().max_batch_size, 50);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<P>(processor: P) -> KeyedBuilder<K, J, R, P>
    where
        P: KeyedProcessor<K, J, R>,
    {
        KeyedBuilder::new(processor)
    }

    fn run(
        make: Factory<KeyedJob<K, J>, R>,
        limit: Arc<SharedLimit>,
        settings: Settings,
        weighs: bool,
        cancel: &CancellationToken,
    ) -> Self {
        let key_map = KeyMap::new(make, limit, settings, weighs, cancel);
        let key_map = Arc::new(StopOnDrop(key_map));
        Self { key_map }
    }

    /// Submits a job, and returns a handle that resolves to its result.
    ///
    /// It is as [`MicroBatch::submit`](crate::MicroBatch::submit), with a queue
    /// for each key: a full queue holds up its own key only. Beyond
    /// [`queue_capacity_overall`](KeyedBuilder::queue_capacity_overall) it waits for room
    /// over all keys. If the hash or the
    /// comparison of the key panics, the handle resolves as
    /// [`JobError::Panicked`].
    ///
    /// May be called from anywhere, also outside the runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Each job learns how many jobs its batch holds.
    /// let size = |_shard: u32, jobs: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![jobs.len(); jobs.len()])
    /// };
    /// let sizes = Keyed::new_running(CancellationToken::new(), size);
    /// let shard = |job: u32| job % 2;
    /// let handles = [1, 2, 3].map(|job| sizes.submit(shard(job), job));
    /// let mut results = Vec::new();
    /// for handle in handles {
    ///     results.push(handle.await?);
    /// }
    /// assert_eq!(results, [2, 1, 2]); // one batch of 1 and 3, one of 2
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(&self, key: K, job: J) -> JobHandle<R> {
        let key_map = &self.key_map.0;
        let found = key_map.id(key).and_then(|id| {
            let active = key_map.find(&id)?;
            Ok((id, active))
        });
        match found {
            Ok((_, Some(ActiveKey { micro_batch, guard }))) => {
                micro_batch.submit(KeyedJob::new(job, guard))
            }
            Ok((id, None)) => WaitingJob::submit(key_map, id, job),
            Err(error) => self.refuse(job, error),
        }
    }

    fn refuse(&self, job: J, error: JobError) -> JobHandle<R> {
        self.key_map.0.count_refused();
        discard([job], None);
        JobHandle::refused(error)
    }

    /// Submits a job if the queue of its key has room for it now, and there is room over
    /// all keys.
    ///
    /// # Errors
    ///
    /// [`TrySubmitError`] says why not, and gives the job back.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed, TrySubmitError};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<&'static str>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .options(|options| options.queue_capacity(1))
    ///     .build_running(CancellationToken::new())?;
    /// let one = tenants.try_submit(1, "first")?;
    /// assert_eq!(tenants.try_submit(1, "second").unwrap_err(), TrySubmitError::Full("second"));
    /// let two = tenants.try_submit(2, "third")?; // another tenant, another queue
    /// # tenants.flush().await;
    /// # assert_eq!((one.await?, two.await?), ("first", "third"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_submit(&self, key: K, job: J) -> Result<JobHandle<R>, TrySubmitError<J>> {
        let key_map = &self.key_map.0;
        let active = key_map.id(key).and_then(|id| match key_map.find(&id)? {
            Some(active) => Ok(Some(active)),
            None if key_map.limit().has_room() => key_map.get_or_start(id).map(Some),
            None => Ok(None),
        });
        let ActiveKey { micro_batch, guard } = match active {
            Ok(Some(active)) => active,
            Ok(None) => {
                key_map.count_refused();
                return Err(TrySubmitError::Full(job));
            }
            Err(JobError::Closed) => {
                key_map.count_refused();
                return Err(TrySubmitError::Closed(job));
            }
            Err(error) => return Ok(self.refuse(job, error)),
        };
        micro_batch
            .try_submit(KeyedJob::new(job, guard))
            .map_err(|refused| match refused {
                TrySubmitError::Full(entry) => TrySubmitError::Full(entry.into_job()),
                TrySubmitError::Closed(entry) => TrySubmitError::Closed(entry.into_job()),
                TrySubmitError::TooHeavy(entry) => TrySubmitError::TooHeavy(entry.into_job()),
            })
    }

    /// Flushes everything accepted so far, of all keys, without waiting for
    /// size or interval, and waits until it is processed and its handles have
    /// their results.
    ///
    /// The request is made when the future is first polled. A processor that
    /// awaits this waits for itself.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the flush goes on by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let tenants = Keyed::new_running(
    /// #     CancellationToken::new(),
    /// #     |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let handles = [1, 2, 3].map(|tenant| tenants.submit(tenant, 7));
    /// tenants.flush().await;
    /// assert!(handles.iter().all(|handle| handle.is_finished()));
    /// assert_eq!(tenants.stats().batches, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) -> impl Future<Output = ()> + Send + 'static + use<K, J, R> {
        let key_map = Arc::clone(&self.key_map.0);
        async move { key_map.flush().await }
    }

    /// Stops: refuses jobs, drains those accepted, of all keys, without waiting
    /// for an interval, and waits for the end. There is one deadline for all
    /// keys, the `shutdown_timeout` of their options. May be called any number
    /// of times and from anywhere; all calls wait for the same end.
    ///
    /// A processor that awaits this waits for itself, until the stop runs out
    /// of time.
    ///
    /// # Errors
    ///
    /// [`ShutdownTimeout`] says how many jobs were abandoned, over all keys.
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
    /// # use microbatch::{CancellationToken, Keyed, ShutdownTimeout};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// // The calls for tenant 0 hang.
    /// let call = |tenant: u8, jobs: Vec<u8>| async move {
    ///     if tenant == 0 {
    ///         std::future::pending::<()>().await;
    ///     }
    ///     Ok::<_, String>(jobs)
    /// };
    /// let tenants = Keyed::new_running(CancellationToken::new(), call);
    /// let (hung, other) = (tenants.submit(0, 1), tenants.submit(1, 2));
    /// assert_eq!(tenants.shutdown().await, Err(ShutdownTimeout { abandoned: 1 }));
    /// assert!(hung.await.is_err());
    /// assert!(matches!(other.await, Ok(2)));
    /// # }
    /// ```
    pub fn shutdown(
        &self,
    ) -> impl Future<Output = Result<(), ShutdownTimeout>> + Send + 'static + use<K, J, R> {
        let key_map = Arc::clone(&self.key_map);
        async move {
            key_map.0.close();
            key_map.0.wait_for_end().await
        }
    }

    /// Returns the settings of every key.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .options(|options| options.flush_when_idle(true))
    ///     .build_running(CancellationToken::new())?;
    /// assert!(tenants.settings().flush_when_idle); // of tenants without jobs, too
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.key_map.0.settings()
    }

    /// Changes the settings of all keys, those to come as well, as
    /// [`MicroBatch::reconfigure`](crate::MicroBatch::reconfigure) does.
    ///
    /// # Errors
    ///
    /// As for [`MicroBatch::reconfigure`](crate::MicroBatch::reconfigure).
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::new_running(CancellationToken::new(), processor);
    /// let now = tenants.reconfigure(|settings| settings.max_batch_size = 100)?;
    /// assert_eq!(tenants.settings(), now);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reconfigure(
        &self,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Settings, ReconfigureError> {
        self.key_map.0.reconfigure(change)
    }

    /// Cuts no more batches of any key until [`resume`](Self::resume), as
    /// [`MicroBatch::pause`](crate::MicroBatch::pause) does.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// # let tenants = Keyed::new_running(CancellationToken::new(), processor);
    /// tenants.pause();
    /// let handle = tenants.submit(1, 7); // a tenant that had no job before
    /// tokio::time::sleep(Duration::from_secs(60)).await;
    /// assert!(!handle.is_finished());
    /// assert_eq!(tenants.stats().batches, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause(&self) {
        self.key_map.0.set_paused(true);
    }

    /// Ends a pause.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// # let tenants = Keyed::new_running(CancellationToken::new(), processor);
    /// tenants.pause();
    /// let (one, two) = (tenants.submit(1, 7), tenants.submit(2, 8));
    /// tenants.resume(); // for all keys
    /// assert_eq!((one.await?, two.await?), (7, 8));
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume(&self) {
        self.key_map.0.set_paused(false);
    }

    /// Returns whether batches are held back by [`pause`](Self::pause).
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// # let tenants = Keyed::<u8, u8, u8>::new_running(CancellationToken::new(), processor);
    /// let toggle = || match tenants.is_paused() {
    ///     true => tenants.resume(),
    ///     false => tenants.pause(),
    /// };
    /// toggle();
    /// assert!(tenants.is_paused());
    /// toggle();
    /// assert!(!tenants.is_paused());
    /// # }
    /// ```
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.key_map.0.is_paused()
    }

    /// Returns counters and gauges of this moment, summed over all keys that have or had
    /// jobs.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// # let tenants = Keyed::new_running(CancellationToken::new(), processor);
    /// tokio::try_join!(tenants.submit(1, 7), tenants.submit(1, 8), tenants.submit(2, 9))?;
    /// let stats = tenants.stats();
    /// assert_eq!((stats.completed, stats.batches), (3, 2)); // one batch of each tenant
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.key_map.0.stats()
    }

    /// Records the metrics of all keys that have jobs, as
    /// `MicroBatch::record_metrics` does.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let recorder = DebuggingRecorder::new();
    /// # let exporter = recorder.snapshotter();
    /// # recorder.install()?;
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .options(|options| options.name("tenants"))
    ///     .build_running(CancellationToken::new())?;
    /// let _handles = [tenants.submit(1, 7), tenants.submit(2, 8)];
    ///
    /// tenants.record_metrics();
    /// # let metrics = exporter.snapshot().into_vec().into_iter();
    /// # let mut accepted = metrics.filter_map(|(key, _, _, value)| match value {
    /// #     DebugValue::Counter(n) if key.key().name().contains("accepted") => Some(n),
    /// #     _ => None,
    /// # });
    /// # let accepted = accepted.next();
    /// assert_eq!(accepted, Some(2)); // `microbatch_jobs_accepted_total`, of both tenants
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        self.key_map.0.record_metrics();
    }

    /// Returns whether jobs are no longer accepted.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let cancel = CancellationToken::new();
    /// let tenants = Keyed::<u8, u8, u8>::new_running(cancel.clone(), processor);
    /// assert!(!tenants.is_closed());
    /// cancel.cancel();
    /// assert!(tenants.is_closed());
    /// # }
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.key_map.0.is_closed()
    }

    /// Returns how many keys have jobs now.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// # let tenants = Keyed::new_running(CancellationToken::new(), processor);
    /// let handles = [(1, 7), (1, 8), (2, 9)].map(|(tenant, job)| tenants.submit(tenant, job));
    /// assert_eq!(tenants.live_keys(), 2);
    /// tenants.flush().await;
    /// assert!(handles.iter().all(|handle| handle.is_finished()));
    /// assert_eq!(tenants.live_keys(), 0); // neither has jobs
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn live_keys(&self) -> usize {
        self.key_map.0.live_keys()
    }
}

impl<K, J, R> Clone for Keyed<K, J, R> {
    fn clone(&self) -> Self {
        Self {
            key_map: Arc::clone(&self.key_map),
        }
    }
}

impl<K, J, R> fmt::Debug for Keyed<K, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key_map = &self.key_map.0;
        f.debug_struct("Keyed")
            .field("live_keys", &key_map.live_keys())
            .field("closed", &key_map.is_closed())
            .finish_non_exhaustive()
    }
}
