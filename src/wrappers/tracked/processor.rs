//! A job with its id, and the processor that records outcomes.

use std::fmt;
use std::hash::Hash;
use std::iter;

use tracing::error;

use super::status_table::{StatusGuard, finish_batch};
use crate::engine::batch::check;
use crate::engine::panics::{Call, Shielded, catch, trace};
use crate::error::JobError;
use crate::processor::BatchProcessor;

/// A job with its id, as the micro-batcher behind a [`Tracked`](super::Tracked), its
/// weight function and its storage see it.
///
/// Dropping it completes the job as [`JobError::Abandoned`].
///
/// # Examples
///
/// A storage gives jobs whose id is even first here:
///
/// ```
/// # use std::sync::atomic::{AtomicU32, Ordering};
/// use microbatch::{CancellationToken, Lanes, Tracked, TrackedJob};
///
/// fn lane(entry: &TrackedJob<u32, &'static str, u32>) -> usize {
///     (entry.id() % 2) as usize
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # static BATCHES: AtomicU32 = AtomicU32::new(0);
/// # let numbers = |jobs: Vec<&'static str>| async move {
/// #     Ok::<_, String>(vec![BATCHES.fetch_add(1, Ordering::Relaxed); jobs.len()])
/// # };
/// let numbers = Tracked::builder(numbers) // each job learns the number of its batch
///     .options(|options| options.max_batch_size(1).storage(Lanes::new(2, lane)))
///     .build()?;
/// let (odd, even) = (numbers.submit(1, "odd"), numbers.submit(2, "even"));
/// tokio::spawn(numbers.start(CancellationToken::new()));
/// assert_eq!((odd.await?, even.await?), (1, 0));
/// # Ok(())
/// # }
/// ```
pub struct TrackedJob<K, J, R> {
    guard: StatusGuard<K, R>,
    /// `None` once taken.
    job: Shielded<Option<J>>,
}

impl<K, J, R> TrackedJob<K, J, R> {
    pub(super) fn new(guard: StatusGuard<K, R>, job: J) -> Self {
        let job = Shielded::new(Some(job));
        Self { guard, job }
    }

    fn into_parts(mut self) -> (StatusGuard<K, R>, J) {
        let job = self.job.get_mut().take();
        (self.guard, job.expect("it is taken once"))
    }

    pub(super) fn into_job(self) -> J {
        self.into_parts().1
    }

    /// Returns the id that the job was submitted under.
    ///
    /// # Examples
    ///
    /// The ids count towards the weight here:
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, Tracked};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let texts = Tracked::<&'static str, _, _>::builder(processor)
    ///     .options(|options| options.max_batch_weight(8, |entry| entry.id().len() + 1))
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(texts.submit("short", 7).await?, 7);
    /// let refused = texts.submit("too long for that", 7).await;
    /// assert!(matches!(refused, Err(JobError::TooHeavy { weight: 18, limit: 8 })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn id(&self) -> &K {
        self.guard.id()
    }

    /// Returns the job.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Similar, Tracked, TrackedJob};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let longest = |texts: Vec<&'static str>| async move {
    /// #     let longest = texts.iter().map(|text| text.len()).max().unwrap_or_default();
    /// #     Ok::<_, String>(vec![longest; texts.len()])
    /// # };
    /// let texts = Tracked::builder(longest) // each job learns the longest text of its batch
    ///     .options(|options| {
    ///         let length = |entry: &TrackedJob<u8, &str, _>| entry.job().len() as u64;
    ///         options.max_batch_size(2).storage(Similar::by(length))
    ///     })
    ///     .build()?;
    /// let handles = ["a", "a long one", "ab"].map(|text| texts.submit(text.len() as u8, text));
    /// tokio::spawn(texts.start(CancellationToken::new()));
    /// let [one, long, two] = handles;
    /// assert_eq!((one.await?, long.await?, two.await?), (2, 10, 2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn job(&self) -> &J {
        self.job.as_ref().expect("it is taken with the entry")
    }
}

impl<K: fmt::Debug, J: fmt::Debug, R> fmt::Debug for TrackedJob<K, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedJob")
            .field("id", self.id())
            .field("job", self.job())
            .finish_non_exhaustive()
    }
}

/// The processor of a [`Tracked`](super::Tracked), which also records the status of
/// each job.
///
/// # Examples
///
/// It is named in the type of the builder behind a [`Tracked`](super::Tracked):
///
/// ```
/// # use std::time::Duration;
/// # use microbatch::{BatchProcessor, CancellationToken, Tracked};
/// use microbatch::{MicroBatchBuilder, TrackedJob, Tracking};
///
/// type Options<P> = MicroBatchBuilder<TrackedJob<u8, u64, u64>, u64, Tracking<P>>;
///
/// fn soon<P: BatchProcessor<u64, u64>>(options: Options<P>) -> Options<P> {
///     options.interval(Duration::from_millis(5))
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let processor = |jobs: Vec<u64>| async move { Ok::<_, String>(jobs) };
/// let echo = Tracked::builder(processor)
///     .options(soon)
///     .build_running(CancellationToken::new())?;
/// assert_eq!(echo.settings().interval, Duration::from_millis(5));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tracking<P>(P);

impl<P> Tracking<P> {
    pub(super) fn new(processor: P) -> Self {
        Self(processor)
    }
}

impl<K, J, R, P> BatchProcessor<TrackedJob<K, J, R>, R> for Tracking<P>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Clone + Send + Sync + 'static,
    P: BatchProcessor<J, R>,
{
    type Error = JobError;

    fn process(
        &self,
        entries: Vec<TrackedJob<K, J, R>>,
    ) -> impl Future<Output = Result<Vec<R>, JobError>> + Send {
        let entries = entries.into_iter().map(TrackedJob::into_parts);
        let (guards, jobs): (Vec<_>, Vec<_>) = entries.unzip();
        guards.iter().for_each(StatusGuard::set_processing);
        // Here, not in the future, because batches start in the order of these calls.
        let call = Call::new(|| self.0.process(jobs));
        async move {
            // The checks of the micro-batcher, but made here, so that outcomes are recorded
            // before callers get their replies.
            let outcome = check(call.await, guards.len(), None);
            match &outcome {
                // A result whose clone panics still goes to the caller of its job.
                Ok(results) => finish_batch(guards, results.iter().map(clone_result)),
                Err(error) => finish_batch(guards, iter::repeat_with(|| Err(error.clone()))),
            }
            outcome
        }
    }
}

/// Clones a result to be retained.
fn clone_result<R: Clone>(result: &R) -> Result<R, JobError> {
    catch(|| result.clone()).map_err(|error| {
        trace(|| error!(%error, "the clone of a result panicked"));
        JobError::Panicked(error)
    })
}
