//! `batch-aint-one`: policies, keys (here one) and resources (here none).

use batch_aint_one::{Batcher, BatchingPolicy, Limits, Processor};

use crate::load::Load;
use crate::subject::{Subject, fail, note_batch};

#[derive(Clone)]
pub(crate) struct AddOne;

impl Processor for AddOne {
    type Key = ();
    type Input = u64;
    type Output = u64;
    type Error = String;
    type Resources = ();

    async fn acquire_resources(&self, (): ()) -> Result<(), String> {
        Ok(())
    }

    async fn process(
        &self,
        (): (),
        inputs: impl Iterator<Item = u64> + Send,
        (): (),
    ) -> Result<Vec<u64>, String> {
        let results: Vec<_> = inputs.map(|job| job + 1).collect();
        note_batch(results.len());
        Ok(results)
    }
}

#[derive(Clone)]
pub(crate) struct BatchAintOne(Batcher<AddOne>);

/// The queue is the limit that waits; the one that rejects is out of the way.
pub(crate) fn start(load: &Load, at_once: usize, policy: BatchingPolicy) -> BatchAintOne {
    let limits = Limits::builder()
        .max_batch_size(load.case.batch)
        .max_key_concurrency(at_once)
        .max_key_queued_items(usize::MAX)
        .max_items_awaiting_worker(load.case.queue)
        .build();
    let batcher = Batcher::builder()
        .name("add one")
        .processor(AddOne)
        .limits(limits)
        .batching_policy(policy)
        .build();
    BatchAintOne(batcher)
}

impl Subject for BatchAintOne {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let result = self.0.add((), job).await;
        result.map_or_else(fail, Some)
    }
}
