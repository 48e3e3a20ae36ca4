//! Isolates the jobs that fail a batch.

use std::convert::Infallible;

use super::{Always, BatchProcessor, Predicate};
use crate::error::JobError;
use crate::panics::Call;

/// A processor that splits a failed batch until the guilty jobs stand alone;
/// see [`bisect`](super::BatchProcessorExt::bisect).
#[derive(Debug, Clone)]
pub struct Bisect<P, W = Always> {
    inner: P,
    when: W,
}

impl<P, W> Bisect<P, W> {
    pub(super) fn new(inner: P, when: W) -> Self {
        Self { inner, when }
    }

    /// Returns the results of these jobs or why they have none, and whether a
    /// smaller batch may do better.
    async fn attempt<J, R>(&self, jobs: Vec<J>) -> Result<Vec<R>, (JobError, bool)>
    where
        P: BatchProcessor<J, R>,
        W: Predicate<P::Error>,
    {
        let expected = jobs.len();
        match Call::new(|| self.inner.process(jobs)).await {
            Ok(Ok(results)) if results.len() == expected => Ok(results),
            Ok(Ok(results)) => {
                let actual = results.len();
                Err((JobError::ResultCount { expected, actual }, true))
            }
            Ok(Err(error)) => {
                let split = self.when.holds(&error);
                Err((JobError::from_processor(error.into()), split))
            }
            Err(message) => Err((JobError::Panicked(message), true)),
        }
    }
}

impl<P> Bisect<P> {
    /// Splits only after errors for which `predicate` holds, and after panics;
    /// after any other error all jobs of the batch get that error.
    pub fn when<J, R, F>(self, predicate: F) -> Bisect<P, F>
    where
        P: BatchProcessor<J, R>,
        F: Fn(&P::Error) -> bool,
    {
        Bisect::new(self.inner, predicate)
    }
}

impl<J, R, P, W> BatchProcessor<J, Result<R, JobError>> for Bisect<P, W>
where
    J: Clone + Send + Sync,
    R: Send,
    P: BatchProcessor<J, R>,
    W: Predicate<P::Error>,
{
    type Error = Infallible;

    async fn process(&self, jobs: Vec<J>) -> Result<Vec<Result<R, JobError>>, Infallible> {
        let mut results = Vec::with_capacity(jobs.len());
        // What is still to do, the next at the end: so halves come in order.
        let mut parts = vec![jobs];
        while let Some(part) = parts.pop() {
            // A single job is never split, so it need not be kept.
            let size = part.len();
            let (kept, part) = match size {
                1 => (Vec::new(), part),
                _ => (part.clone(), part),
            };
            match self.attempt(part).await {
                Ok(part) => results.extend(part.into_iter().map(Ok)),
                Err((_, true)) if size > 1 => {
                    let mut left = kept;
                    let right = left.split_off(size / 2);
                    parts.push(right);
                    parts.push(left);
                }
                Err((error, _)) => results.extend((0..size).map(|_| Err(error.clone()))),
            }
        }
        Ok(results)
    }
}
