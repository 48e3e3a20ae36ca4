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
/// # #[tokio::main(flavor = "current_thread")]
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
/// # #[tokio::main(flavor = "current_thread")]
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
    pub fn new_running<P>(cancel: CancellationToken, processor: P) -> Self
    where
        P: KeyedProcessor<K, J, R>,
    {
        let (make, limit) = Self::builder(processor).factory();
        Self::run(make, limit, Settings::DEFAULT, false, &cancel)
    }

    /// Returns a builder with the default options.
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
    /// # #[tokio::main(flavor = "current_thread")]
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
    /// # #[tokio::main(flavor = "current_thread")]
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
    pub fn pause(&self) {
        self.key_map.0.set_paused(true);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.key_map.0.set_paused(false);
    }

    /// Returns whether batches are held back by [`pause`](Self::pause).
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.key_map.0.is_paused()
    }

    /// Returns counters and gauges of this moment, summed over all keys that have or had
    /// jobs.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.key_map.0.stats()
    }

    /// Records the metrics of all keys that have jobs, as
    /// `MicroBatch::record_metrics` does.
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        self.key_map.0.record_metrics();
    }

    /// Returns whether jobs are no longer accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.key_map.0.is_closed()
    }

    /// Returns how many keys have jobs now.
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
