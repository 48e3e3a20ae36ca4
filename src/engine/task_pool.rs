//! The worker tasks that call the processor. A task is started if all others are busy,
//! and kept for later batches: starting one per batch costs as much as a small batch,
//! most of it in the allocator.
//!
//! # Invariants
//!
//! - Batches are taken from one queue, first in, first out, and none is taken while the
//!   processor is being called with another. So batches start in order, although the
//!   tasks run in any order and on several threads.
//! - While a batch waits and the processor is not being called, some task is about to
//!   poll the queue: it was woken, is new, or has just ended a batch.
//! - There are never fewer tasks than batches in flight, nor for long many more than
//!   there were batches in flight recently.
//! - A waiting batch is dropped, which replies to its jobs, once no task is left to take
//!   it because the runtime is gone.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::task::JoinSet;
use tracing::Span;

use super::batch::{Batch, BatchContext, within};
use super::panics::{Call, catch, discard, trace};
use super::peak::is_excess;
use crate::processor::BatchProcessor;

pub(crate) struct TaskPool<J, R, P> {
    shared: Arc<SharedPool<J, R, P>>,
    tasks: JoinSet<()>,
}

/// What the worker and the tasks share: the queue of batches.
struct SharedPool<J, R, P> {
    context: Arc<BatchContext<J, R, P>>,
    state: Mutex<PoolState<J, R, P>>,
}

struct PoolState<J, R, P> {
    batches: VecDeque<(Batch<J, R, P>, Span)>,
    /// A task is calling the processor, which returns a future.
    calling: bool,
    /// The parked tasks, those that were parked first at the front.
    idle: Vec<usize>,
    /// By the numbers of the tasks, the wakers of those that are parked.
    wakers: Vec<Option<Waker>>,
    /// Numbers of tasks that have ended, to be used again.
    vacant: Vec<usize>,
    /// How many batches were in flight recently. Twice as many tasks are kept.
    peak: usize,
    closed: bool,
}

/// A task of the pool, from before it is spawned until after it is dropped.
struct PoolTask<J, R, P> {
    shared: Arc<SharedPool<J, R, P>>,
    number: usize,
    /// It was removed from the pool already.
    removed: bool,
}

impl<J, R, P> TaskPool<J, R, P> {
    pub(crate) fn new(context: Arc<BatchContext<J, R, P>>) -> Self {
        Self {
            shared: Arc::new(SharedPool {
                context,
                state: Mutex::new(PoolState {
                    batches: VecDeque::new(),
                    calling: false,
                    idle: Vec::new(),
                    wakers: Vec::new(),
                    vacant: Vec::new(),
                    peak: 0,
                    closed: false,
                }),
            }),
            tasks: JoinSet::new(),
        }
    }

    /// Aborts the tasks: each batch in flight is dropped at its next await.
    pub(crate) fn abort(&mut self) {
        self.tasks.abort_all();
        discard(self.shared.close(), self.shared.context.name());
    }

    /// Ends the tasks, which are idle or aborted, and waits for them.
    pub(crate) async fn join(&mut self) {
        discard(self.shared.close(), self.shared.context.name());
        while self.tasks.join_next().await.is_some() {}
    }
}

impl<J, R, P> TaskPool<J, R, P>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
{
    /// Has a task take the batch. It is the last of so many in flight; `peak` is how
    /// many there were recently.
    pub(crate) fn run(&mut self, batch: Batch<J, R, P>, span: Span, in_flight: usize, peak: usize) {
        let (added, tasks, surplus) = self.shared.change(|state| {
            state.batches.push_back((batch, span));
            let tasks = state.tasks();
            let added = (tasks < in_flight).then(|| state.add_task());
            (added, tasks, state.take_surplus(peak))
        });
        surplus.into_iter().for_each(Waker::wake);
        if self.tasks.len() > tasks {
            // Frees the tasks that have ended.
            while self.tasks.try_join_next().is_some() {}
        }
        let Some(number) = added else { return };
        self.tasks.spawn(run_task(PoolTask {
            shared: Arc::clone(&self.shared),
            number,
            removed: false,
        }));
    }
}

/// Calls the processor with one batch after another, until the pool is closed.
async fn run_task<J, R, P: BatchProcessor<J, R>>(mut task: PoolTask<J, R, P>) {
    let shared = Arc::clone(&task.shared);
    let processor = &shared.context.processor;
    let mut call = None;
    while let Some((mut batch, span)) = shared.next(&mut task).await {
        let jobs = mem::take(&mut batch.jobs);
        let size = jobs.len();
        let started = batch.start_time();
        let make = || processor.process(jobs);
        within(&span, || match &mut call {
            None => call = Some(Call::new(make)),
            Some(call) => call.again(make),
        });
        shared.change(|state| state.calling = false);
        let Some(call) = &mut call else { break };
        let results = poll_fn(|cx| within(&span, || Pin::new(&mut *call).poll(cx))).await;
        // The panics of the processor are caught above. Here only a drop can panic, and
        // the batch is abandoned.
        let finish = || within(&span, || batch.finish(size, started, results));
        if let Err(error) = catch(finish) {
            let name = shared.context.name();
            trace(|| tracing::error!(name, %error, "the end of a batch panicked"));
        }
        discard(Some(span).filter(|span| !span.is_none()), None);
    }
}

impl<J, R, P> Drop for PoolTask<J, R, P> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let lost = self.shared.change(|state| state.remove_task(self.number));
        discard(lost, self.shared.context.name());
    }
}

impl<J, R, P> PoolState<J, R, P> {
    /// How many tasks there are.
    fn tasks(&self) -> usize {
        self.wakers.len() - self.vacant.len()
    }

    /// Returns the number of a new task.
    fn add_task(&mut self) -> usize {
        self.vacant.pop().unwrap_or_else(|| {
            self.wakers.push(None);
            self.wakers.len() - 1
        })
    }

    /// Removes a task, and returns the batches if no task is left to take them.
    fn remove_task(&mut self, number: usize) -> VecDeque<(Batch<J, R, P>, Span)> {
        self.unpark(number);
        self.vacant.push(number);
        if self.tasks() > 0 {
            return VecDeque::new();
        }
        mem::take(&mut self.batches)
    }

    /// Sets the peak, and returns the wakers of the idle tasks that are to end.
    fn take_surplus(&mut self, peak: usize) -> Vec<Waker> {
        self.peak = peak;
        if is_excess(self.batches.capacity(), peak) {
            self.batches.shrink_to(peak * 2);
        }
        let surplus = self.tasks().saturating_sub(peak.saturating_mul(2));
        // Those that have been parked longest.
        let idle = self.idle.drain(..surplus.min(self.idle.len()));
        idle.filter_map(|number| self.wakers[number].take())
            .collect()
    }

    /// Parks a task that has nothing to do.
    fn park(&mut self, number: usize, waker: &Waker) {
        // The task runs on Tokio, whose wakers run no foreign code under the lock.
        if self.wakers[number].replace(waker.clone()).is_none() {
            self.idle.push(number);
        }
    }

    /// Unparks a task that was polled without being woken for a batch.
    fn unpark(&mut self, number: usize) {
        if self.wakers[number].take().is_some() {
            self.idle.retain(|idle| *idle != number);
        }
    }

    /// Returns the waker of an idle task, if there is a batch to take now.
    fn task_to_wake(&mut self) -> Option<Waker> {
        if self.calling || self.batches.is_empty() {
            return None;
        }
        self.wakers[self.idle.pop()?].take()
    }
}

impl<J, R, P> SharedPool<J, R, P> {
    fn lock(&self) -> MutexGuard<'_, PoolState<J, R, P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next batch, with which the task must call the processor at once;
    /// `None` if the task is to end.
    async fn next(&self, task: &mut PoolTask<J, R, P>) -> Option<(Batch<J, R, P>, Span)> {
        let number = task.number;
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.closed {
                return Poll::Ready(None);
            }
            if !state.calling {
                if let Some(batch) = state.batches.pop_front() {
                    state.unpark(number);
                    state.calling = true;
                    return Poll::Ready(Some(batch));
                }
            }
            if state.batches.is_empty() && state.tasks() > state.peak.saturating_mul(2).max(1) {
                task.removed = true;
                // No batch waits, so none is lost.
                state.remove_task(number);
                return Poll::Ready(None);
            }
            state.park(number, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// Changes the state, and wakes an idle task if there is a batch to take then.
    fn change<T>(&self, change: impl FnOnce(&mut PoolState<J, R, P>) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        let waker = state.task_to_wake();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        changed
    }

    /// Ends the idle tasks, and returns the batches that no task has taken.
    fn close(&self) -> VecDeque<(Batch<J, R, P>, Span)> {
        let mut state = self.lock();
        state.closed = true;
        state.idle.clear();
        let idle: Vec<_> = state.wakers.iter_mut().filter_map(Option::take).collect();
        let batches = mem::take(&mut state.batches);
        drop(state);
        idle.into_iter().for_each(Waker::wake);
        batches
    }
}
