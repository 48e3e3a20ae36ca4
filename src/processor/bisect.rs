//! Isolates the jobs that fail a batch.

use std::convert::Infallible;
use std::sync::Arc;

use super::{Always, BatchProcessor, Predicate};
use crate::engine::panics::{Call, ShieldedVec, catch, discard};
use crate::error::JobError;

/// A processor that splits a failed batch until each job that fails is alone in its
/// call; see [`bisect`](super::BatchProcessorExt::bisect).
///
/// # Examples
///
/// A function that returns it decorates any processor:
///
/// ```
/// use microbatch::{BatchProcessor, BatchProcessorExt, Bisect, JobError};
///
/// fn isolating<P: BatchProcessor<u32, u32>>(insert: P) -> Bisect<P> {
///     insert.bisect()
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let insert = |rows: Vec<u32>| async move {
///     match rows.contains(&7) {
///         true => Err("duplicate key: 7"),
///         false => Ok(rows),
///     }
/// };
/// // As a processor, it has a `Result` for each job.
/// let results: Vec<Result<u32, JobError>> = isolating(insert).process(vec![6, 7, 8]).await?;
/// assert!(matches!(results[..], [Ok(6), Err(JobError::Failed(_)), Ok(8)]));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Bisect<P, W = Always> {
    inner: P,
    when: W,
}

impl<P, W> Bisect<P, W> {
    pub(super) fn new(inner: P, when: W) -> Self {
        Self { inner, when }
    }

    /// Takes the next part that has jobs left, and calls the processor with it.
    fn start<'a, J, R>(
        &'a self,
        parts: &mut Vec<Part<J>>,
        results: &mut Results<R>,
    ) -> Option<
        Attempt<J, impl Future<Output = ProcessorResult<R, P::Error>> + Send + use<'a, J, R, P, W>>,
    >
    where
        J: Clone,
        P: BatchProcessor<J, R>,
    {
        loop {
            let mut part = parts.pop()?;
            let copies = part.copy_jobs(results);
            let Part { positions, jobs } = part;
            if !positions.is_empty() {
                return Some(Attempt {
                    positions,
                    copies,
                    call: Call::new(|| self.inner.process(jobs.into_vec())),
                });
            }
        }
    }

    /// Returns the results of `expected` jobs; or why they have none, and whether to
    /// split them.
    fn check<J, R>(
        &self,
        outcome: Result<ProcessorResult<R, P::Error>, Arc<str>>,
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

/// What the inner processor returns for a part.
type ProcessorResult<R, E> = Result<Vec<R>, E>;

/// The result of each job of the batch; `None` until it is known.
type Results<R> = ShieldedVec<Option<Result<R, JobError>>>;

/// Jobs that are processed together, with their positions in the batch.
struct Part<J> {
    positions: Vec<usize>,
    jobs: ShieldedVec<J>,
}

impl<J: Clone> Part<J> {
    /// Returns a clone of each job, for the halves. A single job is not cloned, because
    /// it is never split. A job whose clone panics is removed from the part, with the
    /// panic as its result.
    fn copy_jobs<R>(&mut self, results: &mut Results<R>) -> ShieldedVec<J> {
        let mut copies = ShieldedVec::new(Vec::new());
        if self.positions.len() == 1 {
            return copies;
        }
        copies.reserve_exact(self.positions.len());
        let mut panicked = Vec::new();
        for (at, job) in self.jobs.iter().enumerate() {
            match catch(|| job.clone()) {
                Ok(clone) => copies.push(clone),
                Err(message) => panicked.push((at, message)),
            }
        }
        // From the end, so that the indices of the others stay valid.
        for (at, message) in panicked.into_iter().rev() {
            let position = self.positions.remove(at);
            results[position] = Some(Err(JobError::Panicked(message)));
            discard([self.jobs.remove(at)], None);
        }
        copies
    }
}

/// A part that is being processed.
struct Attempt<J, F> {
    positions: Vec<usize>,
    /// The jobs of the halves, if the part is split.
    copies: ShieldedVec<J>,
    call: Call<F>,
}

impl<P> Bisect<P> {
    /// Splits only after errors for which `predicate` holds, and after panics.
    /// After any other error all jobs of that call get the error.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use microbatch::{BatchProcessor, BatchProcessorExt};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    /// let insert = |rows: Vec<i32>| async move {
    ///     CALLS.fetch_add(1, Ordering::Relaxed);
    ///     match rows.contains(&0) {
    ///         true => Err("connection lost"),
    ///         false => Ok(rows),
    ///     }
    /// };
    /// let insert = insert.bisect().when(|error| error.starts_with("duplicate key"));
    /// let results = insert.process(vec![1, 2, 0]).await?;
    /// assert!(results.iter().all(Result::is_err)); // no row is to blame
    /// assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    /// # Ok(())
    /// # }
    /// ```
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
        // The parts to process, the next one last, so that halves are processed in order.
        let mut parts = vec![Part {
            positions: (0..size).collect(),
            jobs: ShieldedVec::new(jobs),
        }];
        // The first call is made here, not in the future, so that batches start in order.
        let mut attempt = self.start(&mut parts, &mut results);
        async move {
            while let Some(Attempt {
                mut positions,
                mut copies,
                call,
            }) = attempt
            {
                let outcome = call.await;
                match self.check(outcome, positions.len()) {
                    Ok(part) => {
                        for (position, result) in positions.into_iter().zip(part) {
                            results[position] = Some(Ok(result));
                        }
                    }
                    Err((error, true)) if positions.len() > 1 => {
                        discard([error], None);
                        let middle = positions.len() / 2;
                        parts.push(Part {
                            positions: positions.split_off(middle),
                            jobs: ShieldedVec::new(copies.split_off(middle)),
                        });
                        parts.push(Part {
                            positions,
                            jobs: copies,
                        });
                    }
                    Err((error, _)) => {
                        for position in positions {
                            results[position] = Some(Err(error.clone()));
                        }
                    }
                }
                attempt = self.start(&mut parts, &mut results);
            }
            Ok(results.into_vec().into_iter().flatten().collect())
        }
    }
}
