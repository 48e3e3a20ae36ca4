//! The handle's side of the queue: waiting for acceptance, and what a dropped handle
//! does to its job.
//!
//! # Invariants
//!
//! - A job is counted once as left, as withdrawn, or as what becomes of it otherwise: who
//!   takes it out of the waiters, or changes its stage, has it.
//! - Jobs and wakers are dropped after the lock is released.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use tracing::Span;

use super::waiters::{WaiterId, WaiterStatus};
use super::{Queue, QueueState, wake};
use crate::engine::panics::discard;
use crate::engine::withdrawal::Withdrawal;
use crate::error::{Closed, JobError};
use crate::job::PendingJob;

/// The queue as a handle sees it, whatever the type of its jobs.
pub(crate) trait JobQueue: Send + Sync {
    /// Waits until the job, which is among the waiters, is accepted or refused.
    fn poll_accepted(&self, id: WaiterId, cx: &mut Context<'_>) -> Poll<Result<(), JobError>>;

    /// Removes the job from the waiters and drops it. Returns false if it was accepted
    /// or refused before.
    fn leave(&self, id: WaiterId) -> bool;

    /// Withdraws an accepted job, unless it is in a batch or gone.
    fn withdraw(&self, job: &Arc<Withdrawal>);
}

impl<J: Send, R: Send> JobQueue for Queue<J, R> {
    fn poll_accepted(&self, id: WaiterId, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        self.poll_served(id, cx).map_err(|Closed| JobError::Closed)
    }

    fn leave(&self, id: WaiterId) -> bool {
        let mut state = self.lock();
        let left = state.waiters.remove(id);
        if left.is_none() {
            return false;
        }
        state.stats.leave_waiting();
        let wakers = self.leave_shared_limit(&mut state, id);
        drop(state);
        // After the lock is released, because the drop of a job is user code.
        discard(left, self.name());
        wakers.into_iter().for_each(wake);
        true
    }

    fn withdraw(&self, job: &Arc<Withdrawal>) {
        let mut state = self.lock();
        if job.withdraw_queued() {
            state.withdrawn += 1;
            state.weight -= job.weight() as u128;
            state.stats.withdraw_queued();
        } else if job.withdraw_pending(state.generation) {
            state.withdrawn_pending.push(Arc::clone(job));
            state.stats.withdraw_pending();
        } else {
            drop(state);
            discard(withdrawn_span(job), self.name());
            return;
        }
        let removed = state.remove_withdrawn();
        let mut wakers = self.admit_waiters(&mut state);
        // The worker recomputes its deadline, or drops what it holds.
        wakers.extend(state.unpark());
        drop(state);
        discard(withdrawn_span(job), self.name());
        discard(removed, self.name());
        wakers.into_iter().for_each(wake);
        self.release_shared_room(1);
    }
}

/// Takes the span of a withdrawn job at once. The job itself may stay in the queue, or
/// in the storage, for a while.
fn withdrawn_span(job: &Withdrawal) -> Option<Span> {
    match job.is_withdrawn() {
        true => job.take_span(),
        false => None,
    }
}

impl<J, R> Queue<J, R> {
    /// Waits until the waiter is served or refused.
    pub(super) fn poll_served(
        &self,
        id: WaiterId,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Closed>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let last = match state.waiters.status(id) {
            WaiterStatus::Served => return Poll::Ready(Ok(())),
            WaiterStatus::Refused => return Poll::Ready(Err(Closed)),
            WaiterStatus::Waiting(stored) => stored.replace(waker),
        };
        drop(state);
        // After the lock is released, because the drop of a waker is foreign code.
        discard(last, None);
        Poll::Pending
    }
}

impl<J, R> QueueState<J, R> {
    /// Removes and returns the withdrawn jobs, once at least half of the queue is
    /// withdrawn.
    fn remove_withdrawn(&mut self) -> Vec<PendingJob<J, R>> {
        if self.withdrawn == 0 || self.withdrawn < self.queued() {
            return Vec::new();
        }
        let mut removed = Vec::with_capacity(mem::take(&mut self.withdrawn));
        let mut removed_at = Vec::with_capacity(removed.capacity());
        let mut kept = VecDeque::with_capacity(self.jobs.len() - removed.capacity());
        for (at, job) in mem::take(&mut self.jobs).into_iter().enumerate() {
            if job.is_withdrawn() {
                removed_at.push(at);
                removed.push(job);
            } else {
                kept.push_back(job);
            }
        }
        self.jobs = kept;
        let kept_before = |at: usize| at - removed_at.partition_point(|removed| *removed < at);
        self.current_flush.ahead = kept_before(self.current_flush.ahead);
        for request in &mut self.flush_requests {
            request.ahead = kept_before(request.ahead);
        }
        self.accept_times.retain(kept_before);
        removed
    }
}
