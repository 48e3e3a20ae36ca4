//! Processes equal jobs once.

use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasher, Hash, RandomState};

use super::BatchProcessor;
use crate::engine::panics::{Call, ShieldedVec, catch, discard, rethrow};
use crate::error::JobError;

/// A processor that processes equal jobs of a batch once; see
/// [`coalesce`](super::BatchProcessorExt::coalesce).
///
/// # Examples
///
/// A function that returns it decorates any processor of jobs that can be compared:
///
/// ```
/// use microbatch::{BatchProcessor, BatchProcessorExt, Coalesce};
///
/// fn reads<P: BatchProcessor<u32, String>>(load: P) -> Coalesce<P> {
///     load.coalesce()
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let load = |ids: Vec<u32>| async move {
///     let call = format!("{ids:?}");
///     Ok::<_, String>(vec![call; ids.len()])
/// };
/// let results = reads(load).process(vec![7, 8, 7, 7]).await?;
/// assert_eq!(results, ["[7, 8]"; 4]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Coalesce<P> {
    inner: P,
}

impl<P> Coalesce<P> {
    pub(super) fn new(inner: P) -> Self {
        Self { inner }
    }
}

impl<J, R, P> BatchProcessor<J, R> for Coalesce<P>
where
    J: Eq + Hash + Clone + Send,
    R: Clone + Send,
    P: BatchProcessor<J, R>,
{
    type Error = Box<dyn Error + Send + Sync>;

    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, Self::Error>> + Send {
        let (distinct, indices) = distinct(jobs);
        let expected = distinct.len();
        let call = Call::new(|| self.inner.process(distinct));
        async move {
            let results = match call.await {
                Ok(results) => results.map_err(Into::into)?,
                Err(message) => rethrow(message),
            };
            let actual = results.len();
            if actual != expected {
                discard(results, None);
                return Err(JobError::ResultCount { expected, actual }.into());
            }
            if expected == indices.len() {
                return Ok(results);
            }
            Ok(distribute(results, &indices))
        }
    }
}

/// Returns the distinct jobs, in order of their first appearance, and for each job the
/// index of the distinct job that it equals. A job whose hash or comparison panics is
/// equal to no other.
fn distinct<J: Eq + Hash>(jobs: Vec<J>) -> (Vec<J>, Vec<usize>) {
    let hasher = RandomState::new();
    let mut indices = Vec::with_capacity(jobs.len());
    let mut distinct = ShieldedVec::new(Vec::with_capacity(jobs.len()));
    // `last` has for each hash the last distinct job with it, `before` has for each
    // distinct job the one before it with the same hash. So no job is a key of a map,
    // and none is cloned.
    let mut last = HashMap::with_capacity(jobs.len());
    let mut before: Vec<Option<usize>> = Vec::with_capacity(jobs.len());
    let mut jobs = ShieldedVec::new(jobs);
    for job in jobs.drain(..) {
        let hash = catch(|| hasher.hash_one(&job)).ok();
        let mut next = hash.and_then(|hash| last.get(&hash).copied());
        while let Some(at) = next {
            if catch(|| distinct[at] == job).unwrap_or(false) {
                break;
            }
            next = before[at];
        }
        if let Some(at) = next {
            indices.push(at);
            discard([job], None);
            continue;
        }
        let at = distinct.len();
        before.push(hash.and_then(|hash| last.insert(hash, at)));
        indices.push(at);
        distinct.push(job);
    }
    drop(jobs);
    (distinct.into_vec(), indices)
}

/// Returns the result at each of the indices: the result itself for the last index that
/// names it, and clones for those before.
///
/// # Panics
///
/// If a clone panics, because one job has no result then.
fn distribute<R: Clone>(results: Vec<R>, indices: &[usize]) -> Vec<R> {
    let mut remaining = vec![0_usize; results.len()];
    for index in indices {
        remaining[*index] += 1;
    }
    let mut results = ShieldedVec::new(results.into_iter().map(Some).collect());
    let mut distributed = ShieldedVec::new(Vec::with_capacity(indices.len()));
    for index in indices {
        remaining[*index] -= 1;
        let result = match remaining[*index] {
            0 => results[*index].take(),
            _ => results[*index].clone(),
        };
        distributed.extend(result);
    }
    distributed.into_vec()
}
