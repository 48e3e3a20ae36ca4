//! Tries the failed jobs of a batch again.

use std::mem;

use backon::BackoffBuilder;
use tokio::time::sleep;
use tracing::debug;

use super::{Always, BatchProcessor, Predicate};
use crate::engine::panics::{Call, Shielded, ShieldedVec, catch, discard, rethrow, trace};

/// A processor that tries the failed jobs of a batch again; see
/// [`retry_items`](super::BatchProcessorExt::retry_items).
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

    /// Returns clones of the jobs to try again, with their indices.
    fn open_jobs<J: Clone, T, E>(
        &self,
        copies: &ShieldedVec<Option<J>>,
        results: &ShieldedVec<Result<T, E>>,
    ) -> (Vec<usize>, ShieldedVec<J>)
    where
        W: Predicate<E>,
    {
        let mut indices = Vec::new();
        let mut jobs = ShieldedVec::new(Vec::new());
        for (index, (copy, result)) in copies.iter().zip(results.iter()).enumerate() {
            let (Some(copy), Err(error)) = (copy, result) else {
                continue;
            };
            // A job whose predicate or clone panics keeps its error.
            if !catch(|| self.when.holds(error)).unwrap_or(false) {
                continue;
            }
            if let Ok(job) = catch(|| copy.clone()) {
                indices.push(index);
                jobs.push(job);
            }
        }
        (indices, jobs)
    }
}

impl<P, B> RetryItems<P, B> {
    /// Tries again only the jobs with an error for which `predicate` holds.
    pub fn when<J, T, E, F>(self, predicate: F) -> RetryItems<P, B, F>
    where
        P: BatchProcessor<J, Result<T, E>>,
        F: Fn(&E) -> bool,
    {
        RetryItems::new(self.inner, self.backoff, predicate)
    }
}

impl<J, T, E, P, B, W> BatchProcessor<J, Result<T, E>> for RetryItems<P, B, W>
where
    J: Clone + Send + Sync + 'static,
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
        let jobs = ShieldedVec::new(jobs);
        let mut copies = ShieldedVec::new(Vec::with_capacity(jobs.len()));
        for job in jobs.iter() {
            copies.push(catch(|| job.clone()).ok());
        }
        let mut pauses = catch(|| Shielded::new(self.backoff.clone().build())).ok();
        // The first call is made here, not in the future, so that batches start in order.
        let call = Call::new(|| self.inner.process(jobs.into_vec()));
        async move {
            let results = match call.await {
                Ok(results) => results?,
                Err(message) => rethrow(message),
            };
            if results.len() != copies.len() {
                return Ok(results);
            }
            let mut results = ShieldedVec::new(results);
            loop {
                let (indices, jobs) = self.open_jobs(&copies, &results);
                if indices.is_empty() {
                    break;
                }
                // A panic ends the retries: what is done must not be lost.
                let next = || pauses.as_mut().and_then(|pauses| pauses.get_mut().next());
                let Ok(Some(pause)) = catch(next) else {
                    break;
                };
                trace(|| debug!(jobs = indices.len(), ?pause, "jobs failed, trying again"));
                sleep(pause).await;
                let call = Call::new(|| self.inner.process(jobs.into_vec()));
                let again = match call.await {
                    Ok(Ok(again)) => ShieldedVec::new(again),
                    Ok(Err(error)) => {
                        discard([error], None);
                        break;
                    }
                    Err(_) => break,
                };
                if again.len() != indices.len() {
                    break;
                }
                for (index, result) in indices.into_iter().zip(again.into_vec()) {
                    discard([mem::replace(&mut results[index], result)], None);
                    if results[index].is_ok() {
                        discard(copies[index].take(), None);
                    }
                }
            }
            Ok(results.into_vec())
        }
    }
}
