//! Isolates the jobs that fail a batch.

use std::convert::Infallible;
use std::sync::Arc;

use super::{Always, BatchProcessor, Predicate};
use crate::engine::panics::{Call, ShieldedVec, catch, discard};
use crate::error::JobError;

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

    /// Starts the next part, as soon as there is one with a job left in it.
    fn start<'a, J, R>(
        &'a self,
        parts: &mut Vec<Part<J>>,
        results: &mut Results<R>,
    ) -> Option<Attempt<J, impl Future<Output = Outcome<R, P::Error>> + Send + use<'a, J, R, P, W>>>
    where
        J: Clone,
        P: BatchProcessor<J, R>,
    {
        loop {
            let mut part = parts.pop()?;
            let kept = part.keep(results);
            let Part { places, jobs } = part;
            if !places.is_empty() {
                return Some(Attempt {
                    places,
                    kept,
                    called: Call::new(|| self.inner.process(jobs.into_vec())),
                });
            }
        }
    }

    /// Returns the results of so many jobs or why they have none, and whether a
    /// smaller batch may do better.
    fn judge<J, R>(
        &self,
        outcome: Result<Outcome<R, P::Error>, Arc<str>>,
        expected: usize,
    ) -> Result<Vec<R>, (JobError, bool)>
    where
        P: BatchProcessor<J, R>,
        W: Predicate<P::Error>,
    {
        match outcome {
            Ok(Ok(results)) if results.len() == expected => Ok(results),
            Ok(Ok(results)) => {
                let actual = results.len();
                discard(results, None);
                Err((JobError::ResultCount { expected, actual }, true))
            }
            Ok(Err(error)) => match catch(|| self.when.holds(&error)) {
                Ok(split) => {
                    let error = catch(|| JobError::from_processor(error.into()));
                    Err((error.unwrap_or_else(JobError::Panicked), split))
                }
                Err(message) => {
                    discard([error], None);
                    Err((JobError::Panicked(message), false))
                }
            },
            Err(message) => Err((JobError::Panicked(message), true)),
        }
    }
}

type Outcome<R, E> = Result<Vec<R>, E>;

/// What each job of the batch gets, as far as it is known.
type Results<R> = ShieldedVec<Option<Result<R, JobError>>>;

/// Jobs that are processed together, with their places in the batch.
struct Part<J> {
    places: Vec<usize>,
    jobs: ShieldedVec<J>,
}

impl<J: Clone> Part<J> {
    /// Returns a clone of each job, for the halves; none of a single job, which is
    /// never split. A job whose clone panics leaves the part with that as its
    /// result.
    fn keep<R>(&mut self, results: &mut Results<R>) -> ShieldedVec<J> {
        let mut kept = ShieldedVec::new(Vec::new());
        if self.places.len() == 1 {
            return kept;
        }
        kept.reserve_exact(self.places.len());
        let mut left_out = Vec::new();
        for (at, job) in self.jobs.iter().enumerate() {
            match catch(|| job.clone()) {
                Ok(clone) => kept.push(clone),
                Err(message) => left_out.push((at, message)),
            }
        }
        // From the end, so that the others stay where they are.
        for (at, message) in left_out.into_iter().rev() {
            let place = self.places.remove(at);
            results[place] = Some(Err(JobError::Panicked(message)));
            discard([self.jobs.remove(at)], None);
        }
        kept
    }
}

/// A part in the processor's hands.
struct Attempt<J, F> {
    places: Vec<usize>,
    kept: ShieldedVec<J>,
    called: Call<F>,
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

    fn process(
        &self,
        jobs: Vec<J>,
    ) -> impl Future<Output = Result<Vec<Result<R, JobError>>, Infallible>> + Send {
        let size = jobs.len();
        let mut results = Results::new((0..size).map(|_| None).collect());
        // What is still to do, the next at the end: so halves come in order.
        let mut parts = vec![Part {
            places: (0..size).collect(),
            jobs: ShieldedVec::new(jobs),
        }];
        // The first attempt belongs to the call, so that batches start in order.
        let mut attempt = self.start(&mut parts, &mut results);
        async move {
            while let Some(Attempt {
                mut places,
                mut kept,
                called,
            }) = attempt
            {
                let outcome = called.await;
                match self.judge(outcome, places.len()) {
                    Ok(part) => {
                        for (place, result) in places.into_iter().zip(part) {
                            results[place] = Some(Ok(result));
                        }
                    }
                    Err((error, true)) if places.len() > 1 => {
                        discard([error], None);
                        let middle = places.len() / 2;
                        parts.push(Part {
                            places: places.split_off(middle),
                            jobs: ShieldedVec::new(kept.split_off(middle)),
                        });
                        parts.push(Part { places, jobs: kept });
                    }
                    Err((error, _)) => {
                        for place in places {
                            results[place] = Some(Err(error.clone()));
                        }
                    }
                }
                attempt = self.start(&mut parts, &mut results);
            }
            Ok(results.into_vec().into_iter().flatten().collect())
        }
    }
}
