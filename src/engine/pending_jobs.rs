//! The pending jobs: the storage that holds them, and the schedule that counts them.
//!
//! # Invariants
//!
//! - A job that the storage took in is counted once by the schedule and by
//!   `Stats::pending`, and uncounted once: when it goes into a batch, when the storage
//!   drops it, or when it is withdrawn.
//! - No batch exceeds its limits, whatever the storage gives. It is user code: it may
//!   panic, drop jobs, and give more or fewer than it was asked for.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{error, warn};

use super::departures::Departures;
use super::panics::{Shielded, catch, discard, trace};
use super::queue::{Inbox, Queue};
use super::schedule::{Policy, Schedule};
use crate::job::{PendingJob, total_weight};
use crate::storage::{BatchStorage, fitting};

pub(super) struct PendingJobs<J, R, S> {
    queue: Arc<Queue<J, R>>,
    pub(super) schedule: Schedule,
    storage: Shielded<S>,
    /// What has left the storage, if jobs are counted one by one.
    departures: Arc<Departures>,
    /// Withdrawn jobs that are still in the storage.
    withdrawn: usize,
}

impl<J, R, S: BatchStorage<J, R>> PendingJobs<J, R, S> {
    pub(super) fn new(queue: Arc<Queue<J, R>>, policy: Policy, storage: S) -> Self {
        Self {
            queue,
            schedule: Schedule::new(policy, Instant::now()),
            storage: Shielded::new(storage),
            departures: Arc::default(),
            withdrawn: 0,
        }
    }

    /// Counts the jobs of the inbox and puts them into the storage.
    pub(super) fn add(&mut self, inbox: &mut Inbox<J, R>, weight: u128, now: Instant) {
        let one_by_one = self.counts_one_by_one();
        let mut jobs = inbox.jobs.iter_mut();
        for (accepted, count) in inbox.accept_times.drain(..) {
            // A thread outside the runtime may have another clock.
            let accepted = self.schedule.add(count, accepted.min(now));
            if one_by_one {
                for job in jobs.by_ref().take(count) {
                    job.report_departure(&self.departures, accepted);
                }
            }
        }
        self.schedule.add_weight(weight);
        self.call_storage(|storage| storage.append_all(&mut inbox.jobs));
        // What a panic has left behind.
        while let Some(job) = inbox.jobs.pop_front() {
            self.append(job);
        }
        let dropped = self.uncount_departed();
        self.abandon_dropped(dropped);
    }

    /// Whether jobs report their departures. Otherwise the storage is the default one,
    /// which gives the oldest first and loses none.
    fn counts_one_by_one(&self) -> bool {
        self.schedule.policy().custom_storage || self.queue.cancels_on_drop()
    }

    /// Uncounts the jobs that were withdrawn, and clears the storage of them once they
    /// are at least half of what it holds. A storage of the user's sees all its jobs
    /// being taken, and the others being appended again in the order of acceptance.
    pub(super) fn remove_withdrawn(&mut self) {
        let withdrawn = self.queue.take_withdrawn_pending();
        self.withdrawn += withdrawn.len();
        for job in withdrawn {
            if let Some(accepted) = job.accepted() {
                self.schedule.remove_one(job.weight() as u128, accepted);
            }
        }
        if self.withdrawn == 0 || self.withdrawn < self.schedule.len() {
            return;
        }
        let all = self.take(usize::MAX, usize::MAX);
        let (withdrawn, mut kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(PendingJob::is_withdrawn);
        self.withdrawn = self.withdrawn.saturating_sub(withdrawn.len());
        if self.schedule.policy().custom_storage {
            kept.sort_by_key(PendingJob::accepted);
        }
        for job in kept {
            self.append(job);
        }
        discard(withdrawn, self.queue.name());
        let dropped = self.uncount_departed();
        self.abandon_dropped(dropped);
    }

    /// Takes the jobs of the next batch.
    pub(super) fn cut(&mut self) -> Vec<PendingJob<J, R>> {
        let settings = &self.schedule.policy().settings;
        let (max_jobs, max_weight) = (settings.max_batch_size, settings.max_batch_weight);
        if !self.counts_one_by_one() {
            let mut batch = self.take(max_jobs, max_weight);
            if batch.is_empty() && self.schedule.may_be_overweight() {
                batch = self.take(1, usize::MAX);
            }
            let weight = match self.schedule.weight() {
                0 => 0,
                _ => total_weight(&batch),
            };
            self.schedule.remove_oldest(batch.len(), weight);
            return batch;
        }
        let mut batch = Vec::new();
        let (mut jobs, mut weight) = (max_jobs, max_weight);
        loop {
            let mut taken = self.take(jobs, weight);
            let mut fits = fitting(taken.iter().take(jobs), weight);
            if fits == 0 && batch.is_empty() && self.schedule.may_be_overweight() {
                // A job that was accepted under another limit goes alone.
                if taken.is_empty() {
                    taken = self.take(1, usize::MAX);
                }
                fits = taken.len().min(1);
                weight = usize::MAX;
                jobs = fits;
            }
            for excess in taken.split_off(fits) {
                self.append(excess);
            }
            let (kept, withdrawn): (Vec<_>, Vec<_>) = taken
                .into_iter()
                .map(|mut job| (job.leave_storage(), job))
                .partition(|(kept, _)| *kept);
            let mut kept: Vec<_> = kept.into_iter().map(|(_, job)| job).collect();
            jobs -= kept.len();
            weight -= kept.iter().map(PendingJob::weight).sum::<usize>();
            batch.append(&mut kept);
            self.withdrawn = self.withdrawn.saturating_sub(withdrawn.len());
            // Other jobs take the place of the withdrawn ones.
            let more = !withdrawn.is_empty() && jobs > 0;
            discard(withdrawn.into_iter().map(|(_, job)| job), self.queue.name());
            if !more {
                break;
            }
        }
        let departed = self.uncount_departed();
        self.abandon_dropped(departed.saturating_sub(batch.len()));
        batch
    }

    /// Notes that the storage gave nothing although jobs are pending. If it says that
    /// it is empty they are abandoned; otherwise it is left alone for an interval.
    pub(super) fn stall_or_abandon(&mut self, now: Instant) {
        if self.queue.cancels_on_drop() && self.queue.has_withdrawn_pending() {
            // They may be all there was.
            return;
        }
        let held = self.call_storage(|storage| storage.len());
        if held == Some(0) {
            self.schedule.clear();
            self.withdrawn = 0;
            let lost = self.queue.abandon_pending();
            self.warn_of_lost(lost);
        } else {
            self.schedule.stall(now);
        }
    }

    /// Abandons all pending jobs, and returns how many.
    pub(super) fn abandon_all(&mut self) -> usize {
        let abandoned = self.queue.abandon_pending();
        let jobs = catch(|| self.storage.get_mut().take(usize::MAX, usize::MAX));
        discard(jobs.into_iter().flatten(), self.queue.name());
        // They are counted.
        self.departures.take();
        self.withdrawn = 0;
        abandoned
    }

    /// Uncounts the jobs that have left the storage, and returns how many.
    fn uncount_departed(&mut self) -> usize {
        if !self.counts_one_by_one() {
            return 0;
        }
        let departures = self.departures.take();
        for (weight, accepted) in &departures {
            self.schedule.remove_one(*weight as u128, *accepted);
        }
        departures.len()
    }

    /// Counts jobs that the storage has dropped.
    fn abandon_dropped(&self, jobs: usize) {
        if jobs > 0 {
            self.queue.count(|stats| stats.abandon_pending(jobs));
            self.warn_of_lost(jobs);
        }
    }

    fn warn_of_lost(&self, jobs: usize) {
        if jobs > 0 {
            let name = self.queue.name();
            trace(|| warn!(name, abandoned = jobs, "the storage lost jobs"));
        }
    }

    fn append(&mut self, job: PendingJob<J, R>) {
        self.call_storage(|storage| storage.append(job));
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>> {
        self.call_storage(|storage| storage.take(max_jobs, max_weight))
            .unwrap_or_default()
    }

    fn call_storage<T>(&mut self, call: impl FnOnce(&mut S) -> T) -> Option<T> {
        let result = catch(|| call(self.storage.get_mut()));
        result
            .inspect_err(|error| {
                let name = self.queue.name();
                trace(|| error!(name, %error, "the storage panicked"));
            })
            .ok()
    }
}
