//! What must hold of any run, judged by what was seen of it.
//!
//! The model knows no loop and no queue. It knows what was asked for, what the
//! processor was given, what the callers were told, and when; and it checks
//! the promises against these.

use std::ops::Range;

use microbatch::FlushReason;

use super::doubles::value_of;
use super::panics;
use super::scenario::{Scenario, Storage};
use super::seen::{
    Admission, Asked, BatchSeen, End, Handle, JobSeen, Limits, Moment, Outcome, Report, Seen, Way,
};

/// A timer may be that late.
const LATE: u64 = 1;

pub(crate) fn judge(scenario: &Scenario, seen: &Seen) -> Vec<String> {
    let mut model = Model {
        scenario,
        seen,
        stopped: seen.stopped(),
        wrong: Vec::new(),
    };
    for (id, job) in seen.jobs.iter().enumerate() {
        model.job(id, job);
    }
    for (number, batch) in seen.batches.iter().enumerate() {
        model.batch(number, batch);
    }
    model.failures();
    model.order();
    model.reservations();
    model.flushes();
    model.shutdowns();
    model.stats();
    model.waiting();
    model.storage();
    model.wrong
}

struct Model<'a> {
    scenario: &'a Scenario,
    seen: &'a Seen,
    stopped: Option<Moment>,
    wrong: Vec<String>,
}

impl Model<'_> {
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }

    /// Whether jobs may be abandoned at that moment, all that there are.
    fn may_abandon(&self, at: Moment) -> bool {
        let loop_ = &self.seen.loop_;
        let unstarted = !loop_.started && self.seen.closed.is_some_and(|closed| closed <= at);
        let cut_short = loop_.cut_short.is_some_and(|cut| cut <= at);
        unstarted || cut_short || self.deadline().is_some_and(|deadline| deadline <= at.ms)
    }

    /// When a stop runs out of time.
    fn deadline(&self) -> Option<u64> {
        Some(self.stopped?.ms + self.scenario.options.shutdown_timeout?)
    }

    /// Whether the job was seen to be accepted, sooner or later.
    fn was_accepted(job: &JobSeen) -> bool {
        job.admission == Admission::Accepted
    }

    fn job(&mut self, id: usize, job: &JobSeen) {
        let options = &self.scenario.options;
        self.check(job.batches.len() <= 1, || {
            format!("job {id}: processed in batches {:?}", job.batches)
        });
        self.check(!job.lost || job.batches.is_empty(), || {
            format!("job {id}: processed, although the storage lost it")
        });
        let heavy = job.limit.filter(|_| !job.plan.bites);
        let heavy = heavy.filter(|limit| job.plan.weight > *limit);
        let bites = options.max_batch_weight.is_some() && job.plan.bites;
        if heavy.is_some() || bites {
            self.check(!Self::was_accepted(job), || {
                format!("job {id}: accepted, although too heavy or not to be weighed")
            });
        }
        let batch = job
            .batches
            .first()
            .map(|&number| &self.seen.batches[number]);
        match &job.handle {
            // It was given back, or is none of a single caller's.
            Handle::Held => self.check(job.admission == Admission::Refused, || {
                format!("job {id}: never answered")
            }),
            Handle::Dropped(at) => self.unanswered(id, job, *at),
            Handle::Resolved(at, outcome) => {
                let right = match (outcome, heavy) {
                    (Outcome::TooHeavy { weight, limit }, heavy) => {
                        heavy == Some(*limit) && job.plan.weight == *weight
                    }
                    (_, Some(_)) => false,
                    (Outcome::Panicked(message), None) if bites => {
                        *message == panics::of_job(id) && batch.is_none()
                    }
                    (_, None) if bites => false,
                    (Outcome::Closed, None) => {
                        let closed = self.seen.closed_from();
                        let closed = closed.is_some_and(|closed| closed <= *at);
                        closed && batch.is_none() && job.accepted.is_none()
                    }
                    (Outcome::NoPermit, None) => self.lacks_permits(*at) && batch.is_none(),
                    (Outcome::Abandoned, None) => {
                        self.may_abandon(*at) && batch.is_none_or(was_dropped)
                            || job.lost
                            || self.is_withheld(*at)
                    }
                    (outcome, None) => {
                        let ended = batch.and_then(|batch| Some((batch, batch.ended?)));
                        ended.is_some_and(|(batch, (ended, end))| {
                            ended <= *at
                                && outcome_of(id, job, batch, end).as_ref() == Some(outcome)
                        })
                    }
                };
                let right = right && (!job.lost || *outcome == Outcome::Abandoned);
                self.check(right, || {
                    format!("job {id}: told {outcome:?} at {at:?}; {job:?}")
                });
            }
        }
    }

    /// Whether batches fail by then because there are no permits any more.
    fn lacks_permits(&self, at: Moment) -> bool {
        self.seen
            .semaphore_closed
            .is_some_and(|closed| closed <= at)
    }

    /// A storage that never gives may have kept it to the end.
    fn is_withheld(&self, at: Moment) -> bool {
        self.scenario.options.storage == Storage::Denies
            && self.seen.closed_from().is_some_and(|closed| closed <= at)
    }

    /// A job whose caller has gone is processed all the same, unless there is a
    /// reason.
    fn unanswered(&mut self, id: usize, job: &JobSeen, dropped: Moment) {
        let options = &self.scenario.options;
        match job.batches.first() {
            Some(&number) => {
                let began = self.seen.batches[number].began;
                self.check(!options.cancel_on_drop || began.ms <= dropped.ms, || {
                    format!("job {id}: processed at {began:?}, but unwanted since {dropped:?}")
                });
            }
            None if Self::was_accepted(job) => {
                let excused = job.lost
                    || options.cancel_on_drop
                    || options.storage == Storage::Denies
                    || self.lacks_permits(self.seen.end)
                    || self.may_abandon(self.seen.end);
                self.check(excused, || format!("job {id}: accepted and lost; {job:?}"));
            }
            None => {}
        }
    }

    fn batch(&mut self, number: usize, batch: &BatchSeen) {
        let options = &self.scenario.options;
        let size = batch.jobs.len();
        let weights = batch.jobs.iter().map(|&id| self.seen.jobs[id].plan.weight);
        let weight = match options.max_batch_weight {
            Some(_) => weights.sum(),
            None => 0,
        };
        let mut around = self.seen.limits_around(batch.began);
        let allowed = around.any(|limits| is_allowed(limits, size, weight));
        self.check(allowed, || {
            format!("batch {number} holds {size} jobs and weighs {weight}")
        });
        self.check(!self.is_during_a_pause(batch.began), || {
            format!("batch {number} began during a pause: {batch:?}")
        });
        let Some((ended, end)) = batch.ended else {
            return self.check(false, || format!("batch {number} never ended"));
        };
        let allowed = end != End::Dropped || self.may_abandon(ended);
        self.check(allowed, || {
            format!("batch {number} was dropped at {ended:?}")
        });
        let Some(report) = &batch.report else {
            let reported = options.hook && end != End::Dropped;
            return self.check(!reported, || format!("batch {number} was not reported"));
        };
        let first = batch.jobs[0];
        let error = outcome_of(first, &self.seen.jobs[first], batch, end);
        let error = error.filter(|_| end != End::Well);
        let mut around = self.seen.limits_around(batch.began);
        let reason = around.any(|limits| self.is_reason(limits, number, batch, report, weight));
        // The first job may have been withdrawn, or kept by its storage.
        let entered = batch.jobs.iter();
        let entered = entered.filter_map(|&id| self.seen.jobs[id].entered);
        let entered = entered.map(|entered| entered.ms).min().unwrap_or(0);
        let first_entered = batch
            .jobs
            .iter()
            .filter_map(|&id| self.seen.jobs[id].entered);
        let steered = first_entered
            .min()
            .is_some_and(|entered| self.seen.was_steered(entered, batch.began));
        let waited = options.cancel_on_drop
            || steered
            || !options.storage.is_plain()
            || report.waited <= batch.began.ms - entered;
        let right = report.size == size
            && report.weight == weight
            && report.took == ended.ms - batch.began.ms
            && report.error == error
            && reason
            && waited;
        self.check(right, || {
            format!("batch {number} was reported as {report:?}; {batch:?}")
        });
    }

    /// Whether the batch can have been cut for the reason that was reported, under
    /// those settings.
    fn is_reason(
        &self,
        limits: &Limits,
        number: usize,
        batch: &BatchSeen,
        report: &Report,
        weight: usize,
    ) -> bool {
        let options = &self.scenario.options;
        let size = batch.jobs.len();
        let others = self.seen.batches.iter();
        let mut others =
            others.filter(|other| other.began != batch.began && overlaps(other, batch.began));
        match report.reason {
            _ if !is_allowed(limits, size, weight) => false,
            _ if size == limits.max_batch_size => report.reason == FlushReason::Size,
            // Of a full batch some may have been withdrawn, or too heavy.
            FlushReason::Size => {
                options.cancel_on_drop || !options.storage.is_plain() || weight > 0
            }
            FlushReason::Weight => self.was_heavy(limits, number, weight),
            FlushReason::Interval => limits
                .interval
                .is_some_and(|interval| report.waited >= interval),
            FlushReason::Idle => limits.flush_when_idle && others.next().is_none(),
            FlushReason::Cost => self.was_worth_its_cost(limits, batch),
            FlushReason::Requested => self.seen.flushes.iter().any(|flush| {
                flush.asked <= batch.began && flush.answered.is_none_or(|at| at >= batch.began)
            }),
            FlushReason::Shutdown => {
                let closed = self.seen.closed_from();
                closed.is_some_and(|closed| closed <= batch.began)
            }
            _ => false,
        }
    }

    /// Whether the weight of the batch, or of what follows it, can have been
    /// the reason to cut it.
    fn was_heavy(&self, limits: &Limits, number: usize, weight: usize) -> bool {
        let options = &self.scenario.options;
        let next = self.seen.batches.get(number + 1);
        let next = next.map(|batch| self.seen.jobs[batch.jobs[0]].plan.weight);
        limits.max_batch_weight.is_some_and(|limit| {
            weight >= limit
                || self.seen.semaphore_closed.is_some()
                || options.cancel_on_drop
                || !options.storage.is_plain()
                || next.is_none_or(|next| weight + next > limit)
        })
    }

    /// Whether the jobs of the batch can have waited together for as long as a
    /// flush costs. Some of those that did may have been withdrawn, or kept by
    /// their storage.
    fn was_worth_its_cost(&self, limits: &Limits, batch: &BatchSeen) -> bool {
        let options = &self.scenario.options;
        let first = (batch.jobs.iter()).filter_map(|&id| self.seen.jobs[id].entered);
        let steered = first
            .min()
            .is_some_and(|entered| self.seen.was_steered(entered, batch.began));
        let entered = (batch.jobs.iter()).filter_map(|&id| self.seen.jobs[id].entered);
        let waited: u64 = entered.map(|entered| batch.began.ms - entered.ms).sum();
        limits.flush_cost.is_some_and(|cost| {
            waited >= cost || steered || options.cancel_on_drop || !options.storage.is_plain()
        })
    }

    /// Whether a pause was known to the loop at that moment.
    fn is_during_a_pause(&self, at: Moment) -> bool {
        let seen = self.seen;
        let pauses = seen.pauses.iter().filter(|(_, paused)| *paused);
        let mut known = pauses.filter(|(from, _)| from.ms < at.ms);
        known.next_back().is_some_and(|(from, _)| {
            let mut resumes = seen.pauses.iter().filter(|(_, paused)| !paused);
            let resumed = resumes.any(|(resumed, _)| (*from..=at).contains(resumed));
            let closed = seen.closed_from().is_some_and(|closed| closed <= at);
            !resumed && !closed
        })
    }

    /// A batch that gets no permit any more is reported, and the processor does not
    /// get it.
    fn failures(&mut self) {
        for (at, report) in &self.seen.failures {
            let mut around = self.seen.limits_around(*at);
            let allowed = around.any(|limits| is_allowed(limits, report.size, report.weight));
            let right = allowed && self.lacks_permits(*at) && report.took == 0;
            self.check(right && !self.is_during_a_pause(*at), || {
                format!("failed at {at:?}: {report:?}")
            });
        }
        let told = self.seen.jobs.iter();
        let told = told.filter(|job| matches!(job.handle, Handle::Resolved(_, Outcome::NoPermit)));
        let told = told.count();
        let failed = self.seen.failures.iter();
        let failed: usize = failed.map(|(_, report)| report.size).sum();
        let silent = self.seen.jobs.iter();
        let silent =
            silent.filter(|job| job.batches.is_empty() && matches!(job.handle, Handle::Dropped(_)));
        let most = told + silent.count();
        self.check((told..=most).contains(&failed), || {
            format!("{failed} jobs got no permit, and {told} to {most} know")
        });
    }

    /// Jobs enter batches in the order in which they were accepted, and batches
    /// start in that order.
    fn order(&mut self) {
        if !self.scenario.options.storage.is_plain() {
            return;
        }
        let jobs = self.seen.batches.iter().flat_map(|batch| &batch.jobs);
        let mut last_entered = Moment::default();
        let mut last_accepted = Moment::default();
        for &id in jobs {
            let job = &self.seen.jobs[id];
            let (Some(entered), Some(accepted)) = (job.entered, self.surely_accepted(job)) else {
                continue;
            };
            // A job finds room or becomes a waiter, and waiters are served first
            // come, first served. Only the holder of a permit passes them.
            if job.way != Way::Permit {
                let in_order = entered >= last_entered;
                self.check(in_order, || format!("job {id}: overtaken; {job:?}"));
                last_entered = entered;
            }
            let in_order = accepted >= last_accepted;
            self.check(in_order, || {
                format!("job {id}: overtaken by one accepted after {accepted:?}; {job:?}")
            });
            last_accepted = last_accepted.max(entered);
        }
    }

    /// When the job had been accepted at the latest: when a job behind it
    /// had found room.
    fn surely_accepted(&self, job: &JobSeen) -> Option<Moment> {
        let entered = job.entered?;
        let accepted = job.accepted?;
        let behind = self.seen.jobs.iter().filter(|other| {
            other.way != Way::Permit && other.entered > Some(entered) && other.accepted.is_some()
        });
        let behind = behind.filter_map(|other| other.accepted);
        let granted = self.seen.reservations.iter();
        let granted = granted.filter(|reservation| reservation.asked > entered);
        let granted = granted.filter_map(|reservation| reservation.granted);
        behind.chain(granted).chain([accepted]).min()
    }

    /// Room is granted first come first served.
    fn reservations(&mut self) {
        let mut latest = None;
        for reservation in &self.seen.reservations {
            let Some(granted) = reservation.granted else {
                continue;
            };
            let in_order = latest.is_none_or(|latest| latest <= granted.ms);
            self.check(in_order, || format!("{reservation:?} was overtaken"));
            latest = Some(granted.ms);
        }
    }

    /// A flush is done when all that was accepted before it is processed, and
    /// not later.
    fn flushes(&mut self) {
        for flush in &self.seen.flushes {
            let Some(answered) = flush.answered else {
                continue;
            };
            let abandoned = self.may_abandon(answered);
            if !abandoned {
                for (id, job) in self.seen.jobs.iter().enumerate() {
                    let meant = self.surely_accepted(job).is_some_and(|at| at < flush.asked);
                    let batches = job.batches.iter().map(|&number| &self.seen.batches[number]);
                    let mut open =
                        batches.filter(|batch| batch.ended.is_none_or(|end| end.0 > answered));
                    self.check(!meant || open.next().is_none(), || {
                        format!("{flush:?} was done before job {id}")
                    });
                }
            }
            // A stop takes a flush over.
            let taken_over = self
                .stopped
                .is_some_and(|stopped| stopped.ms <= answered.ms);
            let began = self.seen.loop_.began.filter(|_| !abandoned && !taken_over);
            let Some(began) = began.filter(|_| self.scenario.options.storage.is_plain()) else {
                continue;
            };
            // It waits for those before it, and those that are asked for till
            // then are done together with it.
            let others = || self.seen.flushes.iter();
            let before = others().filter(|other| {
                other.asked < flush.asked && other.answered.is_none_or(|at| at > flush.asked)
            });
            let taken_up = before.map(|other| other.answered.map_or(u64::MAX, |at| at.ms));
            let taken_up = taken_up.fold(flush.asked.ms.max(began.ms), u64::max);
            let asked = others().map(|other| other.asked);
            let asked = asked.filter(|asked| asked.ms <= taken_up && *asked < answered);
            let asked = asked.max();
            let meant = self.seen.jobs.iter();
            let meant = meant.filter(|job| job.entered.is_some() && job.entered < asked);
            let batches = meant.filter_map(|job| job.batches.first());
            let ends = batches.filter_map(|&number| self.seen.batches[number].ended);
            let done = ends.map(|(ended, _)| ended.ms).max().unwrap_or(0);
            let done = done.max(flush.asked.ms).max(began.ms);
            let done = self.other_ends(answered).fold(done, u64::max);
            self.check(answered.ms <= done, || {
                format!("{flush:?} was done at {done} ms")
            });
        }
    }

    /// When jobs were gone without a batch that were perhaps held back until then, by
    /// a pause or for want of a permit.
    fn other_ends(&self, until: Moment) -> impl Iterator<Item = u64> {
        let failures = self.seen.failures.iter().map(|(at, _)| *at);
        let held_back = !self.seen.pauses.is_empty() || self.scenario.options.permits.is_some();
        let held_back = held_back && self.scenario.options.cancel_on_drop;
        let jobs = self.seen.jobs.iter().filter(move |_| held_back);
        let withdrawn = jobs.filter_map(|job| match job.handle {
            Handle::Dropped(at) if job.batches.is_empty() => Some(at),
            _ => None,
        });
        let ends = failures.chain(withdrawn);
        ends.filter(move |at| *at <= until).map(|at| at.ms)
    }

    /// All shutdowns are told the same, at the same time, and in time.
    fn shutdowns(&mut self) {
        let seen = self.seen;
        let answers = seen.shutdowns.iter();
        let answers = answers.filter_map(|shutdown| Some((shutdown.asked, shutdown.answered?)));
        let ended = seen.loop_.ended;
        let mut result = ended.map(|(_, result)| result);
        let mut over = ended.map(|(at, _)| at.ms);
        for (asked, (at, told)) in answers {
            let same = *result.get_or_insert(told) == told;
            // Who asks late is told at once, and who had to wait knows the end.
            if at.ms > asked.ms {
                over.get_or_insert(at.ms);
            }
            let at_once = at.ms == over.unwrap_or(0).max(asked.ms);
            self.check(same && at_once, || {
                format!("a shutdown was told {told:?} at {at:?}; {ended:?}")
            });
        }
        let (Some(over), Some(result)) = (over, result) else {
            return;
        };
        let Some(stopped) = self.stopped else {
            return self.check(result.is_ok(), || {
                format!("timed out unstarted: {result:?}")
            });
        };
        if seen.loop_.cut_short.is_some() {
            return;
        }
        let deadline = self.deadline().unwrap_or(u64::MAX);
        match result {
            // The loop ends with its last batch.
            Ok(()) => {
                let ends = seen.batches.iter().filter_map(|batch| batch.ended);
                let done = ends.map(|(ended, _)| ended.ms).max().unwrap_or(0);
                let done = self.other_ends(seen.end).fold(done, u64::max);
                let stalled = self.scenario.options.storage.may_give_nothing();
                // That one denies what it holds is not known before there is a permit.
                let denies = self.scenario.options.storage == Storage::Denies;
                let stalled = stalled || (denies && self.scenario.options.permits.is_some());
                let prompt = (stalled || over <= done.max(stopped.ms))
                    && over <= deadline.saturating_add(LATE);
                self.check(prompt, || {
                    format!("stopped at {stopped:?}, over at {over} ms")
                });
            }
            Err(timeout) => {
                let in_time = (deadline..=deadline.saturating_add(LATE)).contains(&over);
                let lost = seen.jobs.iter().filter(|job| job.lost).count() as u64;
                let abandoned = seen.stats.map(|stats| stats.abandoned.saturating_sub(lost));
                // What a storage loses that panics when it is asked for the last
                // time counts as well.
                let panics = matches!(self.scenario.options.storage, Storage::PanicsOnTake(_));
                let cancels = self.scenario.options.cancel_on_drop;
                let at_last = if panics || cancels { lost } else { 0 };
                // One that denies what it holds has it abandoned before.
                let denies = self.scenario.options.storage == Storage::Denies;
                let right = denies
                    || abandoned.is_none_or(|count| {
                        (count..=count + at_last).contains(&(timeout.abandoned as u64))
                    });
                let none =
                    timeout.abandoned == 0 && self.scenario.options.storage != Storage::Overstates;
                let in_vain = self.flights().any(|flight| flight.end >= deadline)
                    || self.scenario.options.permits.is_some()
                    || self.scenario.options.storage.may_give_nothing();
                self.check(in_time && right && !none && in_vain, || {
                    format!("stopped at {stopped:?}, over at {over} ms: {timeout}; {abandoned:?}")
                });
            }
        }
    }

    /// The counters agree with what was seen, and add up.
    fn stats(&mut self) {
        let seen = self.seen;
        let Some(stats) = seen.stats else { return };
        let count = |admission| {
            seen.jobs
                .iter()
                .filter(|job| job.admission == admission)
                .count() as u64
        };
        let (accepted, unclear) = (count(Admission::Accepted), count(Admission::Unclear));
        let sizes = |well: bool| {
            let ended = seen.batches.iter().filter(|batch| match batch.ended {
                Some((_, End::Dropped)) | None => false,
                Some((_, end)) => (end == End::Well) == well,
            });
            ended.map(|batch| batch.jobs.len() as u64).sum::<u64>()
        };
        let unseen = seen
            .jobs
            .iter()
            .filter(|job| Self::was_accepted(job) && job.batches.is_empty() && !job.lost);
        let unwanted = unseen.filter(|job| matches!(job.handle, Handle::Dropped(_)));
        let unwanted = unwanted.count() as u64 + unclear;
        let lost = seen.jobs.iter().filter(|job| job.lost).count() as u64;
        // What the storage dropped may have been withdrawn before.
        let either = seen.jobs.iter().filter(|job| {
            let cancels = self.scenario.options.cancel_on_drop;
            cancels && job.lost && matches!(job.handle, Handle::Dropped(_))
        });
        let either = either.count() as u64;
        let no_permit = seen.failures.iter().map(|(_, report)| report.size as u64);
        let no_permit: u64 = no_permit.sum();
        let batches = (seen.batches.len() + seen.failures.len()) as u64;
        let clean = !self.may_abandon(seen.end);
        let denies = self.scenario.options.storage == Storage::Denies;
        let right = (accepted..=accepted + unclear).contains(&stats.accepted)
            && stats.completed == sizes(true)
            && stats.failed == sizes(false) + no_permit
            && stats.withdrawn <= unwanted + either
            && (stats.withdrawn == 0 || self.scenario.options.cancel_on_drop)
            && stats.withdrawn_waiting
                <= count(Admission::Waiting) + count(Admission::Refused) + unclear
            && stats.abandoned >= lost - either
            && (!clean || denies || (lost - either..=lost).contains(&stats.abandoned))
            && stats.batches >= batches
            && (!clean || stats.batches == batches)
            && stats.accepted == stats.completed + stats.failed + stats.withdrawn + stats.abandoned
            && (stats.waiting, stats.queued, stats.pending) == (0, 0, 0)
            && (stats.processing, stats.in_flight) == (0, 0);
        self.check(right, || {
            format!(
                "{stats:?}: {accepted} accepted, {unclear} perhaps, {} completed, {} failed, \
                 {unwanted} unwanted, {lost} lost, {} batches",
                sizes(true),
                sizes(false),
                seen.batches.len()
            )
        });
    }

    /// No job waits without a reason: while a slot is free and time passes, the
    /// jobs there are make no full batch, none of them has waited for the
    /// interval, nor all of them together for the cost of a flush, and no flush
    /// was requested.
    fn waiting(&mut self) {
        let options = &self.scenario.options;
        let seen = self.seen;
        let Some(began) = seen.loop_.began else {
            return;
        };
        if !options.storage.is_plain() {
            return;
        }
        let over = self.over();
        let mut waits: Vec<_> = (seen.jobs.iter())
            .filter(|job| !options.cancel_on_drop || !job.batches.is_empty())
            // Who is told that there was no permit, may be told late.
            .filter(|job| seen.semaphore_closed.is_none() || !job.batches.is_empty())
            .filter_map(|job| Some(Wait::of(seen, job, self.surely_accepted(job)?)))
            .collect();
        let mut times: Vec<_> = (waits.iter().flat_map(|wait| [wait.from.ms, wait.until]))
            .chain(self.flights().flat_map(|flight| [flight.start, flight.end]))
            .chain(seen.flushes.iter().map(|flush| flush.asked.ms))
            .chain(seen.limits.iter().map(|(at, _)| at.ms))
            .chain(seen.pauses.iter().map(|(at, _)| at.ms))
            .chain(seen.permits.iter().map(|(at, _)| at.ms))
            .chain(seen.closed_from().map(|closed| closed.ms))
            .chain(self.stopped.map(|stopped| stopped.ms))
            .chain([began.ms, over])
            .filter(|at| (began.ms..=over).contains(at))
            .collect();
        times.sort_unstable();
        times.dedup();
        for span in times.windows(2) {
            let &[from, to] = span else { continue };
            let in_flight = self.in_flight(from);
            let limits = seen.limits_at(from);
            let free = self.is_free(from);
            let mut count = 0;
            let mut weight = 0;
            let mut together: u64 = 0;
            let mut wrong = None;
            for wait in &mut waits {
                if !(wait.from.ms..wait.until).contains(&from) {
                    continue;
                }
                count += 1;
                weight += wait.weight;
                wait.taken_up |= free || self.is_surely_taken_up(wait.from, from);
                if wait.taken_up {
                    wait.pending += to - from;
                }
                together += wait.pending;
                if !free {
                    continue;
                }
                let due = limits
                    .interval
                    .map(|interval| wait.from.ms.max(began.ms).saturating_add(interval));
                if due.is_some_and(|due| to > due.max(from) + LATE) {
                    wrong = Some("has waited for longer than the interval");
                }
                let asked = (seen.flushes.iter())
                    .any(|flush| wait.from < flush.asked && flush.asked.ms <= from);
                if asked {
                    wrong = Some("waits in spite of a flush");
                }
                if self.stopped.is_some_and(|stopped| stopped.ms <= from) {
                    wrong = Some("waits in spite of a stop");
                }
            }
            if count == 0 || !free {
                continue;
            }
            if count >= limits.max_batch_size {
                wrong = Some("is one of a full batch");
            }
            if limits.max_batch_weight.is_some_and(|limit| weight >= limit) {
                wrong = Some("is one of a batch of full weight");
            }
            if limits.flush_when_idle && in_flight == 0 {
                wrong = Some("waits while nothing is done");
            }
            let late = LATE * count as u64;
            if limits
                .flush_cost
                .is_some_and(|cost| together > cost.saturating_add(late))
            {
                wrong = Some("has waited with the others for longer than a flush costs");
            }
            self.check(wrong.is_none(), || {
                format!(
                    "from {from} to {to} ms {count} jobs of weight {weight} wait beside \
                     {in_flight} batches, and one of them {}",
                    wrong.unwrap_or_default()
                )
            });
        }
    }
}

impl Model<'_> {
    /// A storage that holds jobs is asked for them while a slot is free: within
    /// the interval, again after it, and at once when a stop comes.
    fn storage(&mut self) {
        let interval = self.scenario.options.interval.unwrap_or(u64::MAX - LATE);
        // One that drops what it has held has younger jobs than it was seen to hold.
        let storage = self.scenario.options.storage;
        // One that holds only withdrawn jobs has nothing to give.
        let cancels = self.scenario.options.cancel_on_drop;
        // What is steered is asked for otherwise.
        let seen = self.seen;
        if seen.limits.len() > 1
            || !seen.pauses.is_empty()
            || self.scenario.options.permits.is_some()
        {
            return;
        }
        if cancels || matches!(storage, Storage::Denies | Storage::Forgets(_)) {
            return;
        }
        let end = Moment {
            tick: u64::MAX,
            ms: self.over(),
        };
        let mut held = self.seen.held.clone();
        held.push((end, 0, Asked::No));
        let mut waited = 0;
        for pair in held.windows(2) {
            let &[(from, count, asked), (to, ..)] = pair else {
                continue;
            };
            if count == 0 || asked == Asked::Yes {
                waited = 0;
            }
            if count == 0 {
                continue;
            }
            waited += self.free_between(from.ms, to.ms);
            let stopped = self.stopped.filter(|stopped| (from..to).contains(stopped));
            let since_then = stopped.map_or(0, |stopped| self.free_between(stopped.ms, to.ms));
            self.check(waited <= interval + LATE && since_then == 0, || {
                format!(
                    "the storage, which held {count} jobs at {from:?}, was forgotten till {to:?}"
                )
            });
        }
    }

    /// Whether a job accepted by then was not left in the queue at that time,
    /// though all slots were taken.
    fn is_surely_taken_up(&self, accepted: Moment, at: u64) -> bool {
        let limits = self.seen.limits_at(at);
        let ahead = self.seen.jobs.iter().filter(|job| {
            let batch = job
                .batches
                .first()
                .map(|&number| &self.seen.batches[number]);
            job.entered.is_some_and(|entered| entered < accepted)
                && job.admission != Admission::Refused
                && batch.is_none_or(|batch| batch.began.ms > at)
        });
        let (count, weight) = ahead.fold((0, 0), |(count, weight), job| {
            (count + 1, weight + job.plan.weight)
        });
        let mut flushes = self.seen.flushes.iter();
        count < limits.max_batch_size
            && limits.max_batch_weight.is_none_or(|limit| weight < limit)
            && !flushes.any(|flush| {
                flush.asked.ms <= at && flush.answered.is_none_or(|answered| answered.ms > at)
            })
    }

    /// When the loop was over at the latest.
    fn over(&self) -> u64 {
        let loop_ = &self.seen.loop_;
        let ended = loop_.ended.map(|(at, _)| at.ms).into_iter();
        let cut_short = loop_.cut_short.map(|cut| cut.ms);
        let deadline = self.deadline();
        ended
            .chain(cut_short)
            .chain(deadline)
            .fold(self.seen.end.ms, u64::min)
    }

    /// From when to when each batch was in flight.
    fn flights(&self) -> impl Iterator<Item = Range<u64>> {
        let ended = |batch: &BatchSeen| batch.ended.map_or(u64::MAX, |(ended, _)| ended.ms);
        let batches = self.seen.batches.iter();
        batches.map(move |batch| batch.began.ms..ended(batch))
    }

    fn in_flight(&self, at: u64) -> usize {
        self.flights().filter(|flight| flight.contains(&at)).count()
    }

    /// Whether one more batch may be cut at that time.
    fn is_free(&self, at: u64) -> bool {
        let in_flight = self.in_flight(at);
        let closed = self.seen.semaphore_closed;
        let permitted = self.scenario.options.permits.is_none()
            || closed.is_some_and(|closed| closed.ms <= at)
            || in_flight < self.seen.permits_at(at);
        let limits = self.seen.limits_at(at);
        in_flight < limits.max_in_flight && permitted && !self.seen.is_paused_at(at)
    }

    /// For how long one more batch could have been in flight.
    fn free_between(&self, from: u64, to: u64) -> u64 {
        let times = self.flights().flat_map(|flight| [flight.start, flight.end]);
        let mut times: Vec<_> = times.filter(|at| (from..to).contains(at)).collect();
        times.extend([from, to.max(from)]);
        times.sort_unstable();
        let spans = times.windows(2).filter_map(|span| match span {
            &[from, to] if self.in_flight(from) < self.scenario.options.max_in_flight => {
                Some(to - from)
            }
            _ => None,
        });
        spans.sum()
    }
}

/// A job between its acceptance and its batch, if it got into one.
struct Wait {
    from: Moment,
    until: u64,
    weight: usize,
    /// It has certainly been taken up, and for how long.
    taken_up: bool,
    pending: u64,
}

impl Wait {
    fn of(seen: &Seen, job: &JobSeen, accepted: Moment) -> Self {
        let batch = job.batches.first().map(|&number| &seen.batches[number]);
        Self {
            from: accepted,
            until: batch.map_or(u64::MAX, |batch| batch.began.ms),
            weight: job.plan.weight,
            taken_up: false,
            pending: 0,
        }
    }
}

fn was_dropped(batch: &BatchSeen) -> bool {
    matches!(batch.ended, Some((_, End::Dropped)))
}

/// Whether the batch was in flight at that moment.
fn overlaps(batch: &BatchSeen, at: Moment) -> bool {
    batch.began < at && batch.ended.is_none_or(|(ended, _)| ended > at)
}

/// Whether a batch of that size and weight is allowed. A job that was accepted under
/// another limit goes alone.
fn is_allowed(limits: &Limits, size: usize, weight: usize) -> bool {
    let heavy = limits.max_batch_weight.is_some_and(|limit| weight > limit);
    (1..=limits.max_batch_size).contains(&size) && (!heavy || size == 1)
}

/// What a job of this batch is to be told.
fn outcome_of(id: usize, job: &JobSeen, batch: &BatchSeen, end: End) -> Option<Outcome> {
    let number = *job.batches.first()?;
    Some(match end {
        End::Well => Outcome::Result(value_of(id)),
        End::Error => Outcome::Failed(Some(number)),
        End::Panic => Outcome::Panicked(panics::of_batch(number)),
        End::Count(actual) => Outcome::ResultCount {
            expected: batch.jobs.len(),
            actual,
        },
        End::Dropped => return None,
    })
}
