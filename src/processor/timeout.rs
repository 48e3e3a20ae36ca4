//! Limits how long a batch may take.

use std::error::Error;
use std::time::Duration;

use super::BatchProcessor;
use crate::engine::panics::{Call, rethrow};

/// A processor that limits how long a batch may take; see
/// [`timeout`](super::BatchProcessorExt::timeout).
#[derive(Debug, Clone)]
pub struct Timeout<P> {
    inner: P,
    limit: Duration,
}

impl<P> Timeout<P> {
    pub(super) fn new(inner: P, limit: Duration) -> Self {
        Self { inner, limit }
    }
}

/// A batch took longer than the limit given to
/// [`timeout`](super::BatchProcessorExt::timeout) and was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the batch took longer than {limit:?}")]
pub struct Elapsed {
    /// The limit.
    pub limit: Duration,
}

impl<J, R, P> BatchProcessor<J, R> for Timeout<P>
where
    J: Send,
    P: BatchProcessor<J, R>,
{
    type Error = Box<dyn Error + Send + Sync>;

    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, Self::Error>> + Send {
        let limit = self.limit;
        let call = Call::new(|| self.inner.process(jobs));
        async move {
            match tokio::time::timeout(limit, call).await {
                Ok(Ok(results)) => results.map_err(Into::into),
                Ok(Err(message)) => rethrow(message),
                Err(_) => Err(Elapsed { limit }.into()),
            }
        }
    }
}
