//! A job with its id, and the processor that records outcomes.

use std::fmt;
use std::hash::Hash;
use std::iter;

use tracing::error;

use super::status_table::{StatusGuard, finish_batch};
use crate::engine::batch::check;
use crate::engine::panics::{Call, Shielded, catch, trace};
use crate::error::JobError;
use crate::processor::BatchProcessor;

/// A job with its id, as the micro-batcher behind a [`Tracked`](super::Tracked), its
/// weight function and its storage see it.
///
/// Dropping it completes the job as [`JobError::Abandoned`].
pub struct TrackedJob<K, J, R> {
    guard: StatusGuard<K, R>,
    /// `None` once taken.
    job: Shielded<Option<J>>,
}

impl<K, J, R> TrackedJob<K, J, R> {
    pub(super) fn new(guard: StatusGuard<K, R>, job: J) -> Self {
        let job = Shielded::new(Some(job));
        Self { guard, job }
    }

    fn into_parts(mut self) -> (StatusGuard<K, R>, J) {
        let job = self.job.get_mut().take();
        (self.guard, job.expect("it is taken once"))
    }

    pub(super) fn into_job(self) -> J {
        self.into_parts().1
    }

    /// Returns the id that the job was submitted under.
    pub fn id(&self) -> &K {
        self.guard.id()
    }

    /// Returns the job.
    pub fn job(&self) -> &J {
        self.job.as_ref().expect("it is taken with the entry")
    }
}

impl<K: fmt::Debug, J: fmt::Debug, R> fmt::Debug for TrackedJob<K, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedJob")
            .field("id", self.id())
            .field("job", self.job())
            .finish_non_exhaustive()
    }
}

/// The processor of a [`Tracked`](super::Tracked), which also records the status of
/// each job.
#[derive(Debug)]
pub struct Tracking<P>(P);

impl<P> Tracking<P> {
    pub(super) fn new(processor: P) -> Self {
        Self(processor)
    }
}

impl<K, J, R, P> BatchProcessor<TrackedJob<K, J, R>, R> for Tracking<P>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Clone + Send + Sync + 'static,
    P: BatchProcessor<J, R>,
{
    type Error = JobError;

    fn process(
        &self,
        entries: Vec<TrackedJob<K, J, R>>,
    ) -> impl Future<Output = Result<Vec<R>, JobError>> + Send {
        let entries = entries.into_iter().map(TrackedJob::into_parts);
        let (guards, jobs): (Vec<_>, Vec<_>) = entries.unzip();
        guards.iter().for_each(StatusGuard::set_processing);
        // Here, not in the future, because batches start in the order of these calls.
        let call = Call::new(|| self.0.process(jobs));
        async move {
            // The checks of the micro-batcher, but made here, so that outcomes are recorded
            // before callers get their replies.
            let outcome = check(call.await, guards.len(), None);
            match &outcome {
                // A result whose clone panics still goes to the caller of its job.
                Ok(results) => finish_batch(guards, results.iter().map(clone_result)),
                Err(error) => finish_batch(guards, iter::repeat_with(|| Err(error.clone()))),
            }
            outcome
        }
    }
}

/// Clones a result to be retained.
fn clone_result<R: Clone>(result: &R) -> Result<R, JobError> {
    catch(|| result.clone()).map_err(|error| {
        trace(|| error!(%error, "the clone of a result panicked"));
        JobError::Panicked(error)
    })
}
