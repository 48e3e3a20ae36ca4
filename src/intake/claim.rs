//! The two ways to wait for room in the queue: with a job, or for a permit.

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::line::{Standing, Waiting};
use super::{Intake, wake};
use crate::error::{Closed, JobError};
use crate::job::{PendingJob, Place, Room, Ticket};
use crate::panics::discard;

impl<J: Send, R: Send> Room for Intake<J, R> {
    fn poll_accepted(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        self.poll_served(ticket, cx)
            .map_err(|Closed| JobError::Closed)
    }

    fn withdraw(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        let left = state.line.leave(ticket);
        if left.is_some() {
            state.stats.withdrawn_waiting += 1;
        }
        drop(state);
        let withdrew = left.is_some();
        // Only now, because dropping a job runs its owner's code.
        discard(left, self.name());
        withdrew
    }

    fn give_up(&self, place: &Arc<Place>) {
        let mut state = self.lock();
        if place.give_up_queued() {
            state.given_up += 1;
            state.queue_weight -= place.weight as u128;
            state.stats.accepted += 1;
        } else if place.give_up_held(state.era) {
            state.departed.push(Arc::clone(place));
            state.stats.pending -= 1;
        } else {
            // It is in its batch, or was abandoned.
            return;
        }
        state.stats.withdrawn += 1;
        let swept = state.sweep();
        let mut wakers = state.move_up(self.capacity);
        // The loop puts its clock back, or drops what it holds.
        wakers.extend(state.rouse());
        drop(state);
        discard(swept, self.name());
        wakers.into_iter().for_each(wake);
    }
}

impl<J, R> Intake<J, R> {
    /// Waits until the holder of the ticket, who stands in line, has got room or
    /// was refused.
    fn poll_served(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let last = match state.line.standing(ticket) {
            Standing::Served => return Poll::Ready(Ok(())),
            Standing::Refused => return Poll::Ready(Err(Closed)),
            Standing::Waiting(place) => place.replace(waker),
        };
        drop(state);
        // Only now, because it may be the last that is left of another task.
        discard(last, None);
        Poll::Pending
    }
}

/// A caller's claim to room for a job to come. Dropping it gives up the place in
/// line, or the room that was reserved.
pub(crate) struct Claim<J, R> {
    intake: Arc<Intake<J, R>>,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Outside,
    InLine(Ticket),
    Granted,
    Refused,
}

impl<J, R> Claim<J, R> {
    /// Returns a claim that does not yet stand in line.
    pub(crate) fn new(intake: &Arc<Intake<J, R>>) -> Self {
        Self {
            intake: Arc::clone(intake),
            stage: Stage::Outside,
        }
    }

    /// Waits for room, in line from the first poll on.
    pub(crate) async fn granted(&mut self) -> Result<(), Closed> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// As [`granted`](Self::granted). What it has said it keeps to.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        if let Stage::Outside = self.stage {
            self.stage = self.enter();
        }
        if let Stage::InLine(ticket) = self.stage {
            self.stage = match self.intake.poll_served(ticket, cx) {
                Poll::Ready(Ok(())) => Stage::Granted,
                Poll::Ready(Err(Closed)) => Stage::Refused,
                Poll::Pending => return Poll::Pending,
            };
        }
        Poll::Ready(match self.stage {
            Stage::Granted => Ok(()),
            _ => Err(Closed),
        })
    }

    /// Takes the room there is, or a place in line.
    fn enter(&self) -> Stage {
        let mut state = self.intake.lock();
        if state.closed {
            return Stage::Refused;
        }
        if !state.has_room(self.intake.capacity) {
            return Stage::InLine(state.line.join(Waiting::Reservation(None)));
        }
        state.reserve();
        // Less room may make what is queued all there can be.
        let waker = state.look_closer(self.intake.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Stage::Granted
    }

    /// Uses the room that was granted for this job.
    pub(crate) fn redeem(mut self, job: PendingJob<J, R>) -> Result<(), Closed> {
        self.stage = Stage::Refused;
        let mut state = self.intake.lock();
        state.reserved -= 1;
        if state.closed {
            drop(state);
            job.refuse(self.intake.name());
            return Err(Closed);
        }
        let waker = state.enqueue(job, self.intake.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(())
    }
}

impl<J, R> Drop for Claim<J, R> {
    fn drop(&mut self) {
        let stage = mem::replace(&mut self.stage, Stage::Refused);
        if let Stage::Outside | Stage::Refused = stage {
            return;
        }
        let mut state = self.intake.lock();
        let left = match stage {
            Stage::InLine(ticket) => state.line.leave(ticket),
            _ => None,
        };
        // A stop may have refused it, without this claim having heard of it.
        let refused = match stage {
            Stage::InLine(ticket) => matches!(state.line.standing(ticket), Standing::Refused),
            _ => false,
        };
        if left.is_none() && !refused {
            // Room was granted, perhaps without this claim having heard of it.
            state.reserved -= 1;
        }
        let wakers = state.move_up(self.intake.capacity);
        drop(state);
        discard(left, None);
        wakers.into_iter().for_each(wake);
    }
}
