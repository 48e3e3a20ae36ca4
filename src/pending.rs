//! What is pending and when it is due: a state machine without I/O. It holds
//! counts and times, never jobs; the worker tells it what happens and does
//! what it says.
//!
//! # Invariants
//!
//! - Nothing is due while `max_in_flight` batches are in flight.
//! - The clock runs from the moment the oldest pending job was taken up, and
//!   later jobs do not touch it.
//! - With nothing pending there is no deadline but that of a stop.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::intake::Wants;
use crate::report::FlushReason;

/// The limits and choices that decide when a batch is due.
#[derive(Debug, Clone)]
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

#[derive(Debug, Clone)]
pub(crate) struct Pending {
    policy: Policy,
    jobs: usize,
    weight: usize,
    /// How many pending jobs were taken up when, oldest first.
    arrivals: VecDeque<(Instant, usize)>,
    /// How long after the oldest job all the others were taken up, summed, in
    /// nanoseconds. Kept for `flush_cost` alone.
    behind: u128,
    in_flight: usize,
    /// How many jobs of the queue a requested flush still has to wait for.
    flushing: Option<usize>,
    stopping: Option<Stop>,
    /// The storage holds jobs and gave none.
    stalled: bool,
}

#[derive(Debug, Clone, Copy)]
struct Stop {
    /// `None` where the deadline is beyond the end of time.
    deadline: Option<Instant>,
}

impl Pending {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            jobs: 0,
            weight: 0,
            arrivals: VecDeque::new(),
            behind: 0,
            in_flight: 0,
            flushing: None,
            stopping: None,
            stalled: false,
        }
    }

    // What happens.

    /// That many jobs of that weight were taken up.
    pub(crate) fn arrive(&mut self, jobs: usize, weight: usize, now: Instant) {
        self.jobs += jobs;
        self.weight = self.weight.saturating_add(weight);
        self.arrivals.push_back((now, jobs));
        self.behind += self.waited(now).as_nanos() * jobs as u128;
        self.stalled = false;
    }

    /// That many pending jobs of that weight have left for their batch.
    pub(crate) fn leave(&mut self, jobs: usize, weight: usize) {
        self.weight = self.weight.saturating_sub(weight);
        // Of a storage with an order of its own nobody knows whether the oldest
        // job has left, so there the clock runs on until the storage is empty.
        let mut left = if self.policy.chooses { 0 } else { jobs };
        while let Some((_, count)) = self.arrivals.front_mut() {
            if *count > left {
                *count -= left;
                break;
            }
            left -= *count;
            self.arrivals.pop_front();
        }
        self.behind = match self.policy.flush_cost {
            Some(_) => self.sum_behind(),
            None => 0,
        };
    }

    /// The storage holds this many jobs, which a storage of the user's may
    /// have decided by itself.
    pub(crate) fn hold(&mut self, jobs: usize) {
        self.jobs = jobs;
        if jobs == 0 {
            self.weight = 0;
            self.arrivals.clear();
            self.behind = 0;
            self.stalled = false;
        }
    }

    /// The storage holds jobs and gave none: leave it alone for an interval,
    /// or until something happens.
    pub(crate) fn stall(&mut self, now: Instant) {
        if self.jobs == 0 {
            return;
        }
        self.stalled = true;
        self.arrivals.clear();
        self.arrivals.push_back((now, self.jobs));
        self.behind = 0;
    }

    /// A batch was started.
    pub(crate) fn started(&mut self) {
        self.in_flight += 1;
    }

    /// A batch has ended.
    pub(crate) fn finished(&mut self) {
        self.in_flight -= 1;
        self.stalled = false;
    }

    /// A flush of what is pending and of that many jobs of the queue was
    /// requested.
    pub(crate) fn flush(&mut self, ahead: usize) {
        self.flushing = Some(ahead);
        self.stalled = false;
    }

    /// That many jobs were taken out of the queue.
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
        let deadline = now.checked_add(self.policy.shutdown_timeout);
        self.stopping = Some(Stop { deadline });
        self.flushing = None;
        self.stalled = false;
    }

    // What to do.

    /// How many jobs to take out of the queue: none beyond a full batch, unless
    /// the storage is one that chooses.
    pub(crate) fn room(&self) -> usize {
        let full = self.weight >= self.policy.max_batch_weight && !self.policy.chooses;
        let room = if full {
            0
        } else {
            self.policy.backlog.saturating_sub(self.jobs)
        };
        room.min(self.flushing.unwrap_or(usize::MAX))
    }

    /// Why a batch is to be cut now, if it is.
    pub(crate) fn due(&self, now: Instant) -> Option<FlushReason> {
        let policy = &self.policy;
        if self.jobs == 0 || self.in_flight >= policy.max_in_flight {
            return None;
        }
        let waited = self.flush_at().is_some_and(|at| at <= now);
        if self.stalled && !waited {
            None
        } else if self.jobs >= policy.max_batch_size {
            Some(FlushReason::Size)
        } else if self.weight >= policy.max_batch_weight {
            Some(FlushReason::Weight)
        } else if self.stopping.is_some() {
            Some(FlushReason::Shutdown)
        } else if self.flushing.is_some() {
            Some(FlushReason::Requested)
        } else if waited {
            Some(FlushReason::Interval)
        } else if policy.flush_when_idle && self.in_flight == 0 {
            Some(FlushReason::Idle)
        } else if self.costs_at().is_some_and(|at| at <= now) {
            Some(FlushReason::Cost)
        } else {
            None
        }
    }

    /// When to look again although nothing has happened. Means nothing while a
    /// batch is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.stopping {
            Some(stop) => stop.deadline,
            None if self.in_flight >= self.policy.max_in_flight => None,
            None => self.flush_at().into_iter().chain(self.costs_at()).min(),
        }
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
        let weight = policy.max_batch_weight.saturating_sub(self.weight);
        Some(Wants { jobs, weight })
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
        first.checked_add(self.policy.interval)
    }

    fn sum_behind(&self) -> u128 {
        let Some((first, _)) = self.arrivals.front() else {
            return 0;
        };
        let runs = self.arrivals.iter();
        runs.map(|(time, jobs)| (*time - *first).as_nanos() * *jobs as u128)
            .sum()
    }

    /// When the pending jobs have together waited as long as a flush costs.
    ///
    /// With `n` jobs that is `cost / n` after the mean of their arrivals, so
    /// each job that joins brings it nearer.
    fn costs_at(&self) -> Option<Instant> {
        let cost = self.policy.flush_cost?;
        let (first, _) = *self.arrivals.front()?;
        let jobs = self.jobs.max(1) as u128;
        let total = self.behind.saturating_add(cost.as_nanos());
        let wait = u64::try_from(total.div_ceil(jobs)).ok()?;
        first.checked_add(Duration::from_nanos(wait))
    }
}
