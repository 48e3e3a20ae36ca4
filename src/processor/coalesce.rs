//! Processes equal jobs once.

use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasher, Hash, RandomState};

use super::BatchProcessor;
use crate::engine::panics::{Call, ShieldedVec, catch, discard, rethrow};
use crate::error::JobError;

/// A processor that processes equal jobs of a batch once; see
/// [`coalesce`](super::BatchProcessorExt::coalesce).
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
        let (distinct, places) = distinct(jobs);
        let expected = distinct.len();
        let called = Call::new(|| self.inner.process(distinct));
        async move {
            let results = match called.await {
                Ok(results) => results.map_err(Into::into)?,
                Err(message) => rethrow(message),
            };
            let actual = results.len();
            if actual != expected {
                discard(results, None);
                return Err(JobError::ResultCount { expected, actual }.into());
            }
            if expected == places.len() {
                return Ok(results);
            }
            Ok(distribute(results, &places))
        }
    }
}

/// Returns the jobs without repetition, in order of their first appearance, and
/// for each job its place among them. A job whose hash or comparison panics is
/// equal to no other.
fn distinct<J: Eq + Hash>(jobs: Vec<J>) -> (Vec<J>, Vec<usize>) {
    let hasher = RandomState::new();
    let mut places = Vec::with_capacity(jobs.len());
    let mut distinct = ShieldedVec::new(Vec::with_capacity(jobs.len()));
    // By hash, the last of the distinct jobs that have it; by job, the one before
    // it with the same hash. The jobs are no keys, so they need not be cloned.
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
            places.push(at);
            discard([job], None);
            continue;
        }
        let at = distinct.len();
        before.push(hash.and_then(|hash| last.insert(hash, at)));
        places.push(at);
        distinct.push(job);
    }
    drop(jobs);
    (distinct.into_vec(), places)
}

/// Gives each place its result: the result itself to the last one that has it,
/// and clones to those before.
///
/// # Panics
///
/// Where a clone panics: a caller is left without a result.
fn distribute<R: Clone>(results: Vec<R>, places: &[usize]) -> Vec<R> {
    let mut owed = vec![0_usize; results.len()];
    for place in places {
        owed[*place] += 1;
    }
    let mut results = ShieldedVec::new(results.into_iter().map(Some).collect());
    let mut given = ShieldedVec::new(Vec::with_capacity(places.len()));
    for place in places {
        owed[*place] -= 1;
        let result = match owed[*place] {
            0 => results[*place].take(),
            _ => results[*place].clone(),
        };
        given.extend(result);
    }
    given.into_vec()
}
