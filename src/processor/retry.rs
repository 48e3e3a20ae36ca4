//! Tries a failed batch again.

use backon::BackoffBuilder;
use tokio::time::sleep;
use tracing::debug;

use super::{Always, BatchProcessor, Predicate};
use crate::engine::panics::{Call, Shielded, ShieldedVec, catch, discard, rethrow, trace};

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

    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, P::Error>> + Send {
        let jobs = ShieldedVec::new(jobs);
        let mut pauses = catch(|| Shielded::new(self.backoff.clone().build()));
        // The first call is made here, not in the future, so that batches start in order.
        let mut call = Call::new(|| self.inner.process(jobs.copy()));
        async move {
            loop {
                let error = match call.await {
                    // The drop of `jobs` cannot lose the results: it is caught.
                    Ok(Ok(results)) => return Ok(results),
                    Ok(Err(error)) => error,
                    Err(message) => rethrow(message),
                };
                let pause = catch(|| match &mut pauses {
                    _ if !self.when.holds(&error) => None,
                    Ok(pauses) => pauses.get_mut().next(),
                    Err(message) => rethrow(message.clone()),
                });
                let pause = match pause {
                    Ok(Some(pause)) => pause,
                    Ok(None) => return Err(error),
                    Err(message) => {
                        discard([error], None);
                        rethrow(message)
                    }
                };
                trace(|| debug!(?pause, "batch failed, trying again"));
                discard([error], None);
                sleep(pause).await;
                call = Call::new(|| self.inner.process(jobs.copy()));
            }
        }
    }
}
