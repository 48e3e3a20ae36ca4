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
//! - There are never fewer tasks than batches in flight, nor for long many more
//!   than there were batches in flight lately.
//! - A batch that waits and that no task is left to take, because the runtime is
//!   gone, is dropped, which answers its jobs.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::task::JoinSet;
use tracing::Span;

use crate::batch::{Batch, Context};
use crate::panics::{Call, discard, guard, trace};
use crate::processor::BatchProcessor;
use crate::recent::is_excess;

pub(crate) struct Crew<J, R, P> {
    board: Arc<Board<J, R, P>>,
    tasks: JoinSet<()>,
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
    /// Members with nothing to do.
    idle: Vec<usize>,
    /// For each number, the waker of the member who has it, while that is idle.
    wakers: Vec<Option<Waker>>,
    /// Numbers that no member has any more.
    vacant: Vec<usize>,
    /// As many members may stay though they have nothing to do.
    wanted: usize,
    dismissed: bool,
}

/// A task of the crew, from before it is started until after it is dropped.
struct Member<J, R, P> {
    board: Arc<Board<J, R, P>>,
    number: usize,
    /// It has left already.
    left: bool,
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
                    wakers: Vec::new(),
                    vacant: Vec::new(),
                    wanted: 0,
                    dismissed: false,
                }),
            }),
            tasks: JoinSet::new(),
        }
    }

    /// Drops every batch in hand at its next await, and the tasks with them.
    pub(crate) fn abort(&mut self) {
        self.tasks.abort_all();
        discard(self.board.dismiss(), self.board.context.name());
    }

    /// Waits until the tasks have ended, once they are idle or aborted.
    pub(crate) async fn dismiss(&mut self) {
        discard(self.board.dismiss(), self.board.context.name());
        while self.tasks.join_next().await.is_some() {}
    }
}

impl<J, R, P> Crew<J, R, P>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
{
    /// Has a member take the batch, as the last of so many in flight; there were
    /// at most `lately` of late.
    pub(crate) fn assign(
        &mut self,
        batch: Batch<J, R, P>,
        span: Span,
        in_flight: usize,
        lately: usize,
    ) {
        let (hired, members, surplus) = self.board.change(|state| {
            state.batches.push_back((batch, span));
            let members = state.members();
            let hired = (members < in_flight).then(|| state.hire());
            (hired, members, state.dismiss_surplus(lately))
        });
        surplus.into_iter().for_each(Waker::wake);
        if self.tasks.len() > members {
            // What is left of those that have ended.
            while self.tasks.try_join_next().is_some() {}
        }
        let Some(number) = hired else { return };
        self.tasks.spawn(serve(Member {
            board: Arc::clone(&self.board),
            number,
            left: false,
        }));
    }
}

/// Takes batches to the processor until the crew is dismissed.
async fn serve<J, R, P: BatchProcessor<J, R>>(mut member: Member<J, R, P>) {
    let board = Arc::clone(&member.board);
    let processor = &board.context.processor;
    let mut call = None;
    while let Some((mut batch, span)) = board.next(&mut member).await {
        let jobs = mem::take(&mut batch.jobs);
        let size = jobs.len();
        let started = batch.clock();
        let make = || processor.process(jobs);
        within(&span, || match &mut call {
            None => call = Some(Call::new(make)),
            Some(call) => call.again(make),
        });
        board.change(|state| state.calling = false);
        let Some(call) = &mut call else { break };
        let results = poll_fn(|cx| within(&span, || Pin::new(&mut *call).poll(cx))).await;
        // The processor's panics are caught before. What is left are those of
        // values that are dropped: the batch is abandoned.
        let finish = || within(&span, || batch.finish(size, started, results));
        if let Err(error) = guard(finish) {
            let name = board.context.name();
            trace(|| tracing::error!(name, %error, "the end of a batch panicked"));
        }
        discard(Some(span).filter(|span| !span.is_none()), None);
    }
}

/// Makes the call, which does not panic, within the span, whose subscriber may.
fn within<T>(span: &Span, call: impl FnOnce() -> T) -> T {
    if span.is_none() {
        return call();
    }
    let entered = guard(|| span.enter());
    let result = call();
    trace(|| drop(entered));
    result
}

impl<J, R, P> Drop for Member<J, R, P> {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let lost = self.board.change(|state| state.leave(self.number));
        discard(lost, self.board.context.name());
    }
}

impl<J, R, P> State<J, R, P> {
    /// How many members there are.
    fn members(&self) -> usize {
        self.wakers.len() - self.vacant.len()
    }

    /// Returns the number of a new member.
    fn hire(&mut self) -> usize {
        self.vacant.pop().unwrap_or_else(|| {
            self.wakers.push(None);
            self.wakers.len() - 1
        })
    }

    /// Notes that a member is gone, and returns the batches that nobody is left
    /// to take.
    fn leave(&mut self, number: usize) -> VecDeque<(Batch<J, R, P>, Span)> {
        self.stir(number);
        self.vacant.push(number);
        if self.members() > 0 {
            return VecDeque::new();
        }
        mem::take(&mut self.batches)
    }

    /// Sets how many members may stay, and returns the wakers of idle ones that
    /// are to end.
    fn dismiss_surplus(&mut self, lately: usize) -> Vec<Waker> {
        self.wanted = lately;
        if is_excess(self.batches.capacity(), lately) {
            self.batches.shrink_to(lately * 2);
        }
        let surplus = self.members().saturating_sub(lately.saturating_mul(2));
        // Those that were idle longest.
        let idle = self.idle.drain(..surplus.min(self.idle.len()));
        idle.filter_map(|number| self.wakers[number].take())
            .collect()
    }

    /// Notes that a member has nothing to do.
    fn rest(&mut self, number: usize, waker: &Waker) {
        // All wakers are Tokio's, which run nobody's code under the lock.
        if self.wakers[number].replace(waker.clone()).is_none() {
            self.idle.push(number);
        }
    }

    /// Notes that a member is no longer idle, if it was: it came by itself.
    fn stir(&mut self, number: usize) {
        if self.wakers[number].take().is_some() {
            self.idle.retain(|idle| *idle != number);
        }
    }

    /// Returns whom to wake for a batch that can be taken now.
    fn call(&mut self) -> Option<Waker> {
        if self.calling || self.batches.is_empty() {
            return None;
        }
        self.wakers[self.idle.pop()?].take()
    }
}

impl<J, R, P> Board<J, R, P> {
    fn lock(&self) -> MutexGuard<'_, State<J, R, P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next batch, with which the processor is to be called at
    /// once; none if the crew is dismissed, or has members enough.
    async fn next(&self, member: &mut Member<J, R, P>) -> Option<(Batch<J, R, P>, Span)> {
        let number = member.number;
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.dismissed {
                return Poll::Ready(None);
            }
            if !state.calling {
                if let Some(batch) = state.batches.pop_front() {
                    state.stir(number);
                    state.calling = true;
                    return Poll::Ready(Some(batch));
                }
            }
            if state.batches.is_empty() && state.members() > state.wanted.saturating_mul(2).max(1) {
                // None is left without a member: there is no batch that waits.
                member.left = true;
                state.leave(number);
                return Poll::Ready(None);
            }
            state.rest(number, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// Changes the state, and wakes an idle member if there is a batch to take
    /// now.
    fn change<T>(&self, change: impl FnOnce(&mut State<J, R, P>) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        let waker = state.call();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        changed
    }

    /// Sends the members home, and returns the batches that nobody has taken.
    fn dismiss(&self) -> VecDeque<(Batch<J, R, P>, Span)> {
        let mut state = self.lock();
        state.dismissed = true;
        state.idle.clear();
        let idle: Vec<_> = state.wakers.iter_mut().filter_map(Option::take).collect();
        let batches = mem::take(&mut state.batches);
        drop(state);
        idle.into_iter().for_each(Waker::wake);
        batches
    }
}
