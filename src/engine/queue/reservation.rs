//! Room reserved for a job to come: what a `Permit` holds.
//!
//! # Invariants
//!
//! - `reserved` of the queue counts the reservations that have room, also those that were
//!   served since their last poll. Each is taken back once: by its job, or by its drop.

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::waiters::{Waiter, WaiterId, WaiterStatus};
use super::{Queue, wake};
use crate::engine::panics::discard;
use crate::error::Closed;
use crate::job::PendingJob;

/// Its drop leaves the waiters, or frees the reserved room.
pub(crate) struct Reservation<J, R> {
    queue: Arc<Queue<J, R>>,
    status: ReservationStatus,
}

#[derive(Clone, Copy)]
enum ReservationStatus {
    /// Not polled yet.
    New,
    Waiting(WaiterId),
    Reserved,
    Refused,
}

impl<J, R> Reservation<J, R> {
    /// Returns a reservation that waits for room from its first poll on.
    pub(crate) fn new(queue: &Arc<Queue<J, R>>) -> Self {
        Self {
            queue: Arc::clone(queue),
            status: ReservationStatus::New,
        }
    }

    /// Waits until room is reserved.
    pub(crate) async fn ready(&mut self) -> Result<(), Closed> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Waits until room is reserved. Polled again, it says the same again.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        if let ReservationStatus::New = self.status {
            self.status = self.reserve_or_wait();
        }
        if let ReservationStatus::Waiting(id) = self.status {
            self.status = match self.queue.poll_served(id, cx) {
                Poll::Ready(Ok(())) => ReservationStatus::Reserved,
                Poll::Ready(Err(Closed)) => ReservationStatus::Refused,
                Poll::Pending => return Poll::Pending,
            };
        }
        Poll::Ready(match self.status {
            ReservationStatus::Reserved => Ok(()),
            _ => Err(Closed),
        })
    }

    fn reserve_or_wait(&self) -> ReservationStatus {
        let mut state = self.queue.lock();
        if state.closed {
            return ReservationStatus::Refused;
        }
        if !state.has_room(self.queue.options.capacity) {
            return ReservationStatus::Waiting(state.waiters.push(Waiter::Reservation(None)));
        }
        state.reserve();
        // With less room, what is queued may be all that the queue can hold.
        let waker = state.check_worker(self.queue.options.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        ReservationStatus::Reserved
    }

    /// Puts the job into the reserved room.
    pub(crate) fn push(mut self, job: PendingJob<J, R>) -> Result<(), Closed> {
        self.status = ReservationStatus::Refused;
        let mut state = self.queue.lock();
        state.reserved -= 1;
        if state.closed {
            state.refusals.closed += 1;
            drop(state);
            job.refuse(self.queue.name());
            return Err(Closed);
        }
        let waker = state.push(job, self.queue.options.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(())
    }
}

impl<J, R> Drop for Reservation<J, R> {
    fn drop(&mut self) {
        let status = mem::replace(&mut self.status, ReservationStatus::Refused);
        if let ReservationStatus::New | ReservationStatus::Refused = status {
            return;
        }
        let mut state = self.queue.lock();
        let left = match status {
            ReservationStatus::Waiting(id) => state.waiters.remove(id),
            _ => None,
        };
        // A stop may have refused it since its last poll.
        let refused = match status {
            ReservationStatus::Waiting(id) => {
                matches!(state.waiters.status(id), WaiterStatus::Refused)
            }
            _ => false,
        };
        if left.is_none() && !refused {
            // Room was reserved, perhaps since its last poll.
            state.reserved -= 1;
        }
        let wakers = self.queue.admit_waiters(&mut state);
        drop(state);
        discard(left, None);
        wakers.into_iter().for_each(wake);
    }
}
