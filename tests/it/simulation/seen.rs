//! What is seen of one run, and when. The model judges by this alone.

use std::time::Duration;

use microbatch::{FlushReason, JobError, Settings, ShutdownTimeout, Stats};
use tokio::sync::AcquireError;

use super::doubles::{self, Answer};
use super::scenario::{Job, Options};

/// A point of the run: the order of all that was seen, and virtual time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment {
    pub(crate) tick: u64,
    pub(crate) ms: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) jobs: Vec<JobSeen>,
    pub(crate) batches: Vec<BatchSeen>,
    pub(crate) flushes: Vec<FlushSeen>,
    pub(crate) shutdowns: Vec<ShutdownSeen>,
    pub(crate) reservations: Vec<ReservationSeen>,
    /// How many jobs a storage of the user's held since when, and whether that
    /// was after it had been asked for some.
    pub(crate) held: Vec<(Moment, usize, Asked)>,
    /// What was put in force when; that of the options first.
    pub(crate) limits: Vec<(Moment, Limits)>,
    /// Pauses and resumes.
    pub(crate) pauses: Vec<(Moment, bool)>,
    /// By how many there were more permits when, or fewer.
    pub(crate) permits: Vec<(Moment, isize)>,
    pub(crate) semaphore_closed: Option<Moment>,
    /// Batches that got no permit.
    pub(crate) failures: Vec<(Moment, Report)>,
    /// Changes that were refused.
    pub(crate) invalid_changes: usize,
    pub(crate) loop_: LoopSeen,
    /// The first `shutdown`, or the drop of the last `MicroBatch`.
    pub(crate) closed: Option<Moment>,
    pub(crate) cancelled: Option<Moment>,
    /// Processor futures alive now.
    pub(crate) processing: usize,
    pub(crate) answers_alive: usize,
    /// The counters when all was over.
    pub(crate) stats: Option<Stats>,
    pub(crate) end: Moment,
    /// What was wrong at the moment it was seen.
    pub(crate) blames: Vec<String>,
}

/// The settings of a time. Times are in milliseconds, and `None` is for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_batch_size: usize,
    pub(crate) max_batch_weight: Option<usize>,
    pub(crate) interval: Option<u64>,
    pub(crate) max_in_flight: usize,
    pub(crate) flush_when_idle: bool,
    pub(crate) flush_cost: Option<u64>,
}

impl From<&Options> for Limits {
    fn from(options: &Options) -> Self {
        Self {
            max_batch_size: options.max_batch_size,
            max_batch_weight: options.max_batch_weight,
            interval: options.interval,
            max_in_flight: options.max_in_flight,
            flush_when_idle: options.flushes_when_idle(),
            flush_cost: options.cost(),
        }
    }
}

impl From<Settings> for Limits {
    fn from(settings: Settings) -> Self {
        let ms = |delay: Duration| u64::try_from(delay.as_millis()).ok();
        let weight = settings.max_batch_weight;
        Self {
            max_batch_size: settings.max_batch_size,
            max_batch_weight: Some(weight).filter(|weight| *weight < usize::MAX),
            interval: ms(settings.interval),
            max_in_flight: settings.max_in_flight,
            flush_when_idle: settings.flush_when_idle,
            flush_cost: settings.flush_cost.and_then(ms),
        }
    }
}

#[derive(Debug)]
pub(crate) struct JobSeen {
    pub(crate) plan: Job,
    pub(crate) way: Way,
    pub(crate) admission: Admission,
    /// Since when the job could have been accepted.
    pub(crate) entered: Option<Moment>,
    /// When it was certain that the job had been accepted.
    pub(crate) accepted: Option<Moment>,
    pub(crate) handle: Handle,
    pub(crate) batches: Vec<usize>,
    /// The storage dropped it.
    pub(crate) lost: bool,
    pub(crate) weighed: bool,
    /// What a batch might weigh when the job was weighed.
    pub(crate) limit: Option<usize>,
    pub(crate) dropped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Submit,
    TrySubmit,
    Permit,
    SubmitAll,
}

/// Whether a job has been accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Not submitted yet.
    Outside,
    Waiting,
    Accepted,
    Refused,
    /// Dropped by its caller, before or after it was accepted.
    Unclear,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Handle {
    Held,
    Dropped(Moment),
    Resolved(Moment, Outcome),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Result(u64),
    Closed,
    TooHeavy {
        weight: usize,
        limit: usize,
    },
    /// The batch that the error names.
    Failed(Option<usize>),
    /// The semaphore is closed.
    NoPermit,
    Panicked(String),
    ResultCount {
        expected: usize,
        actual: usize,
    },
    Abandoned,
    Unknown,
}

impl From<&Result<Answer, JobError>> for Outcome {
    fn from(result: &Result<Answer, JobError>) -> Self {
        match result {
            Ok(answer) => Self::Result(answer.value),
            Err(error) => Self::from(error),
        }
    }
}

impl From<&JobError> for Outcome {
    fn from(error: &JobError) -> Self {
        match error {
            JobError::Closed => Self::Closed,
            JobError::TooHeavy { weight, limit } => Self::TooHeavy {
                weight: *weight,
                limit: *limit,
            },
            JobError::Failed(error) if error.is::<AcquireError>() => Self::NoPermit,
            JobError::Failed(error) => {
                let failure = error.downcast_ref::<doubles::Failure>();
                Self::Failed(failure.map(|failure| failure.batch))
            }
            JobError::Panicked(message) => Self::Panicked(message.to_string()),
            JobError::ResultCount { expected, actual } => Self::ResultCount {
                expected: *expected,
                actual: *actual,
            },
            JobError::Abandoned => Self::Abandoned,
            _ => Self::Unknown,
        }
    }
}

#[derive(Debug)]
pub(crate) struct BatchSeen {
    pub(crate) jobs: Vec<usize>,
    pub(crate) began: Moment,
    pub(crate) ended: Option<(Moment, End)>,
    pub(crate) report: Option<Report>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Well,
    Error,
    Panic,
    Count(usize),
    /// Its future was dropped halfway.
    Dropped,
}

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) size: usize,
    pub(crate) weight: usize,
    pub(crate) reason: FlushReason,
    pub(crate) waited: u64,
    pub(crate) took: u64,
    pub(crate) error: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Yes,
    No,
}

#[derive(Debug)]
pub(crate) struct FlushSeen {
    pub(crate) asked: Moment,
    pub(crate) answered: Option<Moment>,
}

#[derive(Debug)]
pub(crate) struct ShutdownSeen {
    pub(crate) asked: Moment,
    pub(crate) answered: Option<(Moment, Result<(), ShutdownTimeout>)>,
}

#[derive(Debug)]
pub(crate) struct ReservationSeen {
    pub(crate) asked: Moment,
    pub(crate) granted: Option<Moment>,
    /// Neither waited for nor held any more.
    pub(crate) left: Option<Moment>,
}

#[derive(Debug, Default)]
pub(crate) struct LoopSeen {
    /// `start` was called, and it was the first call.
    pub(crate) started: bool,
    pub(crate) began: Option<Moment>,
    /// Dropped before it had ended, by itself or with its runtime.
    pub(crate) cut_short: Option<Moment>,
    pub(crate) ended: Option<(Moment, Result<(), ShutdownTimeout>)>,
    pub(crate) polls: usize,
}

impl JobSeen {
    /// Notes that the job has been accepted, at that moment or before.
    pub(crate) fn accepted_by(&mut self, now: Moment) {
        self.admission = Admission::Accepted;
        self.entered.get_or_insert(now);
        self.accepted.get_or_insert(now);
    }
}

impl Seen {
    /// The settings in force once nothing happens any more at that time.
    pub(crate) fn limits_at(&self, ms: u64) -> Limits {
        let before = self.limits.iter().take_while(|(at, _)| at.ms <= ms);
        before.last().map(|(_, limits)| *limits).expect("the first")
    }

    /// The settings under which a batch can have been cut that began at that moment.
    /// That took no time, but other things may have happened in between.
    pub(crate) fn limits_around(&self, began: Moment) -> impl Iterator<Item = &Limits> {
        let until = self.limits.iter().skip(1).map(|(at, _)| at.ms);
        let until = until.chain([u64::MAX]);
        let in_force = self.limits.iter().zip(until);
        let in_force =
            in_force.filter(move |((from, _), until)| *from <= began && *until >= began.ms);
        in_force.map(|((_, limits), _)| limits)
    }

    pub(crate) fn max_of_limits(&self, of: impl Fn(&Limits) -> usize) -> usize {
        let all = self.limits.iter().map(|(_, limits)| of(limits));
        all.max().unwrap_or(0)
    }

    /// Whether batches are held back, once nothing happens any more at that time.
    pub(crate) fn is_paused_at(&self, ms: u64) -> bool {
        let before = self.pauses.iter().take_while(|(at, _)| at.ms <= ms);
        let closed = self.closed_from().is_some_and(|closed| closed.ms <= ms);
        before.last().is_some_and(|(_, paused)| *paused) && !closed
    }

    /// How many permits there are at that time, with those of the batches.
    pub(crate) fn permits_at(&self, ms: u64) -> usize {
        let before = self.permits.iter().take_while(|(at, _)| at.ms <= ms);
        let count: isize = before.map(|(_, more)| more).sum();
        count.unsigned_abs()
    }

    /// Whether anything was changed or paused in that time, after which jobs may
    /// count as accepted earlier than they were.
    pub(crate) fn was_steered(&self, from: Moment, to: Moment) -> bool {
        let changes = self.limits.iter().skip(1).map(|(at, _)| *at);
        let mut all = changes.chain(self.pauses.iter().map(|(at, _)| *at));
        all.any(|at| (from..=to).contains(&at))
    }

    /// When the loop knew that it had to stop.
    pub(crate) fn stopped(&self) -> Option<Moment> {
        let began = self.loop_.began?;
        let stopped = self.closed.into_iter().chain(self.cancelled).min()?;
        Some(stopped.max(began))
    }

    /// The first moment at which the queue may be closed.
    pub(crate) fn closed_from(&self) -> Option<Moment> {
        let closed = self.closed.into_iter();
        closed
            .chain(self.stopped())
            .chain(self.loop_.cut_short)
            .min()
    }
}
