//! The trait that processes a batch, and its decorators.

mod bisect;
mod blocking;
mod coalesce;
mod ext;
#[cfg(feature = "retry")]
mod retry;
#[cfg(feature = "retry")]
mod retry_items;
mod timeout;

use std::error::Error;

pub use bisect::Bisect;
pub use blocking::{BlockingProcessor, SpawnError};
pub use coalesce::Coalesce;
pub use ext::BatchProcessorExt;
#[cfg(feature = "retry")]
pub use retry::Retry;
#[cfg(feature = "retry")]
pub use retry_items::RetryItems;
pub use timeout::{Elapsed, Timeout};

/// Processes a whole batch of jobs at once.
///
/// Every `Fn(Vec<J>) -> impl Future<Output = Result<Vec<R>, E>>` is one, so a
/// closure is usually enough. Implement the trait if the processor needs a named
/// type or its future borrows from it.
///
/// The future runs in a task of its own, so batches may run side by side and a
/// slow one holds up nothing else. Only the call that makes the future is for one
/// batch at a time, so that batches start in order. The body of an `async fn` runs
/// in its future. If the order of the batches matters, as when the processor sends
/// them on, make `process` a plain function that sends them before it returns the
/// future. Work that blocks its thread belongs on a thread of its own, as with any
/// future.
///
/// A processor that submits to its own micro-batcher and awaits the result can
/// wait for itself: its batch is in flight until then, so at the limit of
/// `max_in_flight` the new job is never processed. The same is true of
/// micro-batchers that submit to each other in a circle.
///
/// # Panics
///
/// A panic, in the future or before it, fails this batch alone, as
/// [`JobError::Panicked`](crate::JobError::Panicked).
///
/// # Cancel safety
///
/// The future is dropped before it is done if a stop runs out of time or the
/// runtime is dropped. Its jobs then count as abandoned.
///
/// # Examples
///
/// ```
/// use microbatch::{BatchProcessor, CancellationToken, MicroBatch};
///
/// struct Prices {
///     per_item: u64,
/// }
///
/// impl BatchProcessor<u64, u64> for Prices {
///     type Error = std::convert::Infallible;
///
///     async fn process(&self, amounts: Vec<u64>) -> Result<Vec<u64>, Self::Error> {
///         Ok(amounts.iter().map(|amount| amount * self.per_item).collect())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), microbatch::JobError> {
/// let prices = MicroBatch::new_running(CancellationToken::new(), Prices { per_item: 3 });
/// assert_eq!(prices.submit(14).await?, 42);
/// # Ok(())
/// # }
/// ```
pub trait BatchProcessor<J, R>: Send + Sync + 'static {
    /// Why a whole batch failed. `anyhow::Error`, `String`, `&str`,
    /// [`Infallible`](std::convert::Infallible) and any [`Error`] fit.
    type Error: Into<Box<dyn Error + Send + Sync>>;

    /// Returns one result per job, in the same order.
    ///
    /// `jobs` is never empty and never exceeds the limits of the builder. `R`
    /// may itself be a `Result` if jobs fail one by one.
    ///
    /// # Errors
    ///
    /// An error fails the whole batch: every caller gets it as
    /// [`JobError::Failed`](crate::JobError::Failed), or unchanged if it is a
    /// [`JobError`](crate::JobError) itself, unless that says that a job was
    /// never accepted. Another number of results than jobs fails it as
    /// [`JobError::ResultCount`](crate::JobError::ResultCount).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::num::ParseIntError;
    /// use microbatch::BatchProcessor;
    ///
    /// struct Parse;
    ///
    /// // Jobs fail one by one here, so each has a `Result` of its own.
    /// impl BatchProcessor<&'static str, Result<u8, ParseIntError>> for Parse {
    ///     type Error = std::convert::Infallible;
    ///
    ///     async fn process(
    ///         &self,
    ///         jobs: Vec<&'static str>,
    ///     ) -> Result<Vec<Result<u8, ParseIntError>>, Self::Error> {
    ///         Ok(jobs.iter().map(|job| job.parse()).collect())
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // A test of a processor needs no micro-batcher.
    /// let results = Parse.process(vec!["7", "seven"]).await?;
    /// assert_eq!(results[0], Ok(7));
    /// assert!(results[1].is_err());
    /// # Ok(())
    /// # }
    /// ```
    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, Self::Error>> + Send;
}

impl<J, R, E, F, Fut> BatchProcessor<J, R> for F
where
    F: Fn(Vec<J>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<R>, E>> + Send,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Error = E;

    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, E>> + Send {
        self(jobs)
    }
}

/// The predicate of a decorator that acts on every error.
///
/// # Examples
///
/// It is named where a decorated processor is a field:
///
/// ```
/// use microbatch::{Always, BatchProcessor, BatchProcessorExt, Bisect};
///
/// struct Writer<P> {
///     every_error: Bisect<P, Always>,
///     conflicts: Bisect<P, fn(&String) -> bool>,
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let insert = |rows: Vec<i32>| async move {
///     match rows.contains(&0) {
///         true => Err("timeout".to_string()),
///         false => Ok(rows),
///     }
/// };
/// let writer = Writer {
///     every_error: insert.bisect(),
///     conflicts: insert.bisect().when(|error| error == "conflict"),
/// };
/// let results = writer.every_error.process(vec![1, 0]).await?;
/// assert!(results[0].is_ok() && results[1].is_err());
/// let results = writer.conflicts.process(vec![1, 0]).await?;
/// assert!(results[0].is_err() && results[1].is_err()); // not split
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Always;

/// Whether a decorator acts on an error.
trait Predicate<E>: Send + Sync + 'static {
    fn holds(&self, error: &E) -> bool;
}

impl<E> Predicate<E> for Always {
    fn holds(&self, _: &E) -> bool {
        true
    }
}

impl<E, F: Fn(&E) -> bool + Send + Sync + 'static> Predicate<E> for F {
    fn holds(&self, error: &E) -> bool {
        self(error)
    }
}
