//! The tasks that take batches to the processor. A task is started when all
//! others are busy, and kept for later batches: starting one a batch costs as
//! much as a small batch, most of it in the allocator.
//!
//! # Invariants
//!
//! - Batches are taken from one queue, first in, first out, and the processor is
//!   called before the next is taken. So they start in order although tasks may
//!   run in any, and on several threads.
//! - There is a permit for each batch in the queue.

use std::collections::VecDeque;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use crate::batch::{Batch, Context};
use crate::panics::{discard, guard};
use crate::processor::BatchProcessor;

pub(crate) struct Crew<J, R, P> {
    board: Arc<Board<J, R, P>>,
    members: Vec<JoinHandle<()>>,
}

type Batches<J, R, P> = VecDeque<(Batch<J, R, P>, Span)>;

/// Where batches wait for a member to take them.
struct Board<J, R, P> {
    context: Arc<Context<J, R, P>>,
    /// Held from taking a batch until the processor was called with it.
    turn: Mutex<()>,
    batches: Mutex<Batches<J, R, P>>,
    permits: Semaphore,
}

impl<J, R, P> Board<J, R, P> {
    fn lock(&self) -> MutexGuard<'_, Batches<J, R, P>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J, R, P> Crew<J, R, P> {
    pub(crate) fn new(context: Arc<Context<J, R, P>>) -> Self {
        Self {
            board: Arc::new(Board {
                context,
                turn: Mutex::new(()),
                batches: Mutex::new(VecDeque::new()),
                permits: Semaphore::new(0),
            }),
            members: Vec::new(),
        }
    }

    /// Drops every batch in hand at its next await, and the tasks with them.
    pub(crate) fn abort(&self) {
        self.board.permits.close();
        for member in &self.members {
            member.abort();
        }
        let batches = mem::take(&mut *self.board.lock());
        discard(batches);
    }

    /// Waits until the tasks have ended, once they are idle or aborted.
    pub(crate) async fn dismiss(&mut self) {
        self.board.permits.close();
        for member in self.members.drain(..) {
            let _ = member.await;
        }
    }
}

impl<J, R, P> Crew<J, R, P>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
{
    /// Has a member take the batch, as the last of so many in flight.
    pub(crate) fn assign(&mut self, batch: Batch<J, R, P>, span: Span, in_flight: usize) {
        self.board.lock().push_back((batch, span));
        self.board.permits.add_permits(1);
        if self.members.len() < in_flight {
            let board = Arc::clone(&self.board);
            self.members.push(tokio::spawn(serve(board)));
        }
    }
}

/// Takes batches to the processor until the crew is dismissed.
async fn serve<J, R, P: BatchProcessor<J, R>>(board: Arc<Board<J, R, P>>) {
    while let Ok(permit) = board.permits.acquire().await {
        permit.forget();
        if let Some((run, span)) = board.start() {
            // The processor's panics are caught before. What is left are those
            // of values that are dropped: the batch is abandoned.
            let run = AssertUnwindSafe(run).catch_unwind();
            let _ = run.instrument(span).await;
        }
    }
}

impl<J, R, P: BatchProcessor<J, R>> Board<J, R, P> {
    /// Calls the processor with the next batch, and returns what remains to do.
    fn start(&self) -> Option<(impl Future<Output = ()>, Span)> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, span) = self.lock().pop_front()?;
        let jobs = mem::take(&mut batch.jobs);
        let (size, started) = (jobs.len(), Instant::now());
        let called = span.in_scope(|| guard(|| self.context.processor.process(jobs)));
        Some((batch.finish(size, started, called), span))
    }
}
