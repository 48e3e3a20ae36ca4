//! A job as a store has it: an id and bytes.

use std::borrow::Borrow;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::codec::Codec;
use crate::outcome::{Refusal, describe};
use crate::panics::catch;

/// The name of a job, chosen by who submits it. A store has one job of an id at a time,
/// so a caller that does not know whether its job arrived submits it again.
///
/// 1 to 255 bytes without a NUL; a store refuses others as [`Refusal::BadId`].
///
/// # Examples
///
/// ```
/// use microbatch_durable::JobId;
///
/// let id = JobId::from(format!("order-{}", 7));
/// assert_eq!(&*id, "order-7");
/// assert!(id.check().is_ok());
/// assert!(JobId::from("").check().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Arc<str>);

impl JobId {
    /// The most bytes of an id.
    pub const MAX_LEN: usize = 255;

    /// Returns whether a store takes this id.
    ///
    /// # Errors
    ///
    /// [`Refusal::BadId`].
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{JobId, Refusal};
    ///
    /// assert_eq!(JobId::from("order-7").check(), Ok(()));
    /// assert_eq!(JobId::from("a\0b").check(), Err(Refusal::BadId));
    /// assert_eq!(JobId::from("x".repeat(JobId::MAX_LEN + 1)).check(), Err(Refusal::BadId));
    /// ```
    pub fn check(&self) -> Result<(), Refusal> {
        match (1..=Self::MAX_LEN).contains(&self.0.len()) && !self.0.contains('\0') {
            true => Ok(()),
            false => Err(Refusal::BadId),
        }
    }
}

impl<T: Into<Arc<str>>> From<T> for JobId {
    fn from(id: T) -> Self {
        Self(id.into())
    }
}

impl Deref for JobId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for JobId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for JobId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A job to append.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{MemoryStore, NewJob, Store};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let job = NewJob { id: "a".into(), codec: "json".into(), payload: "[1,2]".into() };
/// store.append(&[job]).await?;
/// assert_eq!(store.lease(1).await?[0].payload, "[1,2]");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its name.
    pub id: JobId,
    /// The name of the codec that encoded it; see [`Codec::NAME`](crate::Codec::NAME).
    pub codec: Arc<str>,
    /// The job, encoded.
    pub payload: Bytes,
}

impl NewJob {
    /// Encodes a job, for an append without a [`Durable`](crate::Durable).
    ///
    /// # Errors
    ///
    /// [`BadId`](Refusal::BadId), or [`Unencodable`](Refusal::Unencodable) if the codec fails or
    /// panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Json, NewJob};
    ///
    /// let job = NewJob::encode("order-7", &vec![1, 2], &Json)?;
    /// assert_eq!((&*job.codec, &*job.payload), ("json", &b"[1,2]"[..]));
    /// # Ok::<_, microbatch_durable::Refusal>(())
    /// ```
    pub fn encode<J, C: Codec<J>>(
        id: impl Into<JobId>,
        job: &J,
        codec: &C,
    ) -> Result<Self, Refusal> {
        Self::encoded(id.into(), job, codec, &C::NAME.into())
    }

    pub(crate) fn encoded<J, C: Codec<J>>(
        id: JobId,
        job: &J,
        codec: &C,
        codec_name: &Arc<str>,
    ) -> Result<Self, Refusal> {
        id.check()?;
        let encode = || codec.encode(job).map_err(|error| describe(&*error));
        let payload = catch(encode)
            .unwrap_or_else(|message| Err(format!("the codec panicked: {message}")))
            .map_err(|reason| Refusal::Unencodable { reason })?;
        Ok(Self {
            id,
            codec: Arc::clone(codec_name),
            payload,
        })
    }

    /// Returns whether a store takes it that takes so many bytes.
    pub(crate) fn check(&self, max_payload: usize) -> Result<(), Refusal> {
        self.id.check()?;
        let (size, limit) = (self.payload.len(), max_payload);
        match size > limit {
            true => Err(Refusal::TooLarge { size, limit }),
            false => Ok(()),
        }
    }
}

/// One delivery of one job.
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
/// store.append(&[job("a")]).await?;
/// let leased = store.lease(1).await?.remove(0);
/// assert_eq!((&*leased.id, leased.attempt.get(), &*leased.codec), ("a", 1, "json"));
/// store.settle(&[(leased.lease, Verdict::Done)]).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased<L> {
    /// The job's name.
    pub id: JobId,
    /// Which delivery this is, from 1. It was durable before the store gave the job out.
    pub attempt: NonZeroU32,
    /// The name of the codec that encoded it.
    pub codec: Arc<str>,
    /// The job, encoded.
    pub payload: Bytes,
    /// When it was appended, by the store's clock.
    pub appended: SystemTime,
    /// Settles this delivery, and no other.
    pub lease: L,
}

/// A job that is never tried again unless it is revived.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{DeadLetters, MemoryStore, Store, Verdict};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// store.append(&[job("a")]).await?;
/// let lease = store.lease(1).await?.remove(0).lease;
/// store.settle(&[(lease, Verdict::Dead { reason: "no such address".to_owned() })]).await?;
/// let dead = store.list(None, 10).await?.remove(0);
/// assert_eq!((&*dead.id, dead.attempt, &*dead.reason), ("a", 1, "no such address"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadJob {
    /// The job's name. No other job can have it until this one is revived and done, or
    /// discarded.
    pub id: JobId,
    /// How many deliveries it had.
    pub attempt: u32,
    /// The name of the codec that encoded it.
    pub codec: Arc<str>,
    /// The job, encoded, as it was appended.
    pub payload: Bytes,
    /// When it was appended.
    pub appended: SystemTime,
    /// When it was declared dead.
    pub died: SystemTime,
    /// Why.
    pub reason: String,
}

/// How many jobs a store has, and in which state.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{MemoryStore, Store};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// store.append(&[job("a"), job("b"), job("c")]).await?;
/// store.lease(1).await?;
/// let depth = store.depth().await?;
/// assert_eq!((depth.ready, depth.leased, depth.pending()), (2, 1, 3));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Jobs that can be leased now.
    pub ready: u64,
    /// Jobs whose lease holds.
    pub leased: u64,
    /// Jobs that wait for their next attempt.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the first appended of the jobs that are not dead was appended. One that was
    /// revived counts as appended last.
    pub oldest: Option<SystemTime>,
}

impl Depth {
    /// Returns the backlog: jobs that are not yet settled, dead ones left out.
    ///
    /// ```
    /// let depth = microbatch_durable::Depth { ready: 3, leased: 2, dead: 9, ..Default::default() };
    /// assert_eq!(depth.pending(), 5);
    /// ```
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.ready + self.leased + self.delayed
    }
}
