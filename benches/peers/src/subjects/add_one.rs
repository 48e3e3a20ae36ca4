//! The processor of the batchers that tell a service each item and each flush.

use std::mem;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tower::BoxError;

use crate::subject::note_batch;

/// An item and a flush share one response, so results take their own way.
#[derive(Default)]
pub(crate) struct AddOne {
    pending: Vec<(u64, oneshot::Sender<u64>)>,
}

/// The response to an item, or to a flush.
pub(crate) type Response = BoxFuture<'static, Result<u64, BoxError>>;

impl AddOne {
    pub(crate) fn add(&mut self, job: u64) -> Response {
        let (reply, result) = oneshot::channel();
        self.pending.push((job, reply));
        async move { Ok(result.await?) }.boxed()
    }

    pub(crate) fn flush(&mut self) -> Response {
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
