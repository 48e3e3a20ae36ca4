//! The jobs of one key, and how they are processed.

use std::fmt;
use std::sync::Arc;

use super::KeyedProcessor;
use super::key_map::KeyGuard;
use crate::engine::panics::{Call, Shielded, catch, rethrow};
use crate::processor::BatchProcessor;

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
    processor: Arc<Shielded<P>>,
}

impl<P> PerKey<P> {
    pub(super) fn new(processor: Arc<Shielded<P>>) -> Self {
        Self { processor }
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
        let call = catch(|| guard.key().clone()).map(|key| {
            let jobs = entries.into_iter().map(KeyedJob::into_job).collect();
            Call::new(|| self.processor.process(key, jobs))
        });
        async move {
            // Held to the end: the key is not removed before this batch is processed, and
            // a later micro-batcher of the key starts no batch before that.
            let _guard = guard;
            let outcome = match call {
                Ok(call) => call.await,
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
