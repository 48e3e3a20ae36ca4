//! The tasks that take batches to the processor. A task is started when all
//! others are busy, and kept for later batches: starting one a batch costs as
//! much as a small batch, most of it in the allocator.
//!
//! # Invariants
//!
//! - Batches are taken from one queue, first in, first out, and none is taken
//!   while the processor is being called with another. So they start in order
//!   although tasks may run in any, and on several threads.
//! - While a batch waits and the processor is not being called, some task is on
//!   its way to the queue: one that was woken, is new, or has just ended a batch.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use futures::FutureExt;
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use crate::batch::{Batch, Context};
use crate::panics::{discard, guard};
use crate::processor::BatchProcessor;

pub(crate) struct Crew<J, R, P> {
    board: Arc<Board<J, R, P>>,
    members: Vec<JoinHandle<()>>,
}

/// Where batches wait for a member to take them.
struct Board<J, R, P> {
    context: Arc<Context<J, R, P>>,
    state: Mutex<State<J, R, P>>,
}

struct State<J, R, P> {
    batches: VecDeque<(Batch<J, R, P>, Span)>,
    /// A member is calling the processor.
    calling: bool,
    /// Members with nothing to do, by their number.
    idle: Vec<(usize, Waker)>,
    dismissed: bool,
}

impl<J, R, P> Crew<J, R, P> {
    pub(crate) fn new(context: Arc<Context<J, R, P>>) -> Self {
        Self {
            board: Arc::new(Board {
                context,
                state: Mutex::new(State {
                    batches: VecDeque::new(),
                    calling: false,
                    idle: Vec::new(),
                    dismissed: false,
                }),
            }),
            members: Vec::new(),
        }
    }

    /// Drops every batch in hand at its next await, and the tasks with them.
    pub(crate) fn abort(&self) {
        for member in &self.members {
            member.abort();
        }
        discard(self.board.dismiss());
    }

    /// Waits until the tasks have ended, once they are idle or aborted.
    pub(crate) async fn dismiss(&mut self) {
        discard(self.board.dismiss());
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
        self.board
            .change(|state| state.batches.push_back((batch, span)));
        if self.members.len() < in_flight {
            let number = self.members.len();
            let board = Arc::clone(&self.board);
            self.members.push(tokio::spawn(serve(board, number)));
        }
    }
}

/// Takes batches to the processor until the crew is dismissed.
async fn serve<J, R, P: BatchProcessor<J, R>>(board: Arc<Board<J, R, P>>, number: usize) {
    while let Some((mut batch, span)) = board.next(number).await {
        let jobs = mem::take(&mut batch.jobs);
        let size = jobs.len();
        let started = batch.clock();
        let called = span.in_scope(|| guard(|| board.context.processor.process(jobs)));
        board.change(|state| state.calling = false);
        // The processor's panics are caught before. What is left are those
        // of values that are dropped: the batch is abandoned.
        let run = AssertUnwindSafe(batch.finish(size, started, called)).catch_unwind();
        let _ = run.instrument(span).await;
    }
}

impl<J, R, P> Board<J, R, P> {
    fn lock(&self) -> MutexGuard<'_, State<J, R, P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next batch, with which the processor is to be called at
    /// once; none if the crew is dismissed.
    async fn next(&self, number: usize) -> Option<(Batch<J, R, P>, Span)> {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.dismissed {
                return Poll::Ready(None);
            }
            if !state.calling {
                if let Some(batch) = state.batches.pop_front() {
                    state.calling = true;
                    return Poll::Ready(Some(batch));
                }
            }
            state.idle.retain(|(other, _)| *other != number);
            state.idle.push((number, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Changes the state, and wakes an idle member if there is a batch to take
    /// now.
    fn change(&self, change: impl FnOnce(&mut State<J, R, P>)) {
        let mut state = self.lock();
        change(&mut state);
        let takes = !state.calling && !state.batches.is_empty();
        let idle = if takes { state.idle.pop() } else { None };
        drop(state);
        if let Some((_, waker)) = idle {
            waker.wake();
        }
    }

    /// Sends the members home, and returns the batches that nobody has taken.
    fn dismiss(&self) -> VecDeque<(Batch<J, R, P>, Span)> {
        let mut state = self.lock();
        state.dismissed = true;
        let idle = mem::take(&mut state.idle);
        let batches = mem::take(&mut state.batches);
        drop(state);
        idle.into_iter().for_each(|(_, waker)| waker.wake());
        batches
    }
}
