//! `scuffle-batching`: callers fill a batch under an async mutex; no queue
//! limit.

use std::sync::Arc;

use scuffle_batching::batch::{BatchResponse, BatcherBuilder};
use scuffle_batching::{BatchExecutor, Batcher};

use crate::load::Load;
use crate::subject::{Subject, fail, note_batch};

pub(crate) struct AddOne;

impl BatchExecutor for AddOne {
    type Request = u64;
    type Response = u64;

    async fn execute(&self, jobs: Vec<(u64, BatchResponse<u64>)>) {
        note_batch(jobs.len());
        for (job, response) in jobs {
            response.send(job + 1);
        }
    }
}

#[derive(Clone)]
pub(crate) struct Scuffle(Arc<Batcher<AddOne>>);

pub(crate) fn start(load: &Load, at_once: usize) -> Scuffle {
    let batcher = BatcherBuilder::new()
        .batch_size(load.case.batch)
        .concurrency(at_once)
        .delay(load.interval)
        .build(AddOne);
    Scuffle(Arc::new(batcher))
}

impl Subject for Scuffle {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let result = self.0.execute(job).await;
        result.or_else(|| fail("no response"))
    }
}
