//! What is pending and when it is due: a state machine without I/O. It holds
//! counts and times, never jobs; the worker tells it what happens and does
//! what it says.
//!
//! # Invariants
//!
//! - Nothing is due while `max_in_flight` batches are in flight.
//! - The clock runs from the moment the oldest pending job was accepted, and
//!   later jobs do not touch it.
//! - With nothing pending there is no deadline but that of a stop.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::intake::Wants;
use crate::report::FlushReason;

/// The limits and choices that decide when a batch is due.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Policy {
    pub(crate) max_batch_size: usize,
    /// `usize::MAX` where weight does not matter.
    pub(crate) max_batch_weight: usize,
    pub(crate) interval: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) flush_when_idle: bool,
    pub(crate) flush_cost: Option<Duration>,
    pub(crate) shutdown_timeout: Duration,
    /// How many jobs may be pending before the others are left in the queue; at
    /// least `max_batch_size`.
    pub(crate) backlog: usize,
    /// The storage is a user's own, which is told of every job at once and is
    /// offered more than a batch to choose from.
    pub(crate) chooses: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pending {
    policy: Policy,
    jobs: usize,
    weight: u128,
    /// How many pending jobs were accepted when, oldest first.
    arrivals: VecDeque<(Instant, usize)>,
    /// The arrivals of all pending jobs, summed, in nanoseconds after `epoch`;
    /// which is the arrival of the first of them since there was none.
    arrived: u128,
    epoch: Instant,
    in_flight: usize,
    /// How many jobs of the queue a requested flush still has to wait for.
    flushing: Option<usize>,
    stopping: Option<Stop>,
    stalled: Option<Stall>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stop {
    /// `None` where the deadline is beyond the end of time.
    deadline: Option<Instant>,
}

/// The storage holds jobs and gave none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stall {
    /// When to ask it again, though nothing has happened.
    again: Option<Instant>,
}

impl Pending {
    pub(crate) fn new(policy: Policy, now: Instant) -> Self {
        Self {
            policy,
            jobs: 0,
            weight: 0,
            arrivals: VecDeque::new(),
            arrived: 0,
            epoch: now,
            in_flight: 0,
            flushing: None,
            stopping: None,
            stalled: None,
        }
    }

    // What happens.

    /// That many jobs were taken up, which were accepted at that time and after all
    /// that are pending. Returns the time under which they are kept.
    pub(crate) fn arrive(&mut self, jobs: usize, accepted: Instant) -> Instant {
        let last = self.arrivals.back().map(|(time, _)| *time);
        let accepted = last.map_or(accepted, |last| last.max(accepted));
        if self.jobs == 0 {
            self.epoch = accepted;
        }
        self.jobs += jobs;
        self.arrived += self.since_epoch(accepted, jobs);
        match self.arrivals.back_mut() {
            Some((time, count)) if *time == accepted => *count += jobs,
            _ => self.arrivals.push_back((accepted, jobs)),
        }
        self.stalled = None;
        accepted
    }

    /// What was taken up weighs that much.
    pub(crate) fn weigh(&mut self, weight: u128) {
        self.weight += weight;
    }

    /// That many jobs of that weight have left, the oldest first.
    pub(crate) fn leave(&mut self, jobs: usize, weight: u128) {
        self.jobs -= jobs;
        self.weight -= weight;
        let mut left = jobs;
        while left > 0 {
            let Some((time, count)) = self.arrivals.front_mut() else {
                break;
            };
            let time = *time;
            let of_these = left.min(*count);
            *count -= of_these;
            if *count == 0 {
                self.arrivals.pop_front();
            }
            left -= of_these;
            self.arrived -= self.since_epoch(time, of_these);
        }
    }

    /// A job of that weight, accepted at that time, has left.
    pub(crate) fn leave_one(&mut self, weight: u128, accepted: Instant) {
        let Ok(at) = self.arrivals.binary_search_by_key(&accepted, |run| run.0) else {
            return;
        };
        self.jobs -= 1;
        self.weight = self.weight.saturating_sub(weight);
        self.arrived = self.arrived.saturating_sub(self.since_epoch(accepted, 1));
        self.arrivals[at].1 -= 1;
        if self.arrivals[at].1 == 0 {
            self.arrivals.remove(at);
        }
    }

    /// All pending jobs are gone, nobody knows where.
    pub(crate) fn forget(&mut self) {
        self.arrivals.clear();
        self.arrived = 0;
        self.weight = 0;
        self.jobs = 0;
    }

    /// The storage gave nothing: leave it alone for an interval, or until
    /// something happens.
    pub(crate) fn stall(&mut self, now: Instant) {
        self.stalled = Some(Stall {
            again: after(now, self.policy.interval),
        });
    }

    /// A batch was started.
    pub(crate) fn started(&mut self) {
        self.in_flight += 1;
    }

    /// A batch has ended.
    pub(crate) fn finished(&mut self) {
        self.in_flight -= 1;
        self.stalled = None;
    }

    /// A flush of what is pending and of that many jobs of the queue was
    /// requested.
    pub(crate) fn flush(&mut self, ahead: usize) {
        // A stop flushes all there is.
        if self.stopping.is_none() {
            self.flushing = Some(ahead);
        }
        self.stalled = None;
    }

    /// That many jobs left the queue.
    pub(crate) fn took(&mut self, jobs: usize) {
        if let Some(ahead) = &mut self.flushing {
            *ahead = ahead.saturating_sub(jobs);
        }
    }

    /// Everything that a requested flush meant has been cut.
    pub(crate) fn flushed(&mut self) -> bool {
        self.flushing
            .take_if(|ahead| *ahead == 0 && self.jobs == 0)
            .is_some()
    }

    /// No more jobs will come, and those there are must go.
    pub(crate) fn stop(&mut self, now: Instant) {
        let deadline = after(now, self.policy.shutdown_timeout);
        self.stopping = Some(Stop { deadline });
        self.flushing = None;
        self.stalled = None;
    }

    // What to do.

    /// How many jobs to take out of the queue: none beyond a full batch, unless
    /// the storage is one that chooses, and none beyond what a requested flush
    /// means.
    pub(crate) fn room(&self) -> usize {
        let full = self.is_full_by_weight() && !self.policy.chooses;
        let room = if full {
            0
        } else {
            self.policy.backlog.saturating_sub(self.jobs)
        };
        // Except where the storage holds back what it has, and may give it
        // together with jobs to come.
        let meant = self.flushing.filter(|_| self.stalled.is_none());
        room.min(meant.unwrap_or(usize::MAX))
    }

    /// Why a batch is to be cut now, if it is.
    pub(crate) fn due(&self, now: Instant) -> Option<FlushReason> {
        let policy = &self.policy;
        if self.jobs == 0 || self.in_flight >= policy.max_in_flight {
            return None;
        }
        let over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.stalled.is_some_and(|stall| !over(stall.again)) {
            None
        } else if self.jobs >= policy.max_batch_size {
            Some(FlushReason::Size)
        } else if self.is_full_by_weight() {
            Some(FlushReason::Weight)
        } else if self.stopping.is_some() {
            Some(FlushReason::Shutdown)
        } else if self.flushing.is_some() {
            Some(FlushReason::Requested)
        } else if over(self.flush_at()) {
            Some(FlushReason::Interval)
        } else if policy.flush_when_idle && self.in_flight == 0 {
            Some(FlushReason::Idle)
        } else if over(self.costs_at()) {
            Some(FlushReason::Cost)
        } else {
            None
        }
    }

    /// Whether the pending jobs weigh all that a batch may, or more.
    pub(crate) fn is_full_by_weight(&self) -> bool {
        self.weight >= self.policy.max_batch_weight as u128
    }

    /// When to look again although nothing has happened. Means nothing while a
    /// batch is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stop = self.stopping.and_then(|stop| stop.deadline);
        let could_start = self.jobs > 0 && self.in_flight < self.policy.max_in_flight;
        let flush = match self.stalled {
            _ if !could_start => None,
            Some(stall) => stall.again,
            None => self.flush_at().into_iter().chain(self.costs_at()).min(),
        };
        stop.into_iter().chain(flush).min()
    }

    /// How many queued jobs would make a difference. One if there is a clock
    /// to start or to put forward, or a storage that wants to know of each; else
    /// as many as would fill the batch.
    pub(crate) fn wants(&self) -> Option<Wants> {
        if self.room() == 0 {
            return None;
        }
        let policy = &self.policy;
        let each = policy.chooses || policy.flush_cost.is_some();
        let jobs = if self.jobs == 0 || each {
            1
        } else {
            policy.max_batch_size - self.jobs
        };
        let pending = usize::try_from(self.weight).unwrap_or(usize::MAX);
        let weight = policy.max_batch_weight.saturating_sub(pending);
        Some(Wants { jobs, weight })
    }

    /// While nothing is taken out of the queue, every so many jobs in it one is the
    /// first of its batch; or any may be.
    pub(crate) fn stride(&self) -> usize {
        let policy = &self.policy;
        let any = policy.chooses
            || policy.flush_cost.is_some()
            || policy.max_batch_weight < usize::MAX
            || self.flushing.is_some();
        if any { 1 } else { policy.max_batch_size }
    }

    /// How many jobs are pending.
    pub(crate) fn len(&self) -> usize {
        self.jobs
    }

    /// What all pending jobs weigh.
    pub(crate) fn weight(&self) -> u128 {
        self.weight
    }

    /// How long the first pending job has waited.
    pub(crate) fn waited(&self, now: Instant) -> Duration {
        self.arrivals.front().map_or(Duration::ZERO, |(first, _)| {
            now.saturating_duration_since(*first)
        })
    }

    pub(crate) fn is_flushing(&self) -> bool {
        self.flushing.is_some()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether a stop has nothing left to wait for.
    pub(crate) fn is_drained(&self) -> bool {
        self.stopping.is_some() && self.jobs == 0 && self.in_flight == 0
    }

    /// Whether a stop has run out of time.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        let deadline = self.stopping.and_then(|stop| stop.deadline);
        deadline.is_some_and(|deadline| deadline <= now)
    }

    /// When the first pending job has waited for the interval.
    fn flush_at(&self) -> Option<Instant> {
        let (first, _) = self.arrivals.front()?;
        after(*first, self.policy.interval)
    }

    /// When the pending jobs have together waited as long as a flush costs: the
    /// `n`th part of the cost after the mean of their arrivals, if there are
    /// `n`. So each job that joins brings it nearer.
    fn costs_at(&self) -> Option<Instant> {
        let cost = self.policy.flush_cost?;
        let jobs = self.jobs as u128;
        let total = self.arrived.checked_add(cost.as_nanos())?;
        let wait = u64::try_from(total.checked_add(jobs - 1)? / jobs).ok()?;
        after(self.epoch, Duration::from_nanos(wait))
    }

    /// What that many arrivals at that time sum to; nothing where no cost has to
    /// be set against it.
    fn since_epoch(&self, time: Instant, jobs: usize) -> u128 {
        if self.policy.flush_cost.is_none() {
            return 0;
        }
        (time - self.epoch).as_nanos() * jobs as u128
    }
}

/// Returns the time that much later, unless that is beyond what a timer can be
/// set to.
fn after(time: Instant, delay: Duration) -> Option<Instant> {
    // The runtime's timer rounds up.
    let rounded = delay.checked_add(Duration::from_secs(1))?;
    time.checked_add(rounded)?;
    time.checked_add(delay)
}
