//! Tries a failed batch again.

use backon::{BackoffBuilder, Retryable};
use tracing::debug;

use super::{Always, BatchProcessor, Predicate};

/// A processor that tries a failed batch again; see
/// [`retry`](super::BatchProcessorExt::retry).
#[derive(Debug, Clone)]
pub struct Retry<P, B, W = Always> {
    inner: P,
    backoff: B,
    when: W,
}

impl<P, B, W> Retry<P, B, W> {
    pub(super) fn new(inner: P, backoff: B, when: W) -> Self {
        Self {
            inner,
            backoff,
            when,
        }
    }
}

impl<P, B> Retry<P, B> {
    /// Tries again only after errors for which `predicate` holds.
    pub fn when<J, R, F>(self, predicate: F) -> Retry<P, B, F>
    where
        P: BatchProcessor<J, R>,
        F: Fn(&P::Error) -> bool,
    {
        Retry::new(self.inner, self.backoff, predicate)
    }
}

impl<J, R, P, B, W> BatchProcessor<J, R> for Retry<P, B, W>
where
    J: Clone + Send + Sync + 'static,
    R: Send,
    P: BatchProcessor<J, R, Error: Send>,
    B: BackoffBuilder<Backoff: Send> + Clone + 'static,
    W: Predicate<P::Error>,
{
    type Error = P::Error;

    async fn process(&self, jobs: Vec<J>) -> Result<Vec<R>, P::Error> {
        let attempt = || self.inner.process(jobs.clone());
        attempt
            .retry(self.backoff.clone())
            .sleep(tokio::time::sleep)
            .when(|error| self.when.holds(error))
            .notify(|_, pause| debug!(?pause, "batch failed, trying again"))
            .await
    }
}
