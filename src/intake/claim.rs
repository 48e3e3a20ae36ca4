//! The two ways to wait for room in the queue: with a job, or for a permit.

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::line::Waiting;
use super::{Intake, wake};
use crate::error::{Closed, JobError};
use crate::job::{PendingJob, Room, Ticket};

impl<J: Send, R: Send> Room for Intake<J, R> {
    fn stand_in_line(&self, ticket: Ticket) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if !state.has_room(self.capacity) {
            state.line.join(ticket);
            return;
        }
        let waker = match state.line.vacate(ticket) {
            Some(Waiting::Job(job, _)) => state.enqueue(job, self.capacity),
            _ => None,
        };
        drop(state);
        wake(waker);
    }

    fn poll_accepted(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        self.poll_served(ticket, cx)
            .map_err(|Closed| JobError::Closed)
    }

    fn withdraw(&self, ticket: Ticket, in_line: bool) {
        let mut state = self.lock();
        let left = if in_line {
            state.line.leave(ticket)
        } else {
            state.line.vacate(ticket)
        };
        drop(state);
        // Only now, because dropping a job runs its owner's code.
        drop(left);
    }
}

impl<J, R> Intake<J, R> {
    /// Waits until the holder of the ticket, who stands in line, has got room or
    /// was refused.
    fn poll_served(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let last = match state.line.get(ticket) {
            None => return Poll::Ready(Ok(())),
            Some(Waiting::Job(_, place) | Waiting::Reservation(place)) => place.replace(waker),
            Some(Waiting::Refused | Waiting::Nobody) => return Poll::Ready(Err(Closed)),
        };
        drop(state);
        // Only now, because it may be the last that is left of another task.
        drop(last);
        Poll::Pending
    }
}

/// A caller's claim to room for a job to come. Dropping it gives up the place in
/// line, or the room that was reserved.
pub(crate) struct Claim<J, R> {
    intake: Arc<Intake<J, R>>,
    standing: Standing,
}

#[derive(Clone, Copy)]
enum Standing {
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
            standing: Standing::Outside,
        }
    }

    /// Waits for room, in line from the first poll on.
    pub(crate) async fn granted(&mut self) -> Result<(), Closed> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// As [`granted`](Self::granted). What it has said it keeps to.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        if let Standing::Outside = self.standing {
            self.standing = self.enter();
        }
        if let Standing::InLine(ticket) = self.standing {
            self.standing = match self.intake.poll_served(ticket, cx) {
                Poll::Ready(Ok(())) => Standing::Granted,
                Poll::Ready(Err(Closed)) => Standing::Refused,
                Poll::Pending => return Poll::Pending,
            };
        }
        Poll::Ready(match self.standing {
            Standing::Granted => Ok(()),
            _ => Err(Closed),
        })
    }

    /// Takes the room there is, or a place in line.
    fn enter(&self) -> Standing {
        let mut state = self.intake.lock();
        if state.closed {
            return Standing::Refused;
        }
        if !state.has_room(self.intake.capacity) {
            let ticket = state.line.admit(Waiting::Reservation(None));
            state.line.join(ticket);
            return Standing::InLine(ticket);
        }
        state.reserve();
        // Less room may make what is queued all there can be.
        let waker = state.rouse_if_satisfied(self.intake.capacity);
        drop(state);
        wake(waker);
        Standing::Granted
    }

    /// Uses the room that was granted for this job.
    pub(crate) fn redeem(mut self, job: PendingJob<J, R>) -> Result<(), Closed> {
        self.standing = Standing::Refused;
        let mut state = self.intake.lock();
        state.reserved -= 1;
        if state.closed {
            drop(state);
            job.refuse(self.intake.name());
            return Err(Closed);
        }
        let waker = state.enqueue(job, self.intake.capacity);
        drop(state);
        wake(waker);
        Ok(())
    }
}

impl<J, R> Drop for Claim<J, R> {
    fn drop(&mut self) {
        let standing = mem::replace(&mut self.standing, Standing::Refused);
        if let Standing::Outside | Standing::Refused = standing {
            return;
        }
        let mut state = self.intake.lock();
        let left = match standing {
            Standing::InLine(ticket) => state.line.leave(ticket),
            _ => None,
        };
        if left.is_none() {
            // Room was granted, perhaps without this claim having heard of it.
            state.reserved -= 1;
        }
        let wakers = state.move_up(self.intake.capacity);
        drop(state);
        drop(left);
        wakers.into_iter().for_each(Waker::wake);
    }
}
