//! What a store answers of each job, and what it is told of each.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

/// What became of a job that was to be appended.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{Appended, MemoryStore, Refusal, Store};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let twice = store.append(&[job("a"), job("a"), job("")]).await?;
/// assert_eq!(twice, [Appended::New, Appended::Duplicate, Appended::Refused(Refusal::BadId)]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// It is in the store, and as durable as that store makes a job.
    New,
    /// The store has, or had until lately, a job of this id. It was not appended again.
    Duplicate,
    /// The store cannot hold it, now or later.
    Refused(Refusal),
}

impl Appended {
    /// Returns whether the store has, or has had, a job of this id: all but `Refused`.
    ///
    /// ```
    /// use microbatch_durable::{Appended, Refusal};
    ///
    /// assert!(Appended::New.is_accepted() && Appended::Duplicate.is_accepted());
    /// assert!(!Appended::Refused(Refusal::BadId).is_accepted());
    /// ```
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// Why a store refused a job.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{Appended, MemoryStore, NewJob, Refusal, Store};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::builder().max_payload(3).build();
/// let job = NewJob { id: "a".into(), codec: "json".into(), payload: "1234".into() };
/// let answers = store.append(&[job]).await?;
/// match &answers[0] {
///     Appended::Refused(Refusal::TooLarge { size, limit }) => assert_eq!((*size, *limit), (4, 3)),
///     other => panic!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The encoded job is larger than the store takes.
    #[error("the encoded job has {size} bytes; this store takes {limit}")]
    TooLarge {
        /// Bytes of the encoded job.
        size: usize,
        /// Bytes that the store takes.
        limit: usize,
    },
    /// The id is empty, longer than [`JobId::MAX_LEN`](crate::JobId::MAX_LEN), or has a
    /// NUL in it.
    #[error("an id has 1 to 255 bytes, none of them zero")]
    BadId,
    /// The codec could not encode the job. No store was asked.
    #[error("the job cannot be encoded: {reason}")]
    Unencodable {
        /// What the codec said.
        reason: String,
    },
}

/// What is to become of a leased job.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{MemoryStore, Store, Verdict};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// store.append(&[job("good"), job("bad")]).await?;
/// let leased = store.lease(2).await?;
/// let dead = Verdict::Dead { reason: "no such address".to_owned() };
/// store.settle(&[(leased[0].lease.clone(), Verdict::Done), (leased[1].lease.clone(), dead)]).await?;
/// let depth = store.depth().await?;
/// assert_eq!((depth.pending(), depth.dead), (0, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is done and leaves the store.
    Done,
    /// It is tried again. A [`Drain`](crate::Drain) does so after `after` or its own
    /// backoff, whichever is longer, and declares it dead if this was its last attempt.
    Retry {
        /// The shortest time until the next attempt.
        after: Duration,
        /// Why, for people who read logs and dead letters.
        reason: String,
    },
    /// It is never tried again, and kept among the dead letters.
    Dead {
        /// Why; never empty for what a [`Drain`](crate::Drain) declares dead.
        reason: String,
    },
    /// It is given back as if it had not been leased: due at once, this attempt
    /// not counted.
    Release,
    /// The processor has settled it itself, together with its effects. The store does
    /// nothing, so the job of a processor that has not stays leased until its lease ends;
    /// `MemoryStore` and `RedbStore` have no such way to settle.
    Settled,
}

/// Whether a lease still held when it was settled or extended.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{MemoryStore, Settled, Store, Verdict};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// store.append(&[job("a")]).await?;
/// let done = [(store.lease(1).await?[0].lease.clone(), Verdict::Done)];
/// assert_eq!(store.settle(&done).await?, [Settled::Held]);
/// assert_eq!(store.settle(&done).await?, [Settled::Lost]); // it is settled
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settled {
    /// It held; what was asked is done.
    Held,
    /// Somebody else may have the job, or it is settled. Nothing was changed.
    Lost,
    /// This store cannot tell.
    Unknown,
}

/// A processor's result for one job, as a verdict.
///
/// `()` is `Done`. A `Result` is `Done`, or `Retry` with the error and its causes as the
/// reason, which is what [`bisect`](microbatch::BatchProcessorExt::bisect) returns. A
/// [`Verdict`] is itself.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{IntoVerdict, Verdict};
///
/// enum Delivery { Sent, NoSuchAddress }
///
/// impl IntoVerdict for Delivery {
///     fn into_verdict(self, _attempt: u32) -> Verdict {
///         match self {
///             Self::Sent => Verdict::Done,
///             Self::NoSuchAddress => Verdict::Dead { reason: "no such address".to_owned() },
///         }
///     }
/// }
///
/// assert_eq!(Delivery::Sent.into_verdict(1), Verdict::Done);
/// assert_eq!(().into_verdict(1), Verdict::Done);
/// assert!(matches!("7x".parse::<u8>().into_verdict(1), Verdict::Retry { .. }));
/// ```
pub trait IntoVerdict {
    /// Makes the verdict. `attempt` counts from 1. A panic counts as `Retry`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{IntoVerdict, Verdict};
    ///
    /// struct Unsure;
    ///
    /// impl IntoVerdict for Unsure {
    ///     fn into_verdict(self, attempt: u32) -> Verdict {
    ///         match attempt {
    ///             1 => Verdict::Retry { after: Duration::from_secs(60), reason: "unsure".to_owned() },
    ///             _ => Verdict::Dead { reason: "still unsure".to_owned() },
    ///         }
    ///     }
    /// }
    ///
    /// assert!(matches!(Unsure.into_verdict(1), Verdict::Retry { .. }));
    /// assert!(matches!(Unsure.into_verdict(2), Verdict::Dead { .. }));
    /// ```
    fn into_verdict(self, attempt: u32) -> Verdict;
}

impl IntoVerdict for () {
    fn into_verdict(self, _: u32) -> Verdict {
        Verdict::Done
    }
}

impl IntoVerdict for Verdict {
    fn into_verdict(self, _: u32) -> Verdict {
        self
    }
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> IntoVerdict for Result<T, E> {
    fn into_verdict(self, _: u32) -> Verdict {
        match self {
            Ok(_) => Verdict::Done,
            Err(error) => Verdict::Retry {
                after: Duration::ZERO,
                reason: describe(&*error.into()),
            },
        }
    }
}

/// Writes an error and its causes in one line.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
