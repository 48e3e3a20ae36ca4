//! What processes a batch, and what can be put around it.

mod bisect;
mod blocking;
mod coalesce;
mod ext;
pub(crate) mod in_order;
#[cfg(feature = "retry")]
mod retry;
mod timeout;

use std::error::Error;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::resume_unwind;
use std::sync::Arc;

use crate::engine::panics::discard;

pub use bisect::Bisect;
pub use blocking::BlockingProcessor;
pub use coalesce::Coalesce;
pub use ext::BatchProcessorExt;
#[cfg(feature = "retry")]
pub use retry::Retry;
pub use timeout::{Elapsed, Timeout};

/// Processes a whole batch of jobs at once.
///
/// Every `Fn(Vec<J>) -> impl Future<Output = Result<Vec<R>, E>>` is one, so a
/// closure is usually enough; implement the trait where the processor has a
/// name of its own or borrows from itself.
///
/// The future runs in a task of its own, so batches may run side by side and a
/// slow one holds up nothing else. Only the call that makes the future is for one
/// batch at a time, so that batches start in order. What an `async fn` does comes
/// in its future; where the order of the batches matters to it, as to one that
/// sends them on, `process` is a plain function that does so before it returns
/// the future. Work that blocks its thread belongs on a thread of its own, as with
/// any future.
///
/// A processor that submits to its own micro-batcher and awaits the result can
/// wait for itself: its batch keeps its place in flight until then, so at the
/// limit of `max_in_flight` the new job is never processed. The same goes for a
/// circle of micro-batchers.
///
/// # Panics
///
/// A panic, in the future or before it, fails this batch alone, as
/// [`JobError::Panicked`](crate::JobError::Panicked).
///
/// # Cancel safety
///
/// The future is dropped halfway where a stop runs out of time or the runtime
/// is dropped. Its jobs then count as abandoned.
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
/// # #[tokio::main(flavor = "current_thread")]
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
    /// may itself be a `Result` where jobs fail one by one.
    ///
    /// # Errors
    ///
    /// An error fails the whole batch: every caller gets it as
    /// [`JobError::Failed`](crate::JobError::Failed), or as it is if it is a
    /// [`JobError`](crate::JobError) itself, unless that says that a job was
    /// never accepted. Another number of results than jobs does so as
    /// [`JobError::ResultCount`](crate::JobError::ResultCount).
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

/// Users' values, whose drops are guarded one by one wherever they are dropped.
pub(crate) struct ShieldedVec<T>(Vec<T>);

impl<T> ShieldedVec<T> {
    pub(crate) fn new(values: Vec<T>) -> Self {
        Self(values)
    }

    pub(crate) fn into_vec(mut self) -> Vec<T> {
        mem::take(&mut self.0)
    }
}

impl<T: Clone> ShieldedVec<T> {
    /// Clones the values. Where a clone panics, the clones before it are dropped.
    #[cfg(feature = "retry")]
    fn copy(&self) -> Vec<T> {
        let mut copies = Self::new(Vec::with_capacity(self.len()));
        for value in &**self {
            copies.push(value.clone());
        }
        copies.into_vec()
    }
}

impl<T> Deref for ShieldedVec<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> DerefMut for ShieldedVec<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<T> Drop for ShieldedVec<T> {
    fn drop(&mut self) {
        discard(mem::take(&mut self.0), None);
    }
}

/// Goes on with a panic that was caught, so that the decorators above and the
/// core see a panic and not an error. The panic hook has seen it before.
pub(crate) fn rethrow(message: Arc<str>) -> ! {
    resume_unwind(Box::new(message.to_string()))
}
