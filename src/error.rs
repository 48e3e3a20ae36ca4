//! The error types, one per operation.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Why a job has no result.
///
/// One failed batch gives every one of its jobs a clone of the same error, so
/// the processor's own error is behind an [`Arc`].
///
/// # Examples
///
/// What a processor may do to a batch:
///
/// ```
/// use microbatch::{CancellationToken, JobError, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let faulty = MicroBatch::builder(|jobs: Vec<&'static str>| async move {
///     match jobs[0] {
///         "fail" => Err(std::io::Error::other("disk full")),
///         "panic" => panic!("index out of bounds"),
///         _ => Ok(Vec::<()>::new()), // no result for its job
///     }
/// })
/// .max_batch_size(1)
/// .build_running(CancellationToken::new())?;
///
/// for job in ["fail", "panic", "forget"] {
///     match faulty.submit(job).await.unwrap_err() {
///         JobError::Failed(cause) => {
///             assert!(cause.is::<std::io::Error>());
///             assert_eq!((job, &*cause.to_string()), ("fail", "disk full"));
///         }
///         JobError::Panicked(message) => {
///             assert_eq!((job, &*message), ("panic", "index out of bounds"));
///         }
///         JobError::ResultCount { expected, actual } => {
///             assert_eq!((job, expected, actual), ("forget", 1, 0));
///         }
///         other => panic!("{other}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// And what may happen without it:
///
/// ```
/// # use microbatch::{JobError, MicroBatch};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let echo = MicroBatch::builder(|texts: Vec<&'static str>| async move { Ok::<_, String>(texts) })
///     .max_batch_weight(8, |text| text.len())
///     .build()?;
/// let heavy = echo.submit("much too long").await;
/// assert!(matches!(heavy, Err(JobError::TooHeavy { weight: 13, limit: 8 })));
/// let message = heavy.unwrap_err().to_string();
/// assert_eq!(message, "the job weighs 13, but a batch may weigh 8 at most");
///
/// let accepted = echo.submit("short");
/// echo.shutdown().await?; // it was never started, so it cannot process what it accepted
/// assert!(matches!(accepted.await, Err(JobError::Abandoned)));
/// assert!(matches!(echo.submit("late").await, Err(JobError::Closed)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JobError {
    /// The job was never accepted: it was not and will not be processed.
    Closed,
    /// The job alone weighs more than a batch may; it was never accepted.
    TooHeavy {
        /// What the weight function said of this job.
        weight: usize,
        /// The limit in force, that of
        /// [`max_batch_weight`](crate::MicroBatchBuilder::max_batch_weight) or of a later
        /// [`reconfigure`](crate::MicroBatch::reconfigure).
        limit: usize,
    },
    /// The processor returned this error for the whole batch. It is also this
    /// error's [`source`](Error::source), ready to be downcast.
    ///
    /// Without a call of the processor it is a [`tokio::sync::AcquireError`] if the
    /// semaphore of [`permits`](crate::MicroBatchBuilder::permits) is closed, and a
    /// [`BuildError`] if the options of a key of a [`Keyed`](crate::Keyed) are wrong.
    Failed(Arc<dyn Error + Send + Sync>),
    /// The processor panicked with this message; or the weight function, or the
    /// hash or comparison of a key or id, or the clone of a retained result, or the
    /// function that sets the options of a key.
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
                write!(
                    f,
                    "the job weighs {weight}, but a batch may weigh {limit} at most"
                )
            }
            Self::Failed(_) => f.write_str("the batch failed"),
            Self::Panicked(message) => {
                write!(f, "the processor or a callback panicked: {message}")
            }
            Self::ResultCount { expected, actual } => write!(
                f,
                "the processor returned {actual} result{} for {expected} job{}",
                plural(*actual),
                plural(*expected)
            ),
            Self::Abandoned => {
                f.write_str("the job was accepted and then abandoned; its outcome is unknown")
            }
        }
    }
}

/// Returns the ending of a noun after that number.
fn plural(number: usize) -> &'static str {
    if number == 1 { "" } else { "s" }
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
///
/// # Examples
///
/// ```
/// use microbatch::{MicroBatch, TrySubmitError};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let echo = |texts: Vec<&'static str>| async move { Ok::<_, String>(texts) };
/// let texts = MicroBatch::builder(echo)
///     .queue_capacity(1)
///     .max_batch_weight(8, |text| text.len())
///     .build()?;
/// let status = |text| match texts.try_submit(text) {
///     Ok(_handle) => 202,
///     Err(TrySubmitError::Full(_)) => 429,
///     Err(TrySubmitError::TooHeavy(_)) => 413,
///     Err(TrySubmitError::Closed(_)) => 503,
/// };
/// assert_eq!(status("much too long"), 413);
/// assert_eq!((status("first"), status("second")), (202, 429));
/// texts.shutdown().await?;
/// assert_eq!(status("third"), 503);
/// # Ok(())
/// # }
/// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::MicroBatch;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// let near = MicroBatch::builder(echo).queue_capacity(1).build()?;
    /// let far = MicroBatch::builder(echo).queue_capacity(1000).build()?;
    /// let _handles = [1, 2, 3].map(|job| match near.try_submit(job) {
    ///     Ok(handle) => handle,
    ///     Err(refused) => far.submit(refused.into_job()),
    /// });
    /// assert_eq!((near.stats().accepted, far.stats().accepted), (1, 2));
    /// # Ok(())
    /// # }
    /// ```
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
///
/// # Examples
///
/// ```
/// use microbatch::{Closed, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let echo = MicroBatch::new(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) });
/// assert!(echo.reserve().await.is_ok());
/// echo.shutdown().await?;
/// assert_eq!(echo.reserve().await.unwrap_err(), Closed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the micro-batcher is closed")]
pub struct Closed;

/// Why [`start`](crate::MicroBatch::start) returned other than by a complete
/// drain.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, MicroBatch, ShutdownTimeout, StartError};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hung = MicroBatch::new(|_: Vec<u8>| std::future::pending::<Result<Vec<u8>, String>>());
/// let cancel = CancellationToken::new();
/// let run = tokio::spawn(hung.start(cancel.clone()));
/// assert_eq!(hung.start(cancel.clone()).await, Err(StartError::AlreadyStarted));
///
/// let _handle = hung.submit(1);
/// cancel.cancel();
/// let timeout = ShutdownTimeout { abandoned: 1 };
/// assert_eq!(run.await?, Err(StartError::ShutdownTimeout(timeout)));
/// # Ok(())
/// # }
/// ```
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
///
/// # Examples
///
/// ```
/// # use microbatch::{CancellationToken, JobError, MicroBatch};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// # let hung = MicroBatch::new_running(
/// #     CancellationToken::new(),
/// #     |_: Vec<u8>| std::future::pending::<Result<Vec<u8>, String>>(),
/// # );
/// let handles = [hung.submit(1), hung.submit(2)];
/// let timeout = hung.shutdown().await.unwrap_err();
/// assert_eq!(timeout.abandoned, 2);
/// assert_eq!(timeout.to_string(), "the shutdown timed out and abandoned 2 jobs");
/// for handle in handles {
///     assert!(matches!(handle.await, Err(JobError::Abandoned)));
/// }
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shutdown timed out and abandoned {abandoned} job{}", plural(*.abandoned))]
pub struct ShutdownTimeout {
    /// How many accepted jobs were given up; their handles resolve as
    /// [`JobError::Abandoned`].
    pub abandoned: usize,
}

/// Why [`reconfigure`](crate::MicroBatch::reconfigure) changed nothing.
///
/// # Examples
///
/// ```
/// use microbatch::{BuildError, MicroBatch, ReconfigureError};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let echo = MicroBatch::new(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) });
/// let refused = echo.reconfigure(|settings| settings.max_batch_size = 0);
/// assert_eq!(refused, Err(ReconfigureError::Invalid(BuildError::Zero("max_batch_size"))));
/// echo.shutdown().await?;
/// let refused = echo.reconfigure(|settings| settings.max_batch_size = 10);
/// assert_eq!(refused, Err(ReconfigureError::Closed));
/// # Ok(())
/// # }
/// ```
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
///
/// # Examples
///
/// ```
/// use microbatch::{BuildError, MicroBatch};
///
/// let configured = 0; // as read from a file
/// let built = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
///     .queue_capacity(configured)
///     .build();
/// let error = built.unwrap_err();
/// assert!(matches!(error, BuildError::Zero("queue_capacity")));
/// assert_eq!(error.to_string(), "`queue_capacity` must be greater than zero");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The named option is zero, and has no meaning at zero.
    #[error("`{0}` must be greater than zero")]
    Zero(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_a_singular_and_a_plural() {
        let count = |expected, actual| JobError::ResultCount { expected, actual }.to_string();
        assert_eq!(count(1, 2), "the processor returned 2 results for 1 job");
        assert_eq!(count(3, 1), "the processor returned 1 result for 3 jobs");
        let timeout = |abandoned| ShutdownTimeout { abandoned }.to_string();
        assert_eq!(timeout(1), "the shutdown timed out and abandoned 1 job");
        assert_eq!(timeout(0), "the shutdown timed out and abandoned 0 jobs");
    }
}
