//! Decides when a batch is due. A state machine without I/O: it holds counts and
//! times, never jobs. The worker tells it what happened, and does what it says.
//!
//! # Invariants
//!
//! - Nothing is due while `max_in_flight` batches are in flight.
//! - The interval runs from the moment the oldest pending job was accepted; later
//!   jobs do not touch it.
//! - With nothing pending the only deadline is that of a stop.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use tokio::time::Instant;

use crate::report::FlushReason;
use crate::settings::Settings;

/// What decides when a batch is due.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Policy {
    pub(crate) settings: Settings,
    pub(crate) queue_capacity: usize,
    pub(crate) shutdown_timeout: Duration,
    /// The storage is a user's own. It is offered every job at once, and more than a
    /// batch, because it may choose which jobs go first.
    pub(crate) custom_storage: bool,
}

impl Policy {
    /// How many jobs may be pending before the others are left in the queue.
    fn max_pending(&self) -> usize {
        match self.custom_storage {
            true => self.settings.max_batch_size.max(self.queue_capacity),
            false => self.settings.max_batch_size,
        }
    }
}

/// How many queued jobs (at least one), or how much queued weight, would let the
/// worker do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) jobs: usize,
    pub(crate) weight: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Schedule {
    policy: Policy,
    jobs: usize,
    weight: u128,
    /// How many pending jobs were accepted when, oldest first.
    accept_times: VecDeque<(Instant, usize)>,
    /// The sum of the accept times of all pending jobs, in nanoseconds after
    /// `epoch`. Kept only under `flush_cost`.
    accept_time_sum: u128,
    /// The accept time of the first job since there was none.
    epoch: Instant,
    in_flight: usize,
    /// Set during a requested flush: how many jobs of the queue it still covers.
    requested: Option<usize>,
    stop: Option<Stop>,
    stall: Option<Stall>,
    paused: bool,
    /// The settings have changed, so jobs may be heavier than a batch.
    may_be_overweight: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stop {
    /// `None` if the deadline is later than any timer can be set to.
    deadline: Option<Instant>,
}

/// The storage holds jobs and gave none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stall {
    /// When to ask it again if nothing happens before.
    retry_at: Option<Instant>,
}

impl Schedule {
    pub(crate) fn new(policy: Policy, now: Instant) -> Self {
        Self {
            policy,
            jobs: 0,
            weight: 0,
            accept_times: VecDeque::new(),
            accept_time_sum: 0,
            epoch: now,
            in_flight: 0,
            requested: None,
            stop: None,
            stall: None,
            paused: false,
            may_be_overweight: false,
        }
    }

    // What happens.

    /// Adds jobs that were accepted at this time, after all that are pending. Returns
    /// the time they are kept under.
    pub(crate) fn add(&mut self, jobs: usize, accepted: Instant) -> Instant {
        let last = self.accept_times.back().map(|(time, _)| *time);
        let accepted = last.map_or(accepted, |last| last.max(accepted));
        if self.jobs == 0 {
            self.epoch = accepted;
        }
        self.jobs += jobs;
        self.accept_time_sum += self.since_epoch(accepted, jobs);
        match self.accept_times.back_mut() {
            Some((time, count)) if *time == accepted => *count += jobs,
            _ => self.accept_times.push_back((accepted, jobs)),
        }
        self.stall = None;
        accepted
    }

    /// Adds the weight of added jobs.
    pub(crate) fn add_weight(&mut self, weight: u128) {
        self.weight += weight;
    }

    /// Removes the oldest jobs, which weigh this much.
    pub(crate) fn remove_oldest(&mut self, jobs: usize, weight: u128) {
        self.jobs -= jobs;
        self.weight -= weight;
        let mut left = jobs;
        while left > 0 {
            let Some((time, count)) = self.accept_times.front_mut() else {
                break;
            };
            let time = *time;
            let of_these = left.min(*count);
            *count -= of_these;
            if *count == 0 {
                self.accept_times.pop_front();
            }
            left -= of_these;
            self.accept_time_sum -= self.since_epoch(time, of_these);
        }
    }

    /// Removes one job of this weight that was accepted at this time.
    pub(crate) fn remove_one(&mut self, weight: u128, accepted: Instant) {
        let Ok(at) = self
            .accept_times
            .binary_search_by_key(&accepted, |run| run.0)
        else {
            return;
        };
        self.jobs -= 1;
        self.weight = self.weight.saturating_sub(weight);
        self.accept_time_sum = self
            .accept_time_sum
            .saturating_sub(self.since_epoch(accepted, 1));
        self.accept_times[at].1 -= 1;
        if self.accept_times[at].1 == 0 {
            self.accept_times.remove(at);
        }
    }

    /// Removes all pending jobs, which a storage has lost.
    pub(crate) fn clear(&mut self) {
        self.accept_times.clear();
        self.accept_time_sum = 0;
        self.weight = 0;
        self.jobs = 0;
    }

    /// Notes that the storage gave nothing. It is asked again after an interval, or
    /// when something happens.
    pub(crate) fn stall(&mut self, now: Instant) {
        self.stall = Some(Stall {
            retry_at: after(now, self.policy.settings.interval),
        });
    }

    /// A batch has started.
    pub(crate) fn batch_started(&mut self) {
        self.in_flight += 1;
    }

    /// A batch has ended.
    pub(crate) fn batch_finished(&mut self) {
        self.in_flight -= 1;
        self.stall = None;
    }

    /// A flush was requested, of what is pending and of this many jobs of the queue.
    pub(crate) fn request_flush(&mut self, ahead: usize) {
        // A stop flushes everything anyway.
        if self.stop.is_none() {
            self.requested = Some(ahead);
        }
        self.stall = None;
    }

    /// Jobs that the requested flush covers have left the queue.
    pub(crate) fn left_queue(&mut self, jobs: usize) {
        if let Some(ahead) = &mut self.requested {
            *ahead = ahead.saturating_sub(jobs);
        }
    }

    /// Ends the requested flush if all jobs it covers are in batches. Returns whether
    /// it ended.
    pub(crate) fn end_flush(&mut self) -> bool {
        self.requested
            .take_if(|ahead| *ahead == 0 && self.jobs == 0)
            .is_some()
    }

    /// A stop has begun: no more jobs will come, and all there are must go.
    pub(crate) fn stop(&mut self, now: Instant) {
        let deadline = after(now, self.policy.shutdown_timeout);
        self.stop = Some(Stop { deadline });
        self.requested = None;
        self.stall = None;
        self.paused = false;
    }

    /// The settings have changed.
    pub(crate) fn reconfigure(&mut self, settings: Settings) {
        self.policy.settings = settings;
        // The limit may have been raised and lowered again since the last turn.
        self.may_be_overweight |= settings.max_batch_weight < usize::MAX;
        let times = mem::take(&mut self.accept_times);
        let since_epoch = times
            .iter()
            .map(|(time, jobs)| self.since_epoch(*time, *jobs));
        self.accept_time_sum = since_epoch.sum();
        self.accept_times = times;
        self.stall = None;
    }

    /// No batch is due while paused, but for a stop.
    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.paused = paused && self.stop.is_none();
    }

    // What to do.

    /// How many jobs to take out of the queue. Not more than fill a batch, or than a
    /// storage of the user's may hold; not more than a requested flush covers.
    pub(crate) fn take_limit(&self) -> usize {
        let full = self.is_full_by_weight() && !self.policy.custom_storage;
        let limit = if full {
            0
        } else {
            self.policy.max_pending().saturating_sub(self.jobs)
        };
        // A storage that holds its jobs back may need later ones to give them.
        let covered = self.requested.filter(|_| self.stall.is_none());
        limit.min(covered.unwrap_or(usize::MAX))
    }

    /// Whether a batch is to be cut now, and why. The order of the arms is the order
    /// of precedence; see [`FlushReason`]. The worker says `Weight` instead of `Size` if
    /// the batch turns out to be full by weight.
    pub(crate) fn due(&self, now: Instant) -> Option<FlushReason> {
        let policy = &self.policy;
        if !self.could_start() {
            return None;
        }
        let over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.stall.is_some_and(|stall| !over(stall.retry_at)) {
            None
        } else if self.jobs >= policy.settings.max_batch_size {
            Some(FlushReason::Size)
        } else if self.is_full_by_weight() {
            Some(FlushReason::Weight)
        } else if self.stop.is_some() {
            Some(FlushReason::Shutdown)
        } else if self.requested.is_some() {
            Some(FlushReason::Requested)
        } else if over(self.interval_at()) {
            Some(FlushReason::Interval)
        } else if policy.settings.flush_when_idle && self.in_flight == 0 {
            Some(FlushReason::Idle)
        } else if over(self.cost_at()) {
            Some(FlushReason::Cost)
        } else {
            None
        }
    }

    /// Whether the pending jobs weigh all that a batch may, or more.
    pub(crate) fn is_full_by_weight(&self) -> bool {
        self.weight >= self.policy.settings.max_batch_weight as u128
    }

    /// When to ask [`due`](Self::due) again if nothing happens before. Meaningless
    /// while a batch is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stop = self.stop_deadline();
        let flush = match self.stall {
            _ if !self.could_start() => None,
            Some(stall) => stall.retry_at,
            None => self.interval_at().into_iter().chain(self.cost_at()).min(),
        };
        stop.into_iter().chain(flush).min()
    }

    /// When a stop runs out of time.
    pub(crate) fn stop_deadline(&self) -> Option<Instant> {
        self.stop.and_then(|stop| stop.deadline)
    }

    fn could_start(&self) -> bool {
        self.jobs > 0 && self.in_flight < self.policy.settings.max_in_flight && !self.paused
    }

    /// What the worker should be woken for. One job, if it starts the interval, brings
    /// the deadline nearer, or is to be offered to a storage of the user's; otherwise
    /// as many as fill the batch.
    pub(crate) fn wants(&self) -> Option<Wants> {
        if self.take_limit() == 0 {
            return None;
        }
        let policy = &self.policy;
        let each = policy.custom_storage || policy.settings.flush_cost.is_some();
        let jobs = if self.jobs == 0 || each {
            1
        } else {
            policy.settings.max_batch_size - self.jobs
        };
        let pending = usize::try_from(self.weight).unwrap_or(usize::MAX);
        let weight = policy.settings.max_batch_weight.saturating_sub(pending);
        Some(Wants { jobs, weight })
    }

    /// How many consecutive jobs of the queue will certainly share a batch, so that
    /// only the first of them needs its accept time. One if any job may become the
    /// first of a batch.
    pub(crate) fn stride(&self) -> usize {
        let policy = &self.policy;
        let any = policy.custom_storage
            || policy.settings.flush_cost.is_some()
            || policy.settings.max_batch_weight < usize::MAX
            || self.requested.is_some()
            // The size was lowered, and the first queued job may join some of them.
            || self.jobs > policy.settings.max_batch_size;
        if any {
            1
        } else {
            policy.settings.max_batch_size
        }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a pending job may be heavier than a batch may be.
    pub(crate) fn may_be_overweight(&self) -> bool {
        self.may_be_overweight
    }

    /// How many jobs are pending.
    pub(crate) fn len(&self) -> usize {
        self.jobs
    }

    /// The summed weight of the pending jobs.
    pub(crate) fn weight(&self) -> u128 {
        self.weight
    }

    /// How long the oldest pending job has waited.
    pub(crate) fn waited(&self, now: Instant) -> Duration {
        self.accept_times
            .front()
            .map_or(Duration::ZERO, |(first, _)| {
                now.saturating_duration_since(*first)
            })
    }

    pub(crate) fn is_flushing(&self) -> bool {
        self.requested.is_some()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether a stop has nothing left to do here.
    pub(crate) fn is_drained(&self) -> bool {
        self.stop.is_some() && self.jobs == 0 && self.in_flight == 0
    }

    /// Whether a stop has run out of time.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.stop_deadline().is_some_and(|deadline| deadline <= now)
    }

    /// When the oldest pending job has waited for the interval.
    fn interval_at(&self) -> Option<Instant> {
        let (first, _) = self.accept_times.front()?;
        after(*first, self.policy.settings.interval)
    }

    /// When the `n` pending jobs have together waited for `flush_cost`: an `n`th of the
    /// cost after the mean of their accept times. Each further job brings it nearer.
    fn cost_at(&self) -> Option<Instant> {
        let cost = self.policy.settings.flush_cost?;
        let jobs = self.jobs as u128;
        let total = self.accept_time_sum.checked_add(cost.as_nanos())?;
        let wait = u64::try_from(total.checked_add(jobs - 1)? / jobs).ok()?;
        after(self.epoch, Duration::from_nanos(wait))
    }

    /// What this many jobs of this accept time add to `accept_time_sum`.
    fn since_epoch(&self, time: Instant, jobs: usize) -> u128 {
        if self.policy.settings.flush_cost.is_none() {
            return 0;
        }
        (time - self.epoch).as_nanos() * jobs as u128
    }
}

/// Returns the time after a delay, or `None` if no timer can be set to it.
fn after(time: Instant, delay: Duration) -> Option<Instant> {
    // Tokio's timer rounds up to the next millisecond.
    let rounded = delay.checked_add(Duration::from_secs(1))?;
    time.checked_add(rounded)?;
    time.checked_add(delay)
}
