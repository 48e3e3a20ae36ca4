//! Limits how long a batch may take.

use std::error::Error;
use std::time::Duration;

use super::BatchProcessor;
use crate::engine::panics::{Call, rethrow};

/// A processor that limits how long a batch may take; see
/// [`timeout`](super::BatchProcessorExt::timeout).
///
/// # Examples
///
/// A function that returns it decorates any processor:
///
/// ```
/// use std::time::Duration;
/// use microbatch::{BatchProcessor, BatchProcessorExt, Timeout};
///
/// fn limited<P: BatchProcessor<u64, u64>>(sleep: P) -> Timeout<P> {
///     sleep.timeout(Duration::from_secs(10))
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let sleep = |seconds: Vec<u64>| async move {
///     tokio::time::sleep(Duration::from_secs(seconds.iter().sum())).await;
///     Ok::<_, String>(seconds)
/// };
/// let sleep = limited(sleep);
/// assert_eq!(sleep.process(vec![4, 5]).await?, [4, 5]);
/// assert!(sleep.process(vec![4, 5, 6]).await.is_err());
/// # Ok(())
/// # }
/// ```
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
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{BatchProcessor, BatchProcessorExt, Elapsed};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let hung = |_: Vec<u8>| std::future::pending::<Result<Vec<u8>, String>>();
/// let limited = hung.timeout(Duration::from_millis(1500));
/// let error = limited.process(vec![7]).await.unwrap_err();
/// assert_eq!(error.to_string(), "the batch took longer than 1.5s");
/// let limit = error.downcast_ref().map(|Elapsed { limit }| *limit);
/// assert_eq!(limit, Some(Duration::from_millis(1500)));
/// # }
/// ```
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
