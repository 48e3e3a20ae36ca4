//! Handles of which any may be the next to resolve.
//!
//! A handle sits in a slot whose waker says which slot it was, so that one
//! result costs one poll, however many others are waited for. Slots and their
//! wakers are used again: memory is allocated for the most jobs that were ever
//! on their way at once, and not for each job.
//!
//! # Invariants
//!
//! - A handle that may have resolved since it was polled last has its slot
//!   among the rung ones, here or at the board.
//! - The board is read, and the task's waker left there, before a poll says
//!   that it waits. So no ring is lost.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::coop;

use super::OnTheWay;
use crate::error::JobError;
use crate::handle::JobHandle;

pub(super) struct Slots<R> {
    slots: Vec<Slot<R>>,
    free: Vec<usize>,
    /// Slots to poll, in the order in which they rang. A slot that rang for an
    /// earlier handle of its is polled for nothing.
    rung: VecDeque<usize>,
    board: Arc<Board>,
}

struct Slot<R> {
    handle: Option<JobHandle<R>>,
    bell: Waker,
}

/// Where slots ring, from whatever thread their result comes from.
#[derive(Default)]
struct Board(Mutex<Rings>);

#[derive(Default)]
struct Rings {
    slots: VecDeque<usize>,
    task: Option<Waker>,
}

struct Bell {
    slot: usize,
    board: Arc<Board>,
}

impl Board {
    /// Moves the slots that have rung into `rung`, which is empty, and has the
    /// task woken by the next.
    fn read(&self, cx: &Context<'_>, rung: &mut VecDeque<usize>) {
        let task = cx.waker().clone();
        let mut rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mem::swap(&mut rings.slots, rung);
        let last = rings.task.replace(task);
        drop(rings);
        // Only now, because it may be the last that is left of another task.
        drop(last);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut rings = self.board.0.lock().unwrap_or_else(PoisonError::into_inner);
        rings.slots.push_back(self.slot);
        let task = rings.task.take();
        drop(rings);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<R> Slots<R> {
    /// Polls the next that has rung.
    fn answer(&mut self) -> Option<Result<R, JobError>> {
        let number = self.rung.pop_front()?;
        let slot = &mut self.slots[number];
        let handle = Pin::new(slot.handle.as_mut()?);
        let polled = handle.poll(&mut Context::from_waker(&slot.bell));
        if polled.is_ready() {
            slot.handle = None;
            self.free.push(number);
        }
        match polled {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}

impl<R> Default for Slots<R> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            rung: VecDeque::new(),
            board: Arc::default(),
        }
    }
}

impl<R> OnTheWay<R> for Slots<R> {
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn push(&mut self, handle: JobHandle<R>) {
        let number = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let board = Arc::clone(&self.board);
            self.slots.push(Slot {
                handle: None,
                bell: Waker::from(Arc::new(Bell { slot, board })),
            });
            slot
        });
        self.slots[number].handle = Some(handle);
        // It has not been polled, so it rings by hand.
        self.rung.push_back(number);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R, JobError>>> {
        while self.len() > 0 {
            if self.rung.is_empty() {
                self.board.read(cx, &mut self.rung);
            }
            if self.rung.is_empty() {
                return Poll::Pending;
            }
            // Results that are there must not keep the task to themselves.
            if coop::poll_proceed(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(result) = self.answer() {
                return Poll::Ready(Some(result));
            }
        }
        Poll::Ready(None)
    }
}
