//! One caller's way to room in the queue.

use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Entry, Intake, wake};
use crate::error::{Closed, JobError};
use crate::job::{PendingJob, Place};

/// Where a caller is on the way to room in the queue.
enum Standing<J, R> {
    /// Not in line; the job to come with, if it is one.
    Outside(Option<PendingJob<J, R>>),
    InLine(u64),
    Accepted,
    Refused,
}

/// A caller's claim to room in the queue: a job, or a permit for one to come.
/// Dropping it gives up the place in line, or the room that was reserved.
pub(crate) struct Claim<J, R> {
    intake: Arc<Intake<J, R>>,
    /// Never locked: a `Mutex` of which only `get_mut` is used is `Sync`
    /// whatever it holds, and so is the handle.
    standing: Mutex<Standing<J, R>>,
    reservation: bool,
}

impl<J, R> Claim<J, R> {
    pub(crate) fn for_job(intake: &Arc<Intake<J, R>>, job: PendingJob<J, R>) -> Self {
        Self {
            intake: Arc::clone(intake),
            standing: Mutex::new(Standing::Outside(Some(job))),
            reservation: false,
        }
    }

    pub(crate) fn for_permit(intake: &Arc<Intake<J, R>>) -> Self {
        Self {
            intake: Arc::clone(intake),
            standing: Mutex::new(Standing::Outside(None)),
            reservation: true,
        }
    }

    fn standing(&mut self) -> &mut Standing<J, R> {
        self.standing
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the reserved room for this job.
    pub(crate) fn redeem(mut self, job: PendingJob<J, R>) -> Result<(), JobError> {
        let standing = mem::replace(self.standing(), Standing::Refused);
        debug_assert!(matches!(standing, Standing::Accepted));
        let mut state = self.intake.lock();
        state.reserved -= 1;
        if state.closed {
            return Err(JobError::Closed);
        }
        let waker = state.enqueue(job, self.intake.capacity);
        drop(state);
        wake(waker);
        Ok(())
    }

    /// Takes the room there is, or a place in line.
    fn enter(&mut self) {
        let Standing::Outside(job) = self.standing() else {
            return;
        };
        let job = job.take();
        let mut state = self.intake.lock();
        let capacity = self.intake.capacity;
        let (standing, refused, waker) = if state.closed {
            (Standing::Refused, job, None)
        } else if state.has_room(capacity) {
            let waker = if let Some(job) = job {
                state.enqueue(job, capacity)
            } else {
                state.reserved += 1;
                // Less room may make what is queued all there can be.
                state.rouse_if_satisfied(capacity)
            };
            (Standing::Accepted, None, waker)
        } else {
            let entry = match job {
                Some(job) => Entry::Job(job, None),
                None => Entry::Reservation(None),
            };
            (Standing::InLine(state.line.push(entry)), None, None)
        };
        drop(state);
        *self.standing() = standing;
        if let Some(job) = refused {
            job.refuse();
        }
        wake(waker);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        self.enter();
        let number = match self.standing() {
            Standing::InLine(number) => *number,
            Standing::Accepted => return Poll::Ready(Ok(())),
            Standing::Refused | Standing::Outside(_) => return Poll::Ready(Err(Closed)),
        };
        let mut state = self.intake.lock();
        let (standing, result) = if number < state.line.served {
            (Standing::Accepted, Ok(()))
        } else if state.closed {
            (Standing::Refused, Err(Closed))
        } else {
            if let Some(Entry::Job(_, waker) | Entry::Reservation(waker)) = state.line.get(number) {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        drop(state);
        *self.standing() = standing;
        Poll::Ready(result)
    }

    /// Waits for room.
    pub(crate) async fn granted(&mut self) -> Result<(), Closed> {
        poll_fn(|cx| self.poll(cx)).await
    }
}

impl<J: Send, R: Send> Place for Claim<J, R> {
    fn stand_in_line(&mut self) {
        self.enter();
    }

    fn answered(&mut self) {
        *self.standing() = Standing::Accepted;
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        self.poll(cx).map_err(|Closed| JobError::Closed)
    }
}

impl<J, R> Drop for Claim<J, R> {
    fn drop(&mut self) {
        let reservation = self.reservation;
        let number = match self.standing() {
            Standing::InLine(number) => Some(*number),
            Standing::Accepted if reservation => None,
            _ => return,
        };
        let mut state = self.intake.lock();
        let left = match number {
            Some(number) if number >= state.line.served => state.line.leave(number),
            // Room was granted, and is kept only by the job that came with it.
            _ => {
                state.reserved -= usize::from(reservation);
                None
            }
        };
        let wakers = state.move_up(self.intake.capacity);
        drop(state);
        // Only now, because dropping the job runs its owner's code.
        drop(left);
        wakers.into_iter().for_each(Waker::wake);
    }
}
