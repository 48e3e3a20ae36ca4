//! `tower-batch`: a tower service that is told each item and each flush. As
//! many requests may wait as a batch holds.

use std::task::{Context, Poll};

use tower::{BoxError, Service, ServiceExt};
use tower_batch::{Batch, BatchControl};

use super::add_one::{AddOne, Response};
use crate::load::Load;
use crate::subject::{Subject, fail};

impl Service<BatchControl<u64>> for AddOne {
    type Response = u64;
    type Error = BoxError;
    type Future = Response;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: BatchControl<u64>) -> Self::Future {
        match request {
            BatchControl::Item(job) => self.add(job),
            BatchControl::Flush => self.flush(),
        }
    }
}

pub(crate) struct TowerBatch(Batch<AddOne, u64>);

impl Clone for TowerBatch {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

pub(crate) fn start(load: &Load) -> TowerBatch {
    TowerBatch(Batch::new(
        AddOne::default(),
        load.case.batch,
        load.interval,
    ))
}

impl Subject for TowerBatch {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let result = async { self.0.ready().await?.call(job).await }.await;
        result.map_or_else(|error: BoxError| fail(error), Some)
    }
}
