//! The error types, one per operation.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Why a job has no result.
///
/// One failed batch gives every one of its jobs a clone of the same error, so
/// the processor's own error is behind an [`Arc`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JobError {
    /// The job was never accepted: it was not and will not be processed.
    Closed,
    /// The job alone weighs more than a batch may; it was never accepted.
    TooHeavy {
        /// What the weight function said of this job.
        weight: usize,
        /// The limit given to
        /// [`max_batch_weight`](crate::MicroBatchBuilder::max_batch_weight).
        limit: usize,
    },
    /// The processor returned this error for the whole batch. It is also this
    /// error's [`source`](Error::source), ready to be downcast.
    Failed(Arc<dyn Error + Send + Sync>),
    /// The processor panicked with this message; or the weight function, or the
    /// hash or comparison of a key or id, or the clone of a retained result.
    Panicked(Arc<str>),
    /// The processor returned another number of results than it was given
    /// jobs, so no result can be matched to its job.
    ResultCount {
        /// Jobs in the batch.
        expected: usize,
        /// Results returned for it.
        actual: usize,
    },
    /// The job was accepted and its outcome is unknown: a stop ran out of
    /// time, the runtime or the `start` future was dropped, or the storage
    /// dropped the job.
    Abandoned,
}

impl JobError {
    /// Makes of a processor's error what its callers get. A `JobError`, as of a
    /// processor that calls another micro-batcher or wraps a processor, is
    /// passed on as it is; but not one that says that a job was never accepted,
    /// which the processor's own jobs were.
    pub(crate) fn from_processor(error: Box<dyn Error + Send + Sync>) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => match *error {
                Self::Closed | Self::TooHeavy { .. } => Self::Failed(Arc::from(error as Box<_>)),
                error => error,
            },
            Err(error) => Self::Failed(Arc::from(error)),
        }
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the micro-batcher is closed; the job was not accepted"),
            Self::TooHeavy { weight, limit } => {
                write!(f, "the job weighs {weight}, a batch at most {limit}")
            }
            Self::Failed(_) => f.write_str("the processor failed the batch"),
            Self::Panicked(message) => write!(f, "the processor panicked: {message}"),
            Self::ResultCount { expected, actual } => write!(
                f,
                "the processor returned {actual} results for {expected} jobs"
            ),
            Self::Abandoned => {
                f.write_str("the job was accepted and then abandoned; its outcome is unknown")
            }
        }
    }
}

// By hand, because a derived `source` would hand out the `Arc` instead of the
// error in it, and `downcast_ref` would find nothing.
impl Error for JobError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(cause) => Some(&**cause),
            _ => None,
        }
    }
}

/// Why [`try_submit`](crate::MicroBatch::try_submit) refused a job. It gives
/// the job back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrySubmitError<J> {
    /// The queue has no room now.
    #[error("the queue is full")]
    Full(J),
    /// The micro-batcher takes no more jobs.
    #[error("the micro-batcher is closed")]
    Closed(J),
    /// The job alone weighs more than a batch may.
    #[error("the job is heavier than a batch may be")]
    TooHeavy(J),
}

impl<J> TrySubmitError<J> {
    /// Returns the refused job.
    pub fn into_job(self) -> J {
        match self {
            Self::Full(job) | Self::Closed(job) | Self::TooHeavy(job) => job,
        }
    }
}

// By hand, so that a job need not be `Debug` for its refusal to be an error.
impl<J> fmt::Debug for TrySubmitError<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
            Self::TooHeavy(_) => "TooHeavy(..)",
        })
    }
}

/// Why [`reserve`](crate::MicroBatch::reserve) got no permit: the
/// micro-batcher takes no more jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the micro-batcher is closed")]
pub struct Closed;

/// Why [`start`](crate::MicroBatch::start) returned other than by a complete
/// drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Another call of `start` runs the loop or has run it to its end.
    #[error("the micro-batcher has been started before")]
    AlreadyStarted,
    /// The loop was stopped and could not drain in time.
    #[error(transparent)]
    ShutdownTimeout(#[from] ShutdownTimeout),
}

/// A stop ran past its
/// [`shutdown_timeout`](crate::MicroBatchBuilder::shutdown_timeout).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shutdown timed out and {abandoned} jobs were abandoned")]
pub struct ShutdownTimeout {
    /// How many accepted jobs were given up; their handles resolve as
    /// [`JobError::Abandoned`].
    pub abandoned: usize,
}

/// Why [`reconfigure`](crate::MicroBatch::reconfigure) changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReconfigureError {
    /// A value means nothing; `build` would refuse it, too.
    #[error(transparent)]
    Invalid(#[from] BuildError),
    /// The micro-batcher is stopped.
    #[error("the micro-batcher is closed")]
    Closed,
}

/// Which value [`build`](crate::MicroBatchBuilder::build) refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The named option is zero, and has no meaning at zero.
    #[error("`{0}` must be greater than zero")]
    Zero(&'static str),
}
