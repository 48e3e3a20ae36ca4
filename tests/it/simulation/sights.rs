//! What a run has shown, by name: a simulation in which something never happens
//! proves nothing about it.

use std::collections::BTreeMap;

use microbatch::FlushReason;

use super::seen::{Admission, End, Handle, JobSeen, Outcome, Seen, Way};

/// What many runs have shown, and how often.
#[derive(Debug, Default)]
pub(crate) struct Sights(BTreeMap<&'static str, u64>);

/// What enough runs show, each of it.
const ALL: &[&str] = &[
    "answered: abandoned",
    "answered: closed",
    "answered: failed",
    "answered: no permit",
    "answered: not to be weighed",
    "answered: panicked",
    "answered: result",
    "answered: result count",
    "answered: too heavy",
    "batch: error",
    "batch: dropped",
    "batch: heavier than the limit",
    "batch: panic",
    "batch: well",
    "batch: wrong count",
    "dropped: after its batch",
    "dropped: never accepted",
    "dropped: in flight",
    "dropped: pending",
    "flush: done",
    "flush: dropped",
    "flushed by cost",
    "flushed by idle",
    "flushed by interval",
    "flushed by request",
    "flushed by shutdown",
    "flushed by size",
    "flushed by weight",
    "loop: cut short",
    "loop: ended",
    "loop: never started",
    "loop: timed out",
    "paused",
    "permits: closed",
    "permits: given and taken",
    "reconfigured",
    "reconfigured: refused",
    "refused: try_submit",
    "reservation: dropped",
    "reservation: granted",
    "storage: lost a job",
    "stopped: by a token",
    "stopped: by shutdown or drop",
    "withdrawn",
];

impl Sights {
    pub(crate) fn add(&mut self, seen: &Seen) {
        let mut see = |what| *self.0.entry(what).or_default() += 1;
        for job in &seen.jobs {
            see(job_sight(seen, job));
            if job.lost {
                see("storage: lost a job");
            }
        }
        for batch in &seen.batches {
            see(match batch.ended {
                Some((_, End::Well)) => "batch: well",
                Some((_, End::Error)) => "batch: error",
                Some((_, End::Panic)) => "batch: panic",
                Some((_, End::Count(_))) => "batch: wrong count",
                Some((_, End::Dropped)) | None => "batch: dropped",
            });
            let report = batch.report.as_ref();
            see(match report.map(|report| report.reason) {
                None => continue,
                Some(FlushReason::Size) => "flushed by size",
                Some(FlushReason::Weight) => "flushed by weight",
                Some(FlushReason::Interval) => "flushed by interval",
                Some(FlushReason::Idle) => "flushed by idle",
                Some(FlushReason::Cost) => "flushed by cost",
                Some(FlushReason::Requested) => "flushed by request",
                Some(FlushReason::Shutdown) => "flushed by shutdown",
                Some(_) => "flushed for another reason",
            });
        }
        for (at, _) in &seen.pauses {
            if seen.is_paused_at(at.ms) {
                see("paused");
            }
        }
        seen.limits.iter().skip(1).for_each(|_| see("reconfigured"));
        seen.permits
            .iter()
            .skip(1)
            .for_each(|_| see("permits: given and taken"));
        if seen.semaphore_closed.is_some() {
            see("permits: closed");
        }
        if seen.invalid_changes > 0 {
            see("reconfigured: refused");
        }
        for batch in &seen.batches {
            let weights = batch.jobs.iter().map(|&id| seen.jobs[id].plan.weight);
            let weight: usize = weights.sum();
            let mut around = seen.limits_around(batch.began);
            if around.all(|limits| limits.max_batch_weight.is_some_and(|limit| weight > limit)) {
                see("batch: heavier than the limit");
            }
        }
        for flush in &seen.flushes {
            see(match flush.answered {
                Some(_) => "flush: done",
                None => "flush: dropped",
            });
        }
        for reservation in &seen.reservations {
            see(match reservation.granted {
                Some(_) => "reservation: granted",
                None => "reservation: dropped",
            });
        }
        let loop_ = &seen.loop_;
        let timed_out = seen.shutdowns.iter().any(|shutdown| {
            let answered = shutdown.answered;
            answered.is_some_and(|(_, result)| result.is_err())
        });
        see(match (loop_.began, loop_.cut_short) {
            (None, _) => "loop: never started",
            (_, Some(_)) => "loop: cut short",
            _ if timed_out => "loop: timed out",
            _ => "loop: ended",
        });
        see(
            match seen.cancelled < seen.closed && seen.cancelled.is_some() {
                true => "stopped: by a token",
                false => "stopped: by shutdown or drop",
            },
        );
        for _ in 0..seen.stats.map_or(0, |stats| stats.withdrawn) {
            see("withdrawn");
        }
    }

    /// What was not seen, and should have been.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let missing = ALL.iter().filter(|sight| !self.0.contains_key(*sight));
        missing.copied().collect()
    }
}

fn job_sight(seen: &Seen, job: &JobSeen) -> &'static str {
    let batch = job.batches.first().map(|&number| &seen.batches[number]);
    match &job.handle {
        Handle::Held => match job.way {
            Way::TrySubmit => "refused: try_submit",
            _ => "never answered",
        },
        Handle::Dropped(at) => match (job.admission, batch) {
            (Admission::Outside | Admission::Waiting | Admission::Refused, _) => {
                "dropped: never accepted"
            }
            (Admission::Unclear, _) => "dropped: perhaps accepted",
            (Admission::Accepted, Some(batch)) if batch.began > *at => "dropped: pending",
            (Admission::Accepted, Some(batch))
                if batch.ended.is_none_or(|(ended, _)| ended > *at) =>
            {
                "dropped: in flight"
            }
            (Admission::Accepted, Some(_)) => "dropped: after its batch",
            (Admission::Accepted, None) => "dropped: accepted and never processed",
        },
        Handle::Resolved(_, outcome) => match outcome {
            Outcome::Result(_) => "answered: result",
            Outcome::Closed => "answered: closed",
            Outcome::TooHeavy { .. } => "answered: too heavy",
            Outcome::Failed(_) => "answered: failed",
            Outcome::NoPermit => "answered: no permit",
            Outcome::Panicked(_) if batch.is_none() => "answered: not to be weighed",
            Outcome::Panicked(_) => "answered: panicked",
            Outcome::ResultCount { .. } => "answered: result count",
            Outcome::Abandoned => "answered: abandoned",
            Outcome::Unknown => "answered: unknown",
        },
    }
}
