//! What is seen of one run, and when. The model judges by this alone.

use microbatch::{FlushReason, JobError, ShutdownTimeout, Stats};

use super::doubles::{self, Answer};
use super::scenario::Job;

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
