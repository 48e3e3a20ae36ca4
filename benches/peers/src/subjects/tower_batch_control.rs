//! `tower-batch-control`: the same protocol in tower 0.4, with weights and
//! several batches at once. As many requests may wait as these batches hold,
//! so the queue sets how many there are.

use std::task::{Context, Poll};

use tower_batch_control::{Batch, BatchControl, RequestWeight};
use tower04::{BoxError, Service, ServiceExt};

use super::add_one::{AddOne, Response};
use crate::load::Load;
use crate::subject::{Subject, fail};

pub(crate) struct Job(u64);

impl RequestWeight for Job {}

impl Service<BatchControl<Job>> for AddOne {
    type Response = u64;
    type Error = BoxError;
    type Future = Response;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: BatchControl<Job>) -> Self::Future {
        match request {
            BatchControl::Item(Job(job)) => self.add(job),
            BatchControl::Flush => self.flush(),
        }
    }
}

pub(crate) struct TowerBatchControl(Batch<AddOne, Job>);

impl Clone for TowerBatchControl {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

pub(crate) fn start(load: &Load) -> TowerBatchControl {
    let batches = (load.case.queue / load.case.batch).max(1);
    TowerBatchControl(Batch::new(
        AddOne::default(),
        load.case.batch,
        batches,
        load.interval,
    ))
}

impl Subject for TowerBatchControl {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let result = async { self.0.ready().await?.call(Job(job)).await }.await;
        result.map_or_else(|error: BoxError| fail(error), Some)
    }
}
