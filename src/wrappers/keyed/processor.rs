//! The jobs of one key, and how they are processed.

use std::fmt;
use std::sync::Arc;

use super::KeyedProcessor;
use super::key_map::KeyGuard;
use crate::engine::panics::{Call, Shielded, catch, rethrow};
use crate::processor::BatchProcessor;

/// A job with its key, as the micro-batcher of one key of a [`Keyed`](super::Keyed),
/// its weight function and its storage see it.
///
/// # Examples
///
/// A weight function of every key, here of what an entry takes in a request:
///
/// ```
/// use microbatch::{CancellationToken, JobError, Keyed, KeyedJob};
///
/// fn bytes(entry: &KeyedJob<&'static str, &'static str>) -> usize {
///     entry.key().len() + entry.job().len()
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let processor = |_bucket: &'static str, jobs: Vec<&'static str>| async move {
/// #     Ok::<_, String>(jobs)
/// # };
/// let objects = Keyed::builder(processor)
///     .options(|options| options.max_batch_weight(16, bytes))
///     .build_running(CancellationToken::new())?;
/// assert_eq!(objects.submit("bucket", "ten bytes.").await?, "ten bytes.");
/// let refused = objects.submit("bucket", "eleven long").await;
/// assert!(matches!(refused, Err(JobError::TooHeavy { weight: 17, limit: 16 })));
/// # Ok(())
/// # }
/// ```
pub struct KeyedJob<K, J> {
    /// `None` once taken.
    job: Shielded<Option<J>>,
    /// Dropped after the job, so that a key is removed after its last job.
    guard: Arc<KeyGuard<K>>,
}

impl<K, J> KeyedJob<K, J> {
    pub(super) fn new(job: J, guard: Arc<KeyGuard<K>>) -> Self {
        let job = Shielded::new(Some(job));
        Self { job, guard }
    }

    pub(super) fn into_job(mut self) -> J {
        self.job.get_mut().take().expect("it is taken once")
    }

    /// Returns the key that the job was submitted under.
    ///
    /// # Examples
    ///
    /// The weight of a row depends on its table here:
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, Keyed};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_: &'static str, rows: Vec<u8>| async move { Ok::<_, String>(rows) };
    /// let tables = Keyed::builder(processor)
    ///     .options(|options| {
    ///         options.max_batch_weight(10, |entry| match *entry.key() {
    ///             "wide" => 20,
    ///             _ => 1,
    ///         })
    ///     })
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(tables.submit("narrow", 7).await?, 7);
    /// let refused = tables.submit("wide", 7).await;
    /// assert!(matches!(refused, Err(JobError::TooHeavy { weight: 20, limit: 10 })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn key(&self) -> &K {
        self.guard.key()
    }

    /// Returns the job.
    ///
    /// # Examples
    ///
    /// Urgent jobs of each key first:
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use microbatch::{CancellationToken, Keyed, KeyedJob, Lanes};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # static BATCHES: AtomicU32 = AtomicU32::new(0);
    /// # let numbers = |_tenant: u8, jobs: Vec<i32>| async move {
    /// #     Ok::<_, String>(vec![BATCHES.fetch_add(1, Ordering::Relaxed); jobs.len()])
    /// # };
    /// let tenants = Keyed::builder(numbers)
    ///     .options(|options| {
    ///         let lane = |entry: &KeyedJob<u8, i32>| usize::from(*entry.job() >= 0);
    ///         options.max_batch_size(1).storage(Lanes::new(2, lane))
    ///     })
    ///     .build_running(CancellationToken::new())?;
    /// let (later, urgent) = (tenants.submit(1, 7), tenants.submit(1, -7));
    /// assert_eq!((urgent.await?, later.await?), (0, 1)); // the numbers of their batches
    /// # Ok(())
    /// # }
    /// ```
    pub fn job(&self) -> &J {
        self.job.as_ref().expect("it is taken with the entry")
    }
}

impl<K: fmt::Debug, J: fmt::Debug> fmt::Debug for KeyedJob<K, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedJob")
            .field("key", self.key())
            .field("job", self.job())
            .finish()
    }
}

/// The processor of a [`Keyed`](super::Keyed), as the micro-batcher of one key sees it.
///
/// # Examples
///
/// It is named in the type of a builder of one key:
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{CancellationToken, Keyed, KeyedJob, KeyedProcessor, MicroBatchBuilder, PerKey};
///
/// fn options<P: KeyedProcessor<u8, u64, u64>>(
///     builder: MicroBatchBuilder<KeyedJob<u8, u64>, u64, PerKey<P>>,
/// ) -> MicroBatchBuilder<KeyedJob<u8, u64>, u64, PerKey<P>> {
///     builder.interval(Duration::from_millis(5))
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let processor = |_tenant: u8, jobs: Vec<u64>| async move { Ok::<_, String>(jobs) };
/// let tenants = Keyed::builder(processor)
///     .options(options)
///     .build_running(CancellationToken::new())?;
/// assert_eq!(tenants.settings().interval, Duration::from_millis(5));
/// # Ok(())
/// # }
/// ```
pub struct PerKey<P> {
    processor: Arc<Shielded<P>>,
}

impl<P> PerKey<P> {
    pub(super) fn new(processor: Arc<Shielded<P>>) -> Self {
        Self { processor }
    }
}

impl<K, J, R, P> BatchProcessor<KeyedJob<K, J>, R> for PerKey<P>
where
    K: Clone + Send + Sync + 'static,
    J: Send + 'static,
    P: KeyedProcessor<K, J, R>,
{
    type Error = P::Error;

    fn process(
        &self,
        entries: Vec<KeyedJob<K, J>>,
    ) -> impl Future<Output = Result<Vec<R>, P::Error>> + Send {
        let guard = Arc::clone(&entries[0].guard);
        let call = catch(|| guard.key().clone()).map(|key| {
            let jobs = entries.into_iter().map(KeyedJob::into_job).collect();
            Call::new(|| self.processor.process(key, jobs))
        });
        async move {
            // Held to the end: the key is not removed before this batch is processed, and
            // a later micro-batcher of the key starts no batch before that.
            let _guard = guard;
            let outcome = match call {
                Ok(call) => call.await,
                Err(message) => Err(message),
            };
            // The micro-batcher reports the panic.
            outcome.unwrap_or_else(|message| rethrow(message))
        }
    }
}

impl<P> fmt::Debug for PerKey<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerKey").finish_non_exhaustive()
    }
}
