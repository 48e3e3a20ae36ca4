//! The tasks that take batches to the processor. A task is started when a
//! batch finds none idle and kept for the next one: starting one a batch costs
//! as much as a small batch, most of it in the allocator.
//!
//! A member has one batch at a time.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use crate::batch::{Batch, Replies};
use crate::job::Reply;
use crate::processor::BatchProcessor;

pub(crate) struct Member<J, R, P> {
    work: mpsc::UnboundedSender<(Batch<J, R, P>, Span)>,
    replies: Arc<Replies<R>>,
    task: JoinHandle<()>,
}

impl<J, R, P> Member<J, R, P>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
{
    /// Starts a task on the current runtime.
    pub(crate) fn hire() -> Self {
        let (work, mut batches) = mpsc::unbounded_channel::<(Batch<J, R, P>, Span)>();
        let replies = Arc::new(Replies::default());
        let owed = Arc::clone(&replies);
        let task = tokio::spawn(async move {
            while let Some((batch, span)) = batches.recv().await {
                let run = AssertUnwindSafe(batch.run(&owed)).catch_unwind();
                // The processor's panics are caught before. What is left are
                // those of results that are dropped: their batch is abandoned.
                let _ = run.instrument(span).await;
            }
        });
        Self {
            work,
            replies,
            task,
        }
    }

    /// Returns an empty vector for the replies of the next batch.
    pub(crate) fn spare(&self) -> Vec<Reply<R>> {
        self.replies.take()
    }

    /// Hands over a batch and what is owed for it.
    pub(crate) fn assign(&self, batch: Batch<J, R, P>, replies: Vec<Reply<R>>, span: Span) {
        self.replies.put(replies);
        // Where the runtime is shutting down the batch comes back and is
        // dropped, by which the loop learns of its end.
        let _ = self.work.send((batch, span));
    }

    /// Waits until the task, which is idle, has ended.
    pub(crate) async fn dismiss(self) {
        drop(self.work);
        let _ = self.task.await;
    }
}

impl<J, R, P> Member<J, R, P> {
    /// Takes what is owed for a batch that was not answered.
    pub(crate) fn unanswered(&self) -> Vec<Reply<R>> {
        self.replies.take_owed()
    }

    /// Drops the batch in hand at its next await, and the task with it.
    pub(crate) fn abort(&self) {
        self.task.abort();
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.task.is_finished()
    }
}
