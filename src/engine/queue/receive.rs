//! The worker's side of the queue: it receives jobs and events, parks until there is
//! something to do, and abandons what is left at its end.
//!
//! # Invariants
//!
//! - A job that leaves the queue is in the inbox, or is returned as withdrawn. Its accept
//!   time leaves with it.
//! - The worker is parked under the same lock that has shown it that nothing it waits for
//!   has happened.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use super::{FlushTarget, ParkedWorker, Queue, QueueState, wake};
use crate::engine::panics::discard;
use crate::engine::reply::ReplySender;
use crate::engine::schedule::Wants;
use crate::engine::withdrawal::Withdrawal;
use crate::job::{PendingJob, total_weight};

/// Buffers of the worker, which [`Queue::receive`] fills.
pub(crate) struct Inbox<J, R> {
    pub(crate) jobs: VecDeque<PendingJob<J, R>>,
    /// How many consecutive jobs of the inbox were accepted when.
    pub(crate) accept_times: Vec<(Instant, usize)>,
    pub(crate) finished_batches: Vec<u64>,
    /// The callers of the current flush.
    pub(crate) flush_replies: Vec<ReplySender<()>>,
}

impl<J, R> Default for Inbox<J, R> {
    fn default() -> Self {
        Self {
            jobs: VecDeque::new(),
            accept_times: Vec::new(),
            finished_batches: Vec::new(),
            flush_replies: Vec::new(),
        }
    }
}

/// What has happened since the worker last received.
pub(crate) struct Received {
    /// The queue is closed, perhaps for long.
    pub(crate) closed: bool,
    /// The worker must poll its cancellation token.
    pub(crate) cancel_woken: bool,
    /// Users have changed what they control; see [`Queue::control`].
    pub(crate) control_changed: bool,
    /// Jobs left in the queue.
    pub(crate) queued: usize,
    /// The highest number of jobs that were queued recently.
    pub(crate) peak: usize,
    /// Jobs in the inbox, and their weight.
    pub(crate) taken: usize,
    pub(crate) weight: u128,
    /// Jobs that the current flush covered and that have left the queue.
    pub(crate) flush_passed: usize,
    /// Set if flushes were requested: how many jobs at the front of the queue they
    /// cover.
    pub(crate) flush_ahead: Option<usize>,
}

/// What the worker knows already and need not be woken for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) closed: bool,
    pub(crate) flushing: bool,
}

impl<J, R> Queue<J, R> {
    /// Moves up to `limit` jobs into the inbox, which has none, admits waiters into the
    /// freed room, and returns what else has happened. While the worker is `flushing`,
    /// further requests to flush stay where they are.
    pub(crate) fn receive(
        &self,
        now: Instant,
        limit: usize,
        flushing: bool,
        inbox: &mut Inbox<J, R>,
    ) -> Received {
        let mut state = self.lock();
        let own_waker = state.unpark();
        mem::swap(&mut state.finished_batches, &mut inbox.finished_batches);
        let queued = state.jobs.len();
        state.peak.record(queued);
        state.accept_times.record(queued, now);
        state.received_at = now;
        let requested = match flushing {
            true => None,
            false => state.take_flush_requests(&mut inbox.flush_replies),
        };
        // A stop flushes everything anyway.
        let covered = requested.filter(|_| !state.closed).unwrap_or(usize::MAX);
        let mut limit = limit.min(covered);
        let mut bound = usize::MAX;
        if limit <= state.current_flush.reported {
            // No more than the flush covers, of which some may have been withdrawn.
            bound = state.current_flush.ahead;
            limit = limit.min(bound);
        }
        let taken = state.take(limit, bound, inbox);
        if self.options.cancel_on_drop {
            let withdrawals = inbox.jobs.iter().filter_map(PendingJob::withdrawal);
            withdrawals.for_each(|withdrawal| withdrawal.set_pending(state.generation));
        }
        state.stats.take_up(inbox.jobs.len());
        let wakers = self.admit_waiters(&mut state);
        let FlushTarget { ahead, reported } = state.current_flush;
        state.current_flush.reported = ahead;
        let received = Received {
            closed: state.closed,
            cancel_woken: mem::take(&mut state.cancel_woken),
            control_changed: mem::take(&mut state.control_changed),
            queued: state.jobs.len(),
            peak: state.peak.get(),
            taken: inbox.jobs.len(),
            weight: taken.weight,
            flush_passed: reported - ahead,
            flush_ahead: requested.map(|_| ahead),
        };
        drop(state);
        discard(own_waker, None);
        wakers.into_iter().for_each(wake);
        discard(taken.withdrawn, self.name());
        received
    }

    /// Waits until something happens that the worker has not `seen`, or the queue holds
    /// what it `wants`. The worker is parked meanwhile.
    pub(crate) async fn changed(&self, seen: Seen, wants: Option<Wants>, stride: usize) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let mut state = self.lock();
            if !state.finished_batches.is_empty()
                || (!seen.flushing && !state.flush_requests.is_empty())
                || (state.closed && !seen.closed)
                || state.cancel_woken
                || state.control_changed
                || !state.withdrawn_pending.is_empty()
                || state.satisfies(wants, self.options.capacity)
            {
                drop(state);
                discard([waker], None);
                return Poll::Ready(());
            }
            let last = state.parked.replace(ParkedWorker { waker, wants });
            if last.is_none() && state.has_untimed() {
                // They came while the worker was not parked, and may be the first of
                // their batch. The worker, woken for nothing, did not receive them.
                let queued = state.jobs.len();
                state.accept_times.record(queued, Instant::now());
            }
            state.stride = stride;
            state.check_at = match wants {
                _ if state.time_each => 0,
                Some(wants) => wants.jobs.min(self.options.capacity - state.reserved),
                None => state.next_first(),
            };
            drop(state);
            discard(last.map(|parked| parked.waker), None);
            Poll::Pending
        })
        .await;
    }

    /// Takes the pending jobs that were withdrawn.
    pub(crate) fn take_withdrawn_pending(&self) -> Vec<Arc<Withdrawal>> {
        mem::take(&mut self.lock().withdrawn_pending)
    }

    pub(crate) fn has_withdrawn_pending(&self) -> bool {
        !self.lock().withdrawn_pending.is_empty()
    }

    /// Counts all pending jobs as abandoned, and returns how many. A handle that is
    /// dropped later finds its job of an earlier generation, and counts it no more.
    pub(crate) fn abandon_pending(&self) -> usize {
        let mut state = self.lock();
        state.generation += 1;
        state.withdrawn_pending.clear();
        let jobs = state.stats.pending;
        state.stats.abandon_pending(jobs);
        drop(state);
        self.release_shared_room(jobs);
        jobs
    }

    /// Closes the queue and abandons its jobs, because no worker will receive them.
    /// Returns how many.
    pub(crate) fn abandon_queued(&self) -> usize {
        self.close();
        let mut state = self.lock();
        state.abandoned = true;
        let jobs = mem::take(&mut state.jobs);
        let flush_requests = mem::take(&mut state.flush_requests);
        let abandoned = jobs.len() - mem::take(&mut state.withdrawn);
        let withdrawals = jobs.iter().filter_map(PendingJob::withdrawal);
        withdrawals.for_each(Withdrawal::leave_queue);
        state.accept_times.clear();
        state.weight = 0;
        state.stats.abandon_queued(abandoned);
        drop(state);
        discard(jobs, self.name());
        drop(flush_requests);
        self.release_shared_room(abandoned);
        abandoned
    }
}

/// What was taken out of the queue beside the jobs for the worker.
struct Taken<J, R> {
    weight: u128,
    withdrawn: Vec<PendingJob<J, R>>,
}

impl<J, R> QueueState<J, R> {
    fn has_untimed(&self) -> bool {
        self.accept_times.timed() < self.jobs.len()
    }

    /// Makes the requests to flush the current flush, and returns how many jobs it
    /// covers; `None` if there are no requests.
    fn take_flush_requests(&mut self, replies: &mut Vec<ReplySender<()>>) -> Option<usize> {
        let ahead = self.flush_requests.last()?.ahead;
        let requests = self.flush_requests.drain(..);
        replies.extend(requests.filter_map(|request| request.reply));
        self.current_flush = FlushTarget {
            ahead,
            reported: ahead,
        };
        Some(ahead)
    }

    /// Moves up to `limit` of the first `bound` jobs into the inbox.
    fn take(&mut self, limit: usize, bound: usize, inbox: &mut Inbox<J, R>) -> Taken<J, R> {
        let mut withdrawn = Vec::new();
        let weight;
        let passed;
        if self.withdrawn > 0 {
            passed = self.take_one_by_one(limit, bound, inbox, &mut withdrawn);
            weight = total_weight(&inbox.jobs);
            self.weight -= weight;
        } else if limit >= self.jobs.len() {
            mem::swap(&mut self.jobs, &mut inbox.jobs);
            passed = inbox.jobs.len();
            weight = mem::take(&mut self.weight);
            self.accept_times.take_all(&mut inbox.accept_times);
        } else {
            inbox.jobs.extend(self.jobs.drain(..limit));
            passed = limit;
            weight = total_weight(&inbox.jobs);
            self.weight -= weight;
            self.accept_times.take(limit, &mut inbox.accept_times);
        }
        self.peak.trim(&mut self.jobs);
        self.accept_times.trim(&self.peak);
        self.current_flush.ahead = self.current_flush.ahead.saturating_sub(passed);
        for request in &mut self.flush_requests {
            request.ahead = request.ahead.saturating_sub(passed);
        }
        Taken { weight, withdrawn }
    }

    /// Moves jobs one by one and leaves out those that are withdrawn. Returns how many
    /// left the queue.
    fn take_one_by_one(
        &mut self,
        limit: usize,
        bound: usize,
        inbox: &mut Inbox<J, R>,
        withdrawn: &mut Vec<PendingJob<J, R>>,
    ) -> usize {
        let mut passed = 0;
        let mut dropped = Vec::new();
        while inbox.jobs.len() < limit && passed < bound {
            let Some(job) = self.jobs.pop_front() else {
                break;
            };
            passed += 1;
            if job.is_withdrawn() {
                self.withdrawn -= 1;
                withdrawn.push(job);
                self.accept_times.take(1, &mut dropped);
            } else {
                inbox.jobs.push_back(job);
                self.accept_times.take(1, &mut inbox.accept_times);
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::super::QueueOptions;
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn a_long_queue_leaves_no_memory() {
        let queue = Queue::<u64, ()>::new(
            QueueOptions {
                name: None,
                capacity: usize::MAX,
                cancel_on_drop: false,
                custom_storage: false,
                weighs: false,
            },
            Settings::DEFAULT,
        );
        let push = |count| {
            for job in 0..count {
                assert!(matches!(queue.push(PendingJob::new(job, 0).0), Ok(None)));
            }
        };
        let receive = |limit| {
            let mut inbox = Inbox::default();
            let received = queue.receive(Instant::now(), limit, true, &mut inbox);
            let timed: usize = inbox.accept_times.iter().map(|(_, count)| count).sum();
            assert_eq!(timed, received.taken);
            received.taken
        };
        push(100_000);
        while receive(1000) > 0 {}
        for _ in 0..10 {
            push(10);
            assert_eq!(receive(1000), 10);
        }
        assert!(queue.lock().jobs.capacity() < 200);
    }
}
