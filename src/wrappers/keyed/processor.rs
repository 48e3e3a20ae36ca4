//! The jobs of one key, and how they are processed.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::KeyedProcessor;
use super::key_map::KeyGuard;
use crate::engine::panics::{Call, Shielded, catch, rethrow};
use crate::processor::BatchProcessor;
use crate::processor::in_order::InOrder;

/// A job with its key, as the micro-batcher of one key of a [`Keyed`](super::Keyed),
/// its weight function and its storage see it.
pub struct KeyedJob<K, J> {
    /// `None` once taken.
    job: Shielded<Option<J>>,
    /// Dropped after the job, so that a key is removed after its last job.
    guard: Arc<KeyGuard<K>>,
}

impl<K, J> KeyedJob<K, J> {
    pub(super) fn new(job: J, guard: Arc<KeyGuard<K>>) -> Self {
        let job = Shielded::new(Some(job));
        Self { job, guard }
    }

    pub(super) fn into_job(mut self) -> J {
        self.job.get_mut().take().expect("it is taken once")
    }

    /// Returns the key that the job was submitted under.
    pub fn key(&self) -> &K {
        self.guard.key()
    }

    /// Returns the job.
    pub fn job(&self) -> &J {
        self.job.as_ref().expect("it is taken with the entry")
    }
}

impl<K: fmt::Debug, J: fmt::Debug> fmt::Debug for KeyedJob<K, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedJob")
            .field("key", self.key())
            .field("job", self.job())
            .finish()
    }
}

/// The processor of a [`Keyed`](super::Keyed), as the micro-batcher of one key sees it.
pub struct PerKey<P> {
    shared: Arc<SharedProcessor<P>>,
    /// The order of this key's batches.
    order: InOrder,
}

impl<P> PerKey<P> {
    pub(super) fn new(shared: Arc<SharedProcessor<P>>) -> Self {
        Self {
            shared,
            order: InOrder::new(),
        }
    }
}

/// The processor that all keys share.
pub(super) struct SharedProcessor<P> {
    processor: Shielded<P>,
    /// One for each batch that is being processed, over all keys. The semaphore is fair,
    /// so keys take turns.
    permits: Semaphore,
}

impl<P> SharedProcessor<P> {
    pub(super) fn new(processor: P, max_in_flight_overall: usize) -> Self {
        let permits = max_in_flight_overall.min(Semaphore::MAX_PERMITS);
        Self {
            processor: Shielded::new(processor),
            permits: Semaphore::new(permits),
        }
    }
}

impl<K, J, R, P> BatchProcessor<KeyedJob<K, J>, R> for PerKey<P>
where
    K: Clone + Send + Sync + 'static,
    J: Send + 'static,
    P: KeyedProcessor<K, J, R>,
{
    type Error = P::Error;

    fn process(
        &self,
        entries: Vec<KeyedJob<K, J>>,
    ) -> impl Future<Output = Result<Vec<R>, P::Error>> + Send {
        let guard = Arc::clone(&entries[0].guard);
        let turn = self.order.enter();
        async move {
            // Moved in first, so that it is dropped after the permit: the key is not
            // removed before this batch has ended, and a later micro-batcher of the key
            // starts no batch before that.
            let guard = guard;
            // Of each key only the first batch waits for a permit at a time.
            let turn = turn.await;
            // The semaphore is never closed, so this is a permit.
            let _permit = self.shared.permits.acquire().await;
            let outcome = match catch(|| guard.key().clone()) {
                Ok(key) => {
                    let jobs = entries.into_iter().map(KeyedJob::into_job).collect();
                    let call = Call::new(|| self.shared.processor.process(key, jobs));
                    drop(turn);
                    call.await
                }
                Err(message) => Err(message),
            };
            // The micro-batcher reports the panic.
            outcome.unwrap_or_else(|message| rethrow(message))
        }
    }
}

impl<P> fmt::Debug for PerKey<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerKey").finish_non_exhaustive()
    }
}
