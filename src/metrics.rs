//! What a micro-batcher tells through the `metrics` facade.
//!
//! # Invariants
//!
//! - What a micro-batcher counts is told as what has changed since it last told, so
//!   micro-batchers of one name add up. At its end it takes back what it has added to the
//!   gauges.
//! - The recorder is user code. Its panic loses what it was told and nothing else.

use std::mem;
use std::sync::{Mutex, PoisonError};

use ::metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use crate::engine::panics::{Shielded, catch};
use crate::error::JobError;
use crate::report::{BatchReport, FlushReason, Stats};
use crate::settings::Settings;

const ACCEPTED: &str = "microbatch_jobs_accepted_total";
const JOBS: &str = "microbatch_jobs_total";
const REFUSED: &str = "microbatch_jobs_refused_total";
const BATCHES: &str = "microbatch_batches_total";
const FAILURES: &str = "microbatch_batch_failures_total";
const SIZE: &str = "microbatch_batch_size";
const WAIT: &str = "microbatch_batch_wait_seconds";
const DURATION: &str = "microbatch_batch_duration_seconds";
const STATES: &str = "microbatch_jobs";
const IN_FLIGHT: &str = "microbatch_batches_in_flight";
const CAPACITY: &str = "microbatch_queue_capacity";
const SIZE_LIMIT: &str = "microbatch_batch_size_limit";
const INTERVAL: &str = "microbatch_interval_seconds";
const IN_FLIGHT_LIMIT: &str = "microbatch_in_flight_limit";

type ExtraLabel = Option<(&'static str, &'static str)>;

/// In the order of [`Snapshot::totals`].
const TOTALS: [(&str, ExtraLabel); 8] = [
    (ACCEPTED, None),
    (JOBS, Some(("outcome", "completed"))),
    (JOBS, Some(("outcome", "failed"))),
    (JOBS, Some(("outcome", "withdrawn"))),
    (JOBS, Some(("outcome", "abandoned"))),
    (REFUSED, Some(("why", "full"))),
    (REFUSED, Some(("why", "closed"))),
    (REFUSED, Some(("why", "too_heavy"))),
];

/// In the order of [`Snapshot::levels`].
const LEVELS: [(&str, ExtraLabel); 5] = [
    (STATES, Some(("state", "waiting"))),
    (STATES, Some(("state", "queued"))),
    (STATES, Some(("state", "pending"))),
    (STATES, Some(("state", "processing"))),
    (IN_FLIGHT, None),
];

/// In the order of [`Snapshot::limits`].
const LIMITS: [&str; 4] = [CAPACITY, SIZE_LIMIT, INTERVAL, IN_FLIGHT_LIMIT];

/// In the order of their declaration.
const REASONS: [FlushReason; 7] = [
    FlushReason::Size,
    FlushReason::Weight,
    FlushReason::Interval,
    FlushReason::Idle,
    FlushReason::Cost,
    FlushReason::Requested,
    FlushReason::Shutdown,
];

/// In the order of [`kind`].
const KINDS: [&str; 3] = ["error", "panic", "result_count"];

/// What a micro-batcher is at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot {
    pub(crate) stats: Stats,
    pub(crate) refused_full: u64,
    pub(crate) refused_closed: u64,
    pub(crate) refused_too_heavy: u64,
    pub(crate) settings: Settings,
    pub(crate) queue_capacity: usize,
}

impl Snapshot {
    fn totals(&self) -> [u64; 8] {
        let stats = &self.stats;
        [
            stats.accepted,
            stats.completed,
            stats.failed,
            stats.withdrawn,
            stats.abandoned,
            self.refused_full,
            self.refused_closed,
            self.refused_too_heavy,
        ]
    }

    fn levels(&self) -> [f64; 5] {
        let stats = &self.stats;
        let levels = [
            stats.waiting,
            stats.queued,
            stats.pending,
            stats.processing,
            stats.in_flight,
        ];
        levels.map(|level| level as f64)
    }

    fn limits(&self) -> [f64; 4] {
        [
            self.queue_capacity as f64,
            self.settings.max_batch_size as f64,
            self.settings.interval.as_secs_f64(),
            self.settings.max_in_flight as f64,
        ]
    }
}

/// The metrics of one micro-batcher.
pub(crate) struct Metrics {
    handles: Shielded<MetricHandles>,
    /// What was told so far.
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    totals: [u64; 8],
    levels: [f64; 5],
}

/// What the recorder gave for each metric.
struct MetricHandles {
    totals: [Counter; 8],
    levels: [Gauge; 5],
    limits: [Gauge; 4],
    batches: [Counter; 7],
    failures: [Counter; 3],
    size: Histogram,
    wait: Histogram,
    duration: Histogram,
}

impl Metrics {
    /// Registers all metrics with the recorder that is installed now.
    pub(crate) fn new(name: Option<&str>) -> Self {
        call(describe);
        Self {
            handles: Shielded::new(MetricHandles::register(name.unwrap_or("default"))),
            told: Mutex::default(),
        }
    }

    /// Tells what has changed. The snapshot is taken once no earlier one is still to
    /// be compared, so that counts never go back.
    pub(crate) fn record(&self, snapshot: impl FnOnce() -> Snapshot) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = snapshot();
        let (totals, levels) = (snapshot.totals(), snapshot.levels());
        let before = mem::replace(&mut *told, Told { totals, levels });
        // Changes commute, so the recorder is called without the lock.
        drop(told);
        let handles = &self.handles;
        for (at, counter) in handles.totals.iter().enumerate() {
            let new = totals[at].saturating_sub(before.totals[at]);
            if new > 0 {
                call(|| counter.increment(new));
            }
        }
        for (at, gauge) in handles.levels.iter().enumerate() {
            let change = levels[at] - before.levels[at];
            if change > 0.0 {
                call(|| gauge.increment(change));
            } else if change < 0.0 {
                call(|| gauge.decrement(-change));
            }
        }
        for (gauge, limit) in handles.limits.iter().zip(snapshot.limits()) {
            call(|| gauge.set(limit));
        }
    }

    /// Tells of a finished batch.
    pub(crate) fn record_batch(&self, report: &BatchReport<'_>) {
        let handles = &self.handles;
        call(|| handles.batches[report.reason as usize].increment(1));
        if let Some(error) = report.error {
            call(|| handles.failures[kind(error)].increment(1));
        }
        call(|| handles.size.record(report.size as f64));
        call(|| handles.wait.record(report.waited.as_secs_f64()));
        call(|| handles.duration.record(report.took.as_secs_f64()));
    }
}

/// Calls the recorder.
fn call(call: impl FnOnce()) {
    let _ = catch(call);
}

/// Why a batch failed, as an index into [`KINDS`].
fn kind(error: &JobError) -> usize {
    match error {
        JobError::Panicked(_) => 1,
        JobError::ResultCount { .. } => 2,
        _ => 0,
    }
}

impl MetricHandles {
    fn register(batcher: &str) -> Self {
        let labels = |extra: Option<Label>| {
            let batcher = Label::new("batcher", batcher.to_owned());
            [batcher].into_iter().chain(extra).collect::<Vec<_>>()
        };
        let constant = |(key, value)| Label::from_static_parts(key, value);
        // A metric that the recorder fails to register is missing.
        let counter = |name: &'static str, extra: Option<Label>| {
            catch(|| counter!(name, labels(extra))).unwrap_or_else(|_| Counter::noop())
        };
        let gauge = |name: &'static str, extra: Option<Label>| {
            catch(|| gauge!(name, labels(extra))).unwrap_or_else(|_| Gauge::noop())
        };
        let histogram = |name: &'static str| {
            catch(|| histogram!(name, labels(None))).unwrap_or_else(|_| Histogram::noop())
        };
        let batches =
            |reason: FlushReason| counter(BATCHES, Some(Label::new("reason", reason.to_string())));
        Self {
            totals: TOTALS.map(|(name, extra)| counter(name, extra.map(constant))),
            levels: LEVELS.map(|(name, extra)| gauge(name, extra.map(constant))),
            limits: LIMITS.map(|name| gauge(name, None)),
            batches: REASONS.map(batches),
            failures: KINDS.map(|kind| counter(FAILURES, Some(constant(("kind", kind))))),
            size: histogram(SIZE),
            wait: histogram(WAIT),
            duration: histogram(DURATION),
        }
    }
}

/// Says what the metrics mean.
fn describe() {
    let counters = [
        (ACCEPTED, "Jobs accepted"),
        (JOBS, "Accepted jobs that have ended, by outcome"),
        (REFUSED, "Jobs that were never accepted, by the reason"),
        (BATCHES, "Finished batches, by why they were flushed"),
        (FAILURES, "Failed batches, by how they failed"),
    ];
    for (name, text) in counters {
        describe_counter!(name, Unit::Count, text);
    }
    let histograms = [
        (SIZE, Unit::Count, "Jobs in a batch"),
        (
            WAIT,
            Unit::Seconds,
            "Longest time that a job of the batch waited for it",
        ),
        (
            DURATION,
            Unit::Seconds,
            "Time that the processor took for a batch",
        ),
    ];
    for (name, unit, text) in histograms {
        describe_histogram!(name, unit, text);
    }
    let gauges = [
        (
            STATES,
            Unit::Count,
            "Jobs that have not ended, by where they are",
        ),
        (IN_FLIGHT, Unit::Count, "Batches with the processor"),
        (CAPACITY, Unit::Count, "Jobs that the queue may hold"),
        (SIZE_LIMIT, Unit::Count, "Jobs that a batch may hold"),
        (
            INTERVAL,
            Unit::Seconds,
            "Longest time that the first pending job waits for company",
        ),
        (
            IN_FLIGHT_LIMIT,
            Unit::Count,
            "Batches that may be with the processor",
        ),
    ];
    for (name, unit, text) in gauges {
        describe_gauge!(name, unit, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_found_by_their_place() {
        for (place, reason) in REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
    }
}
