//! Handles that resolve in any order.
//!
//! A handle is in an entry whose waker names the entry, so that one result costs one
//! poll, however many other handles there are. Entries and their wakers are used again:
//! memory is allocated for the highest number of jobs in progress, and not for each job.
//!
//! # Invariants
//!
//! - An entry whose handle may have resolved since its last poll is in a ready queue:
//!   in `ready` here, or in the shared one.
//! - Before a poll returns `Pending`, it takes the shared entries and leaves the task's
//!   waker there, under one lock. So no wake-up is lost.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::coop;

use super::Handles;
use crate::error::JobError;
use crate::handle::JobHandle;

pub(super) struct UnorderedHandles<R> {
    entries: Vec<HandleEntry<R>>,
    /// Indices of entries without a handle.
    free: Vec<usize>,
    /// Indices of entries to poll, in the order in which they were woken. An entry that was
    /// woken for an earlier handle is polled without need.
    ready: VecDeque<usize>,
    queue: Arc<ReadyQueue>,
}

struct HandleEntry<R> {
    handle: Option<JobHandle<R>>,
    waker: Waker,
}

/// The entries that were woken, from any thread.
#[derive(Default)]
struct ReadyQueue(Mutex<ReadyState>);

#[derive(Default)]
struct ReadyState {
    /// Indices of entries.
    ready: VecDeque<usize>,
    /// Woken by the next entry.
    task: Option<Waker>,
}

/// The waker of one entry.
struct EntryWaker {
    index: usize,
    queue: Arc<ReadyQueue>,
}

impl ReadyQueue {
    /// Moves the entries into `ready`, which is empty, and has the next one wake the
    /// task.
    fn take(&self, cx: &Context<'_>, ready: &mut VecDeque<usize>) {
        let task = cx.waker().clone();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mem::swap(&mut state.ready, ready);
        let last = state.task.replace(task);
        drop(state);
        // After the lock is released, because the drop of a waker is foreign code.
        drop(last);
    }
}

impl Wake for EntryWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.queue.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.ready.push_back(self.index);
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<R> UnorderedHandles<R> {
    /// Polls the first ready entry. Returns its result, if it has one.
    fn poll_entry(&mut self) -> Option<Result<R, JobError>> {
        let index = self.ready.pop_front()?;
        let entry = &mut self.entries[index];
        let handle = Pin::new(entry.handle.as_mut()?);
        let polled = handle.poll(&mut Context::from_waker(&entry.waker));
        if polled.is_ready() {
            entry.handle = None;
            self.free.push(index);
        }
        match polled {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}

impl<R> Default for UnorderedHandles<R> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            queue: Arc::default(),
        }
    }
}

impl<R> Handles<R> for UnorderedHandles<R> {
    fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn push(&mut self, handle: JobHandle<R>) {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.entries.len();
            let queue = Arc::clone(&self.queue);
            self.entries.push(HandleEntry {
                handle: None,
                waker: Waker::from(Arc::new(EntryWaker { index, queue })),
            });
            index
        });
        self.entries[index].handle = Some(handle);
        // It has not been polled, so nothing wakes it yet.
        self.ready.push_back(index);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R, JobError>>> {
        while self.len() > 0 {
            if self.ready.is_empty() {
                self.queue.take(cx, &mut self.ready);
            }
            if self.ready.is_empty() {
                return Poll::Pending;
            }
            // However many results there are, the task must yield to others.
            if coop::poll_proceed(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(result) = self.poll_entry() {
                return Poll::Ready(Some(result));
            }
        }
        Poll::Ready(None)
    }
}
