//! The options of a [`Tracked`].

use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Tracked;
use super::processor::{TrackedJob, Tracking};
use super::status_table::StatusTable;
use crate::builder::MicroBatchBuilder;
use crate::error::BuildError;
use crate::micro_batch::MicroBatch;
use crate::processor::BatchProcessor;
use crate::storage::{BatchStorage, MemoryStorage};

/// Sets the options of a [`Tracked`].
///
/// # Default
///
/// | option | default |
/// | --- | --- |
/// | [`retain_jobs`](Self::retain_jobs) | 10 000 jobs |
/// | [`retain_for`](Self::retain_for) | 1 h |
/// | [`options`](Self::options) | those of [`MicroBatchBuilder`] |
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{CancellationToken, Tracked};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let charge = |cents: Vec<u32>| async move {
///     Ok::<_, String>(cents.iter().map(|cents| format!("charged {cents}")).collect())
/// };
/// let payments = Tracked::builder(charge)
///     .retain_jobs(1_000_000)
///     .retain_for(Duration::from_secs(24 * 60 * 60)) // as long as clients may try again
///     .options(|options| options.max_batch_size(100).interval(Duration::from_millis(20)))
///     .build_running(CancellationToken::new())?;
/// assert_eq!(payments.submit("key-1", 250).await?, "charged 250");
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until `build` or `build_running`"]
pub struct TrackedBuilder<K, J, R, P, S = MemoryStorage<TrackedJob<K, J, R>, R>> {
    options: TrackedOptions<K, J, R, P, S>,
    retain_jobs: usize,
    retain_for: Duration,
}

/// The options of the micro-batcher behind a [`Tracked`].
///
/// # Examples
///
/// Options in a function of their own:
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{BatchProcessor, CancellationToken, Tracked, TrackedOptions};
///
/// type Options<P> = TrackedOptions<String, u64, u64, P>;
///
/// fn patient<P: BatchProcessor<u64, u64>>(options: Options<P>) -> Options<P> {
///     options.interval(Duration::from_secs(30)).max_batch_size(500)
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let processor = |jobs: Vec<u64>| async move { Ok::<_, String>(jobs) };
/// let echo = Tracked::builder(processor)
///     .options(patient)
///     .build_running(CancellationToken::new())?;
/// assert_eq!(echo.settings().max_batch_size, 500);
/// # Ok(())
/// # }
/// ```
pub type TrackedOptions<K, J, R, P, S = MemoryStorage<TrackedJob<K, J, R>, R>> =
    MicroBatchBuilder<TrackedJob<K, J, R>, R, Tracking<P>, S>;

impl<K, J, R, P> TrackedBuilder<K, J, R, P>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Clone + Send + Sync + 'static,
    P: BatchProcessor<J, R>,
{
    pub(super) fn new(processor: P) -> Self {
        Self {
            options: MicroBatch::builder(Tracking::new(processor)),
            retain_jobs: 10_000,
            retain_for: Duration::from_secs(60 * 60),
        }
    }
}

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
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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

    /// Sets how many finished jobs are retained. Beyond that the least recently
    /// asked for are forgotten. Default 10 000; zero is refused.
    ///
    /// While a batch ends there may be as many more as it holds.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = Tracked::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .retain_jobs(2)
    ///     .build_running(CancellationToken::new())?;
    /// for job in 1..=10 {
    ///     assert_eq!(echo.submit(job, job).await?, job);
    /// }
    /// let retained = (1..=10).filter(|id| echo.status(id).is_some()).count();
    /// assert_eq!(retained, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn retain_jobs(mut self, jobs: usize) -> Self {
        self.retain_jobs = jobs;
        self
    }

    /// Sets how long a finished job is retained, by the system's clock. Default
    /// 1 h; zero is refused, and [`Duration::MAX`] means without limit.
    ///
    /// A job whose retention has ended is not found any more. Its memory is freed
    /// later, by other calls.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = Tracked::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .retain_for(Duration::from_nanos(1))
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(echo.submit("a", 7).await?, 7);
    /// # std::thread::sleep(Duration::from_nanos(2));
    /// assert!(echo.status("a").is_none());
    /// assert_eq!(echo.submit("a", 8).await?, 8); // the id stands for another job now
    /// # Ok(())
    /// # }
    /// ```
    pub fn retain_for(mut self, age: Duration) -> Self {
        self.retain_for = age;
        self
    }

    /// Builds the tracked micro-batcher. Nothing is processed until
    /// [`start`](Tracked::start).
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the first option whose value is invalid.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{BuildError, Tracked};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let refused = Tracked::<u8, _, _>::builder(echo).retain_jobs(0).build();
    /// assert_eq!(refused.unwrap_err(), BuildError::Zero("retain_jobs"));
    ///
    /// let built = Tracked::<u8, _, _>::builder(echo).build()?;
    /// assert!(!built.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn build(self) -> Result<Tracked<K, J, R>, BuildError> {
        if self.retain_jobs == 0 {
            return Err(BuildError::Zero("retain_jobs"));
        }
        if self.retain_for.is_zero() {
            return Err(BuildError::Zero("retain_for"));
        }
        let table = StatusTable::new(self.retain_jobs, self.retain_for);
        let micro_batch = self.options.build()?;
        Ok(Tracked { micro_batch, table })
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = Tracked::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .build_running(CancellationToken::new())?;
    /// assert!(echo.is_running());
    /// assert_eq!(echo.submit("a", 7).await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_running(self, cancel: CancellationToken) -> Result<Tracked<K, J, R>, BuildError> {
        let tracked = self.build()?;
        tracked.micro_batch.spawn(cancel);
        Ok(tracked)
    }

    /// Builds it without checks. The values must be valid.
    pub(super) fn assemble(self) -> Tracked<K, J, R> {
        Tracked {
            micro_batch: self.options.assemble(),
            table: StatusTable::new(self.retain_jobs, self.retain_for),
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
