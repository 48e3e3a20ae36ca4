//! The options of a [`Keyed`].

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::key_map::Factory;
use super::processor::{KeyedJob, PerKey};
use super::{Keyed, KeyedProcessor};
use crate::builder::MicroBatchBuilder;
use crate::engine::panics::Shielded;
use crate::engine::queue::SharedLimit;
use crate::error::BuildError;
use crate::micro_batch::MicroBatch;
use crate::storage::BatchStorage;

/// Sets the options of a [`Keyed`].
///
/// # Default
///
/// | option | default |
/// | --- | --- |
/// | [`max_in_flight_overall`](Self::max_in_flight_overall) | 10 batches |
/// | [`queue_capacity_overall`](Self::queue_capacity_overall) | 10 000 jobs |
/// | [`options`](Self::options) | those of [`MicroBatchBuilder`], for each key |
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{BuildError, CancellationToken, Keyed};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let processor = |table: &'static str, rows: Vec<u64>| async move {
///     Ok::<_, String>(vec![format!("{table}: {} rows", rows.len()); rows.len()])
/// };
/// let tables = Keyed::builder(processor)
///     .max_in_flight_overall(8) // as many as there are connections
///     .queue_capacity_overall(50_000)
///     .options(|options| options.max_batch_size(1000).interval(Duration::from_millis(5)))
///     .build_running(CancellationToken::new())?;
/// assert_eq!(tables.submit("users", 7).await?, "users: 1 rows");
///
/// let refused = Keyed::builder(processor)
///     .options(|options| options.max_batch_size(0)) // checked before there is a key
///     .build_running(CancellationToken::new());
/// assert_eq!(refused.unwrap_err(), BuildError::Zero("max_batch_size"));
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until `build_running`"]
pub struct KeyedBuilder<K, J, R, P> {
    processor: P,
    max_in_flight_overall: usize,
    queue_capacity_overall: usize,
    build: BuildPerKey<K, J, R, P>,
}

/// The options of the micro-batcher of one key of a [`Keyed`].
///
/// # Examples
///
/// Options in a function of their own:
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{CancellationToken, Keyed, KeyedOptions, KeyedProcessor};
///
/// fn patient<P>(options: KeyedOptions<u8, u64, u64, P>) -> KeyedOptions<u8, u64, u64, P>
/// where
///     P: KeyedProcessor<u8, u64, u64>,
/// {
///     options.interval(Duration::from_secs(30)).max_batch_size(500)
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let processor = |_tenant: u8, jobs: Vec<u64>| async move { Ok::<_, String>(jobs) };
/// let tenants = Keyed::builder(processor)
///     .options(patient)
///     .build_running(CancellationToken::new())?;
/// assert_eq!(tenants.settings().max_batch_size, 500);
/// # Ok(())
/// # }
/// ```
pub type KeyedOptions<K, J, R, P> = MicroBatchBuilder<KeyedJob<K, J>, R, PerKey<P>>;

/// Sets the options of the micro-batcher of one key, and builds it.
type BuildPerKey<K, J, R, P> = Box<
    dyn Fn(
            KeyedOptions<K, J, R, P>,
            Arc<Semaphore>,
            Arc<SharedLimit>,
        ) -> Result<MicroBatch<KeyedJob<K, J>, R>, BuildError>
        + Send
        + Sync,
>;

impl<K, J, R, P> KeyedBuilder<K, J, R, P>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
    P: KeyedProcessor<K, J, R>,
{
    pub(super) fn new(processor: P) -> Self {
        Self {
            processor,
            max_in_flight_overall: 10,
            queue_capacity_overall: 10_000,
            build: Box::new(|options, permits, limit| options.share(permits, limit).build()),
        }
    }

    /// Sets the options that every key has. A second call replaces the first.
    ///
    /// All limits hold for each key: `max_in_flight`, whose default is 1, is
    /// how many batches of one key are processed side by side, and `storage` is
    /// made anew for each. `set` is called once by
    /// [`build_running`](Self::build_running), which returns its errors, and
    /// again whenever a key without jobs gets one. If the options are wrong or `set`
    /// panics only then, the job is refused as
    /// [`JobError::Failed`](crate::JobError::Failed) or
    /// [`JobError::Panicked`](crate::JobError::Panicked).
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<&'static str>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .max_in_flight_overall(4)
    ///     .options(|options| {
    ///         options
    ///             .flush_when_idle(true)
    ///             .max_batch_weight(64 * 1024, |entry| entry.job().len())
    ///     })
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(tenants.submit(1, "one").await?, "one");
    /// # Ok(())
    /// # }
    /// ```
    pub fn options<F, S>(mut self, set: F) -> Self
    where
        F: Fn(KeyedOptions<K, J, R, P>) -> MicroBatchBuilder<KeyedJob<K, J>, R, PerKey<P>, S>
            + Send
            + Sync
            + 'static,
        S: BatchStorage<KeyedJob<K, J>, R>,
    {
        self.build =
            Box::new(move |options, permits, limit| set(options).share(permits, limit).build());
        self
    }

    /// Sets how many batches are processed side by side, over all keys. Default
    /// 10; zero is refused.
    ///
    /// A key that has a batch due waits for its turn, first come, first served, and its
    /// batch is cut when it has the turn and not before: what comes meanwhile joins the
    /// batch. Each key waits for one turn at a time, so keys take turns and each gets its
    /// share. A processor that awaits a job of the same [`Keyed`] keeps its turn
    /// meanwhile.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, Keyed};
    /// # use tokio::time::{Instant, sleep};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // A batch takes 1 s.
    /// let calls = Keyed::builder(|_tenant: u8, jobs: Vec<u8>| async move {
    ///     sleep(Duration::from_secs(1)).await;
    ///     Ok::<_, String>(jobs)
    /// })
    /// .max_in_flight_overall(2)
    /// .options(|options| options.flush_when_idle(true))
    /// .build_running(CancellationToken::new())?;
    ///
    /// let start = Instant::now();
    /// let handles = [1, 2, 3, 4, 5, 6].map(|tenant| calls.submit(tenant, 7));
    /// for handle in handles {
    ///     handle.await?;
    /// }
    /// assert_eq!(start.elapsed().as_secs(), 3); // six batches, two at a time
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_in_flight_overall(mut self, batches: usize) -> Self {
        self.max_in_flight_overall = batches;
        self
    }

    /// Sets how many jobs may be accepted and not yet in a batch, over all keys. Default
    /// 10 000; zero is refused.
    ///
    /// Beyond it `submit` waits, first come, first served, and `try_submit` says
    /// [`Full`](crate::TrySubmitError::Full). The `queue_capacity` of each key holds as
    /// well, and a job that waits for room there takes none here. A key without jobs gets
    /// its loop only when there is room, so a flood of new keys costs no more than its
    /// jobs. Make it large enough for a batch of each key that is busy at a time: with
    /// less, batches stay small and go by the interval.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed, TrySubmitError};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .queue_capacity_overall(2)
    ///     .build_running(CancellationToken::new())?;
    /// let (one, two) = (tenants.try_submit(1, 7)?, tenants.try_submit(2, 8)?);
    /// assert_eq!(tenants.try_submit(3, 9).unwrap_err(), TrySubmitError::Full(9));
    /// assert_eq!((one.await?, two.await?), (7, 8));
    /// assert!(tenants.try_submit(3, 9).is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue_capacity_overall(mut self, jobs: usize) -> Self {
        self.queue_capacity_overall = jobs;
        self
    }

    /// Builds it, running on the current runtime. It stops when `cancel` is
    /// cancelled.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the first option whose value is invalid.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{BuildError, CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let refused = Keyed::<_, u8, _>::builder(processor)
    ///     .max_in_flight_overall(0)
    ///     .build_running(CancellationToken::new());
    /// assert_eq!(refused.unwrap_err(), BuildError::Zero("max_in_flight_overall"));
    ///
    /// let tenants = Keyed::builder(processor).build_running(CancellationToken::new())?;
    /// assert_eq!(tenants.submit(1, 7).await?, 7); // it runs
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_running(self, cancel: CancellationToken) -> Result<Keyed<K, J, R>, BuildError> {
        if self.max_in_flight_overall == 0 {
            return Err(BuildError::Zero("max_in_flight_overall"));
        }
        if self.queue_capacity_overall == 0 {
            return Err(BuildError::Zero("queue_capacity_overall"));
        }
        let (make, limit) = self.factory();
        let example = make()?;
        let (settings, weighs) = (example.settings(), example.queue().weighs());
        Ok(Keyed::run(make, limit, settings, weighs, &cancel))
    }

    /// Returns the function that makes the micro-batcher of a key.
    /// Also returns the limit that they share.
    pub(super) fn factory(self) -> (Factory<KeyedJob<K, J>, R>, Arc<SharedLimit>) {
        let permits = self.max_in_flight_overall.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(permits));
        let processor = Arc::new(Shielded::new(self.processor));
        let limit = Arc::new(SharedLimit::new(self.queue_capacity_overall));
        let build = Shielded::new(self.build);
        let shared_limit = Arc::clone(&limit);
        let make = Box::new(move || {
            let options = MicroBatch::builder(PerKey::new(Arc::clone(&processor)));
            build(options, Arc::clone(&permits), Arc::clone(&shared_limit))
        });
        (make, limit)
    }
}

impl<K, J, R, P> fmt::Debug for KeyedBuilder<K, J, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBuilder")
            .field("max_in_flight_overall", &self.max_in_flight_overall)
            .field("queue_capacity_overall", &self.queue_capacity_overall)
            .finish_non_exhaustive()
    }
}
