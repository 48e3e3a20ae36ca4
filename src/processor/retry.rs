//! Tries a failed batch again.

use backon::BackoffBuilder;
use tokio::time::sleep;
use tracing::debug;

use super::{Always, BatchProcessor, Predicate};
use crate::engine::panics::{Call, Shielded, ShieldedVec, catch, discard, rethrow, trace};

/// A processor that tries a failed batch again; see
/// [`retry`](super::BatchProcessorExt::retry).
///
/// # Examples
///
/// A function that returns it decorates any processor:
///
/// ```
/// # use std::sync::atomic::{AtomicU32, Ordering};
/// # use std::time::Duration;
/// use backon::ConstantBuilder;
/// use microbatch::{BatchProcessor, BatchProcessorExt, Retry};
///
/// fn patient<P>(insert: P) -> Retry<P, ConstantBuilder>
/// where
///     P: BatchProcessor<u32, u32, Error: Send>,
/// {
///     let pause = ConstantBuilder::default().with_delay(Duration::from_secs(2));
///     insert.retry(pause.with_max_times(1))
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// static CALLS: AtomicU32 = AtomicU32::new(0);
/// let insert = |rows: Vec<u32>| async move {
///     match CALLS.fetch_add(1, Ordering::Relaxed) {
///         0 => Err("deadlock detected"),
///         _ => Ok(rows),
///     }
/// };
/// assert_eq!(patient(insert).process(vec![7]).await?, [7]);
/// # Ok(())
/// # }
/// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use backon::ConstantBuilder;
    /// # use microbatch::{BatchProcessor, BatchProcessorExt};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    /// let insert = |_: Vec<u32>| async {
    ///     CALLS.fetch_add(1, Ordering::Relaxed);
    ///     Err::<Vec<u32>, _>("permission denied")
    /// };
    /// let insert = insert
    ///     .retry(ConstantBuilder::default().with_max_times(3))
    ///     .when(|error| error.contains("timeout"));
    /// assert_eq!(insert.process(vec![7]).await, Err("permission denied"));
    /// assert_eq!(CALLS.load(Ordering::Relaxed), 1); // another attempt would not help
    /// # }
    /// ```
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
