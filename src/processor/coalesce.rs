//! Processes equal jobs once.

use std::collections::HashMap;
use std::error::Error;
use std::hash::Hash;

use super::BatchProcessor;
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

    async fn process(&self, jobs: Vec<J>) -> Result<Vec<R>, Self::Error> {
        let (distinct, places) = distinct(jobs);
        let expected = distinct.len();
        let results = self.inner.process(distinct).await.map_err(Into::into)?;
        let actual = results.len();
        if actual != expected {
            return Err(JobError::ResultCount { expected, actual }.into());
        }
        if expected == places.len() {
            return Ok(results);
        }
        Ok(places.into_iter().map(|at| results[at].clone()).collect())
    }
}

/// Returns the jobs without repetition, in order of their first appearance, and
/// for each job its place among them.
fn distinct<J: Eq + Hash + Clone>(jobs: Vec<J>) -> (Vec<J>, Vec<usize>) {
    let mut seen = HashMap::with_capacity(jobs.len());
    let mut distinct = Vec::with_capacity(jobs.len());
    let places = jobs.into_iter().map(|job| {
        *seen.entry(job).or_insert_with_key(|job| {
            distinct.push(job.clone());
            distinct.len() - 1
        })
    });
    let places = places.collect();
    (distinct, places)
}
