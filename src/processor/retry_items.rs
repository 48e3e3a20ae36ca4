//! Tries the failed jobs of a batch again.

use std::mem;
use std::sync::Arc;

use backon::BackoffBuilder;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::{Always, BatchProcessor, Predicate};
use crate::engine::batch;
use crate::engine::panics::{Call, Shielded, ShieldedVec, catch, discard, rethrow, trace};

/// A processor that tries the failed jobs of a batch again; see
/// [`retry_items`](super::BatchProcessorExt::retry_items).
///
/// # Examples
///
/// A function that returns it decorates any processor whose results are `Result`s:
///
/// ```
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// use backon::ExponentialBuilder;
/// use microbatch::{BatchProcessor, BatchProcessorExt, RetryItems};
///
/// type Put = Result<u32, &'static str>;
///
/// fn patient<P: BatchProcessor<u32, Put>>(put: P) -> RetryItems<P, ExponentialBuilder> {
///     put.retry_items(ExponentialBuilder::default())
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// static JOBS: AtomicUsize = AtomicUsize::new(0);
/// let put = |records: Vec<u32>| async move {
///     JOBS.fetch_add(records.len(), Ordering::Relaxed);
///     let one_at_a_time = |(at, record)| if at == 0 { Ok(record) } else { Err("throttled") };
///     Ok::<_, String>(records.into_iter().enumerate().map(one_at_a_time).collect())
/// };
/// assert_eq!(patient(put).process(vec![1, 2, 3]).await?, [Ok(1), Ok(2), Ok(3)]);
/// assert_eq!(JOBS.load(Ordering::Relaxed), 3 + 2 + 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RetryItems<P, B, W = Always> {
    inner: P,
    backoff: B,
    when: W,
}

impl<P, B, W> RetryItems<P, B, W> {
    pub(super) fn new(inner: P, backoff: B, when: W) -> Self {
        Self {
            inner,
            backoff,
            when,
        }
    }
}

impl<P, B> RetryItems<P, B> {
    /// Tries only those jobs again for whose error `predicate` holds.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use backon::ConstantBuilder;
    /// # use microbatch::{BatchProcessor, BatchProcessorExt};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    /// let index = |documents: Vec<&'static str>| async move {
    ///     CALLS.fetch_add(1, Ordering::Relaxed);
    ///     let status = |document: &&str| if document.is_empty() { Err(400) } else { Err(429) };
    ///     Ok::<Vec<Result<(), u16>>, String>(documents.iter().map(status).collect())
    /// };
    /// let index = index
    ///     .retry_items(ConstantBuilder::default().with_max_times(2))
    ///     .when(|status| *status == 429);
    /// assert_eq!(index.process(vec![""]).await?, [Err(400)]);
    /// assert_eq!(CALLS.swap(0, Ordering::Relaxed), 1); // not tried again
    /// assert_eq!(index.process(vec!["", "text"]).await?, [Err(400), Err(429)]);
    /// assert_eq!(CALLS.load(Ordering::Relaxed), 3); // the second one was, twice
    /// # Ok(())
    /// # }
    /// ```
    pub fn when<J, T, E, F>(self, predicate: F) -> RetryItems<P, B, F>
    where
        P: BatchProcessor<J, Result<T, E>>,
        F: Fn(&E) -> bool,
    {
        RetryItems::new(self.inner, self.backoff, predicate)
    }
}

/// Jobs that may be tried again, each with its position in the batch.
type Kept<J> = ShieldedVec<(usize, J)>;

/// Clones the jobs. A job whose clone panics is left out, and so not tried again.
fn keep<'a, J: Clone + 'a>(jobs: impl Iterator<Item = (usize, &'a J)>) -> Kept<J> {
    let clones = jobs.filter_map(|(at, job)| Some((at, catch(|| job.clone()).ok()?)));
    ShieldedVec::new(clones.collect())
}

impl<P, B, W> RetryItems<P, B, W> {
    /// Returns those of the kept jobs that failed and are to be tried again, and drops
    /// the others.
    fn failed<J, T, E>(&self, kept: Kept<J>, results: &[Result<T, E>]) -> Kept<J>
    where
        W: Predicate<E>,
    {
        let again = |result: &Result<T, E>| match result {
            Ok(_) => false,
            Err(error) => catch(|| self.when.holds(error)).unwrap_or(false),
        };
        let kept = kept.into_vec().into_iter();
        let (failed, done): (Vec<_>, Vec<_>) = kept.partition(|(at, _)| again(&results[*at]));
        discard(done, None);
        ShieldedVec::new(failed)
    }

    /// Returns the results of a later call with `expected` jobs, or logs why there are
    /// none.
    fn check<J, R>(
        outcome: Result<Result<Vec<R>, P::Error>, Arc<str>>,
        expected: usize,
    ) -> Option<Vec<R>>
    where
        P: BatchProcessor<J, R>,
    {
        let error = match batch::check(outcome, expected, None) {
            Ok(results) => return Some(results),
            Err(error) => error,
        };
        trace(|| {
            warn!(
                jobs = expected,
                ?error,
                "failed jobs could not be tried again"
            )
        });
        discard([error], None);
        None
    }
}

impl<J, T, E, P, B, W> BatchProcessor<J, Result<T, E>> for RetryItems<P, B, W>
where
    J: Clone + Send,
    T: Send,
    E: Send,
    P: BatchProcessor<J, Result<T, E>>,
    B: BackoffBuilder<Backoff: Send> + Clone + 'static,
    W: Predicate<E>,
{
    type Error = P::Error;

    fn process(
        &self,
        jobs: Vec<J>,
    ) -> impl Future<Output = Result<Vec<Result<T, E>>, P::Error>> + Send {
        let size = jobs.len();
        let mut pauses = catch(|| Shielded::new(self.backoff.clone().build()));
        // The processor gets the jobs themselves, so a clone that panics costs a job its
        // later attempts and not this one.
        let mut kept = keep(jobs.iter().enumerate());
        // The first call is made here, not in the future, so that batches start in order.
        let call = Call::new(|| self.inner.process(jobs));
        async move {
            let mut results = match call.await {
                Ok(results) => ShieldedVec::new(results?),
                Err(message) => rethrow(message),
            };
            if results.len() != size {
                return Ok(results.into_vec());
            }
            loop {
                kept = self.failed(kept, &results);
                if kept.is_empty() {
                    break;
                }
                let pauses = pauses.as_mut().ok();
                let pause = pauses.and_then(|pauses| catch(|| pauses.get_mut().next()).ok()?);
                let Some(pause) = pause else { break };
                let expected = kept.len();
                trace(|| debug!(?pause, jobs = expected, "jobs failed, trying them again"));
                sleep(pause).await;
                let (positions, jobs): (Vec<_>, Vec<_>) = kept.into_vec().into_iter().unzip();
                kept = keep(positions.iter().copied().zip(&jobs));
                let outcome = Call::new(|| self.inner.process(jobs)).await;
                let Some(attempt) = Self::check(outcome, expected) else {
                    break;
                };
                for (at, result) in positions.into_iter().zip(attempt) {
                    let error = mem::replace(&mut results[at], result);
                    discard([error], None);
                }
            }
            Ok(results.into_vec())
        }
    }
}
