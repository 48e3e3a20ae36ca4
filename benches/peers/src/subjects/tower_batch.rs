//! `tower-batch`: a tower service that is told each item and each flush. As
//! many requests may wait as a batch holds.

use std::mem;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tower::{BoxError, Service, ServiceExt};
use tower_batch::{Batch, BatchControl};

use crate::load::Load;
use crate::subject::{Subject, fail, note_batch};

/// An item and a flush share one response, so results take their own way.
#[derive(Default)]
pub(crate) struct AddOne {
    pending: Vec<(u64, oneshot::Sender<u64>)>,
}

impl Service<BatchControl<u64>> for AddOne {
    type Response = u64;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: BatchControl<u64>) -> Self::Future {
        match request {
            BatchControl::Item(job) => {
                let (reply, result) = oneshot::channel();
                self.pending.push((job, reply));
                async move { Ok(result.await?) }.boxed()
            }
            BatchControl::Flush => {
                let batch = mem::take(&mut self.pending);
                async move {
                    note_batch(batch.len());
                    for (job, reply) in batch {
                        let _ = reply.send(job + 1);
                    }
                    Ok(0)
                }
                .boxed()
            }
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
