//! The front: submits jobs, and says when they are in the store.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use microbatch::{
    BatchProcessor, BuildError, CancellationToken, JobError, JobHandle, MicroBatch,
    ShutdownTimeout, Stats, TrySubmitError,
};

use tokio::time::Instant;

use crate::codec::{Codec, Json};
use crate::gather;
use crate::job::{JobId, NewJob};
use crate::outcome::{Appended, Refusal, describe};
use crate::panics::catch;
use crate::store::Store;

/// How long the store's word on its backlog counts. Others may append to it as well.
const BACKLOG_AGE: Duration = Duration::from_secs(1);

/// The first and the longest pause between two looks at a backlog that is full.
const BACKLOG_PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// Submits jobs to a [`Store`], from any number of callers.
///
/// Inside is an ordinary [`MicroBatch`] over [`Store::append`] with `flush_when_idle`:
/// what is submitted while a commit runs shares the next one. No timer is involved, so a
/// lone caller pays one commit and does not wait.
///
/// It is cheap to clone; all clones are the same. Dropping the last one, cancelling its
/// token or [`shutdown`](Self::shutdown) appends what was accepted and ends it. The store
/// is not closed.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{Appended, CancellationToken, Durable, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mails = Durable::<String>::builder(MemoryStore::new())
///     .max_pending(10_000)
///     .build_running(CancellationToken::new())?;
///
/// assert_eq!(mails.submit("mail-1", "hello".to_owned()).await?, Appended::New);
/// // Not sure whether it arrived? Say it again.
/// assert_eq!(mails.submit("mail-1", "hello".to_owned()).await?, Appended::Duplicate);
/// # Ok(())
/// # }
/// ```
pub struct Durable<J> {
    batcher: MicroBatch<Request, Appended>,
    encode: Arc<Encode<J>>,
    backlog: Option<Arc<Backlog>>,
}

type Encode<J> = dyn Fn(JobId, &J) -> Result<NewJob, Refusal> + Send + Sync;

impl<J> Clone for Durable<J> {
    fn clone(&self) -> Self {
        Self {
            batcher: self.batcher.clone(),
            encode: Arc::clone(&self.encode),
            backlog: self.backlog.clone(),
        }
    }
}

impl<J: Send + 'static> Durable<J> {
    /// Starts to build one over this store. Jobs are encoded as [`Json`] unless another
    /// codec is chosen.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Appended, CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let numbers = Durable::<u32>::builder(MemoryStore::new()).build_running(CancellationToken::new())?;
    /// assert_eq!(numbers.submit("a", 1).await?, Appended::New);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<S: Store>(store: S) -> DurableBuilder<J, S, Json> {
        DurableBuilder {
            store,
            codec: Json,
            max_pending: None,
            max_batch_size: 1024,
            queue_capacity: 1024,
            shutdown_timeout: Duration::from_secs(5),
            name: None,
            job: std::marker::PhantomData,
        }
    }

    /// Submits a job under an id. The handle resolves once the job is durable, as far as
    /// the store promises that, or is known to be a duplicate or refused.
    ///
    /// While the backlog is at [`max_pending`](DurableBuilder::max_pending), the handle
    /// waits.
    ///
    /// # Errors
    ///
    /// Those of any [`JobHandle`]. [`JobError::Failed`] has the store's error, after which
    /// nothing is known; [`JobError::Abandoned`] says the same. Submit the job again under
    /// the same id: it is appended once, as long as it lives and for the store's
    /// deduplication window after.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Appended, CancellationToken, Durable, MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let numbers = Durable::<u32>::builder(store.clone()).build_running(CancellationToken::new())?;
    /// assert_eq!(numbers.submit("a", 7).await?, Appended::New);
    /// assert_eq!(store.lease(1).await?[0].payload, "7");
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit(&self, id: impl Into<JobId>, job: J) -> JobHandle<Appended> {
        self.batcher.submit(self.request(id.into(), &job))
    }

    /// Submits a job if that needs no waiting for room.
    ///
    /// The backlog is what the store said last, plus what was appended since; each refusal
    /// makes the store be asked anew.
    ///
    /// # Errors
    ///
    /// Gives id and job back: [`Full`](TrySubmitError::Full) if the backlog or the queue
    /// is full, [`Closed`](TrySubmitError::Closed) after the end.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Appended, CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let numbers = Durable::<u32>::builder(MemoryStore::new()).build_running(CancellationToken::new())?;
    /// assert_eq!(numbers.try_submit("a", 1)?.await?, Appended::New);
    /// numbers.shutdown().await?;
    /// let refused = numbers.try_submit("b", 2).unwrap_err();
    /// assert!(matches!(refused, microbatch::TrySubmitError::Closed((_, 2)))); // given back
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_submit(
        &self,
        id: impl Into<JobId>,
        job: J,
    ) -> Result<JobHandle<Appended>, TrySubmitError<(JobId, J)>> {
        let id = id.into();
        if self.batcher.is_closed() {
            return Err(TrySubmitError::Closed((id, job)));
        }
        if let Some(backlog) = &self.backlog
            && backlog.room() <= self.on_their_way()
        {
            if !backlog.refreshing.swap(true, Ordering::AcqRel)
                && self.batcher.try_submit(Request::Refresh).is_err()
            {
                backlog.refreshing.store(false, Ordering::Release);
            }
            return Err(TrySubmitError::Full((id, job)));
        }
        let request = self.request(id.clone(), &job);
        self.batcher
            .try_submit(request)
            .map_err(|error| match error {
                TrySubmitError::Closed(_) => TrySubmitError::Closed((id, job)),
                _ => TrySubmitError::Full((id, job)),
            })
    }

    /// Submits many jobs and waits for all, in order.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Appended, CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let numbers = Durable::<u32>::builder(MemoryStore::new()).build_running(CancellationToken::new())?;
    /// let answers = numbers.submit_all([("a", 1), ("b", 2), ("a", 1)]).await;
    /// let answers: Vec<_> = answers.into_iter().collect::<Result<_, _>>()?;
    /// assert_eq!(answers, [Appended::New, Appended::New, Appended::Duplicate]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit_all<I: Into<JobId>>(
        &self,
        jobs: impl IntoIterator<Item = (I, J)>,
    ) -> Vec<Result<Appended, JobError>> {
        let requests = jobs
            .into_iter()
            .map(|(id, job)| self.request(id.into(), &job));
        self.batcher.submit_all(requests).await
    }

    /// Stops: appends what was accepted and waits for that.
    ///
    /// # Errors
    ///
    /// [`ShutdownTimeout`] if that takes longer than
    /// [`shutdown_timeout`](DurableBuilder::shutdown_timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let numbers = Durable::<u32>::builder(store.clone()).build_running(CancellationToken::new())?;
    /// numbers.submit("a", 1).accepted().await?;
    /// numbers.shutdown().await?;
    /// assert_eq!(store.depth().await?.ready, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown(&self) -> impl Future<Output = Result<(), ShutdownTimeout>> + Send + 'static {
        self.batcher.shutdown()
    }

    /// Returns whether it takes no more jobs.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let numbers = Durable::<u32>::builder(MemoryStore::new()).build_running(CancellationToken::new())?;
    /// assert!(!numbers.is_closed());
    /// numbers.shutdown().await?;
    /// assert!(numbers.is_closed());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.batcher.is_closed()
    }

    /// Returns what the [`MicroBatch`] inside has done: its batches are commits.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let jobs = Durable::<u32>::builder(MemoryStore::new())
    ///     .build_running(CancellationToken::new())?;
    /// jobs.submit_all((0..10).map(|n| (format!("job-{n}"), n))).await;
    /// assert_eq!((jobs.stats().completed, jobs.stats().batches), (10, 1)); // one commit
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.batcher.stats()
    }

    /// Jobs that are submitted and not yet in the store.
    fn on_their_way(&self) -> usize {
        let stats = self.batcher.stats();
        stats.waiting + stats.queued + stats.pending + stats.processing
    }

    fn request(&self, id: JobId, job: &J) -> Request {
        match (self.encode)(id, job) {
            Ok(job) => Request::Append(job),
            Err(refusal) => Request::Refused(refusal),
        }
    }
}

impl<J> fmt::Debug for Durable<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable")
            .field("batcher", &self.batcher)
            .finish_non_exhaustive()
    }
}

/// Builds a [`Durable`].
///
/// # Examples
///
/// ```
/// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let jobs = Durable::<u32>::builder(MemoryStore::new())
///     .name("orders")
///     .max_pending(100_000)
///     .max_batch_size(500)
///     .build_running(CancellationToken::new())?;
/// assert!(jobs.submit("order-1", 7).await?.is_accepted());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct DurableBuilder<J, S, C = Json> {
    store: S,
    codec: C,
    max_pending: Option<u64>,
    max_batch_size: usize,
    queue_capacity: usize,
    shutdown_timeout: Duration,
    name: Option<String>,
    job: std::marker::PhantomData<fn(J)>,
}

impl<J: Send + 'static, S: Store, C> DurableBuilder<J, S, C> {
    /// Sets the codec.
    ///
    /// # Default
    ///
    /// [`Json`].
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Codec, Durable, MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// /// Numbers as text.
    /// struct Text;
    ///
    /// impl Codec<u32> for Text {
    ///     const NAME: &'static str = "text";
    ///     fn encode(&self, job: &u32) -> Result<bytes::Bytes, Box<dyn std::error::Error + Send + Sync>> {
    ///         Ok(job.to_string().into())
    ///     }
    ///     fn decode(&self, payload: &[u8]) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
    ///         Ok(std::str::from_utf8(payload)?.parse()?)
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let jobs = Durable::builder(store.clone())
    ///     .codec(Text)
    ///     .build_running(CancellationToken::new())?;
    /// jobs.submit("job-1", 42).await?;
    /// assert_eq!(&*store.lease(1).await?[0].codec, "text");
    /// # Ok(())
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    pub fn codec<D: Codec<J>>(self, codec: D) -> DurableBuilder<J, S, D> {
        DurableBuilder {
            store: self.store,
            codec,
            max_pending: self.max_pending,
            max_batch_size: self.max_batch_size,
            queue_capacity: self.queue_capacity,
            shutdown_timeout: self.shutdown_timeout,
            name: self.name,
            job: self.job,
        }
    }

    /// Sets how large the backlog in the store may grow, in jobs that are not settled.
    /// Beyond it [`submit`](Durable::submit) waits and [`try_submit`](Durable::try_submit)
    /// refuses. Others that append to the same store are not held back by it, and can take
    /// the backlog beyond it.
    ///
    /// # Default
    ///
    /// No limit.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let jobs = Durable::<u32>::builder(MemoryStore::new())
    ///     .max_pending(2)
    ///     .build_running(CancellationToken::new())?;
    /// jobs.submit_all([("a", 1), ("b", 2)]).await;
    /// assert!(jobs.try_submit("c", 3).is_err()); // until something is settled
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_pending(mut self, jobs: usize) -> Self {
        self.max_pending = Some(jobs as u64);
        self
    }

    /// Sets the most jobs of one commit.
    ///
    /// # Default
    ///
    /// 1024.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let jobs = Durable::<u32>::builder(MemoryStore::new())
    ///     .max_batch_size(4)
    ///     .build_running(CancellationToken::new())?;
    /// jobs.submit_all((0..10).map(|n| (format!("job-{n}"), n))).await;
    /// assert_eq!(jobs.stats().batches, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_batch_size(mut self, jobs: usize) -> Self {
        self.max_batch_size = jobs;
        self
    }

    /// Sets how many jobs may wait for their commit before [`submit`](Durable::submit)
    /// waits for room.
    ///
    /// # Default
    ///
    /// 1024.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let jobs = Durable::<u32>::builder(MemoryStore::new())
    ///     .queue_capacity(1)
    ///     .build_running(CancellationToken::new())?;
    /// let first = jobs.try_submit("a", 1)?;
    /// assert!(jobs.try_submit("b", 2).is_err()); // the loop has not run yet
    /// assert!(first.await?.is_accepted());
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue_capacity(mut self, jobs: usize) -> Self {
        self.queue_capacity = jobs;
        self
    }

    /// Sets how long a stop may take.
    ///
    /// # Default
    ///
    /// 5 seconds.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let jobs = Durable::<u32>::builder(MemoryStore::new())
    ///     .max_pending(1)
    ///     .shutdown_timeout(Duration::from_millis(200))
    ///     .build_running(CancellationToken::new())?;
    /// jobs.submit("a", 1).await?;
    /// let late = jobs.submit("b", 2); // waits for room, which nobody makes
    /// tokio::task::yield_now().await;
    /// assert_eq!(jobs.shutdown().await.unwrap_err().abandoned, 1);
    /// assert!(late.await.is_err()); // submit it again, with the next start
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets the name in its spans and events.
    ///
    /// # Default
    ///
    /// None.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let jobs = Durable::<u32>::builder(MemoryStore::new())
    ///     .name("orders") // the field `name` of its spans and events
    ///     .build_running(CancellationToken::new())?;
    /// assert!(jobs.submit("order-1", 7).await?.is_accepted());
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Builds and starts it on the current runtime.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the option that is zero.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Durable, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let wrong = Durable::<u32>::builder(MemoryStore::new())
    ///     .max_pending(0)
    ///     .build_running(CancellationToken::new());
    /// assert!(wrong.unwrap_err().to_string().contains("max_pending"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_running(self, cancel: CancellationToken) -> Result<Durable<J>, BuildError>
    where
        C: Codec<J>,
    {
        if self.max_pending == Some(0) {
            return Err(BuildError::Zero("max_pending"));
        }
        let backlog = self.max_pending.map(|limit| Arc::new(Backlog::new(limit)));
        let appender = Appender {
            store: Arc::new(self.store),
            backlog: backlog.clone(),
        };
        let mut builder = MicroBatch::builder(appender)
            .flush_when_idle(true)
            .max_batch_size(self.max_batch_size)
            .queue_capacity(self.queue_capacity)
            .shutdown_timeout(self.shutdown_timeout);
        if let Some(name) = self.name {
            builder = builder.name(name);
        }
        let (codec, codec_name) = (self.codec, Arc::<str>::from(C::NAME));
        let batcher = builder.build()?;
        gather::start(&batcher, cancel);
        Ok(Durable {
            batcher,
            encode: Arc::new(move |id, job| encode(&codec, &codec_name, id, job)),
            backlog,
        })
    }
}

fn encode<J, C: Codec<J>>(
    codec: &C,
    codec_name: &Arc<str>,
    id: JobId,
    job: &J,
) -> Result<NewJob, Refusal> {
    id.check()?;
    let encode = || codec.encode(job).map_err(|error| describe(&*error));
    let payload: Bytes = catch(encode)
        .unwrap_or_else(|message| Err(format!("the codec panicked: {message}")))
        .map_err(|reason| Refusal::Unencodable { reason })?;
    Ok(NewJob {
        id,
        codec: Arc::clone(codec_name),
        payload,
    })
}

/// What travels through the micro-batcher.
enum Request {
    Append(NewJob),
    /// It is answered without the store.
    Refused(Refusal),
    /// Asks the store how large the backlog is.
    Refresh,
}

/// Appends a batch, in one commit unless the backlog has room for a part of it only.
struct Appender<S> {
    store: Arc<S>,
    backlog: Option<Arc<Backlog>>,
}

impl<S: Store> BatchProcessor<Request, Appended> for Appender<S> {
    type Error = S::Error;

    async fn process(&self, requests: Vec<Request>) -> Result<Vec<Appended>, S::Error> {
        let mut jobs = Vec::with_capacity(requests.len());
        let mut refresh = false;
        let mut answers: Vec<_> = requests
            .into_iter()
            .map(|request| match request {
                Request::Append(job) => {
                    jobs.push(job);
                    None
                }
                Request::Refused(refusal) => Some(Appended::Refused(refusal)),
                Request::Refresh => {
                    refresh = true;
                    Some(Appended::Duplicate)
                }
            })
            .collect();
        if refresh && let Some(backlog) = &self.backlog {
            let outcome = backlog.refresh(&*self.store).await;
            backlog.refreshing.store(false, Ordering::Release);
            // The jobs beside it tell of a store that fails.
            if let (Err(error), true) = (outcome, jobs.is_empty()) {
                return Err(error);
            }
        }
        let mut appended = Vec::with_capacity(jobs.len());
        while appended.len() < jobs.len() {
            let rest = &jobs[appended.len()..];
            let part = match &self.backlog {
                Some(backlog) => backlog.wait_for_room(&*self.store, rest.len()).await?,
                None => rest.len(),
            };
            let outcomes = match self.store.append(&rest[..part]).await {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    // They may be in the store.
                    if let Some(backlog) = &self.backlog {
                        backlog.expire();
                    }
                    return Err(error);
                }
            };
            if let Some(backlog) = &self.backlog {
                let new = outcomes.iter().filter(|outcome| **outcome == Appended::New);
                backlog
                    .known
                    .fetch_add(new.count() as u64, Ordering::AcqRel);
            }
            if outcomes.len() != part {
                // Nobody's answer is known. The micro-batcher tells each caller so.
                return Ok(Vec::new());
            }
            appended.extend(outcomes);
        }
        let mut appended = appended.into_iter();
        for answer in &mut answers {
            if answer.is_none() {
                *answer = appended.next();
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

/// How far the backlog in the store is from its limit.
///
/// # Invariants
///
/// `known` is at least the backlog, as long as nobody else appends: it is set to what the
/// store says and raised by what is appended, and one batch at a time does either. After an
/// append that failed it may be less, and the store is asked before the next.
struct Backlog {
    limit: u64,
    known: AtomicU64,
    /// When the store was last asked.
    asked: Mutex<Option<Instant>>,
    /// Set while a `Refresh` is on its way.
    refreshing: AtomicBool,
}

impl Backlog {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            known: AtomicU64::new(0),
            asked: Mutex::new(None),
            refreshing: AtomicBool::new(false),
        }
    }

    fn room(&self) -> usize {
        let room = self
            .limit
            .saturating_sub(self.known.load(Ordering::Acquire));
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    fn is_stale(&self) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_none_or(|asked| asked.elapsed() >= BACKLOG_AGE)
    }

    /// Has the store asked before the next append.
    fn expire(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn refresh<S: Store>(&self, store: &S) -> Result<(), S::Error> {
        let pending = store.depth().await?.pending();
        self.known.store(pending, Ordering::Release);
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    /// Returns how many of `wanted` jobs there is room for: at least one.
    async fn wait_for_room<S: Store>(&self, store: &S, wanted: usize) -> Result<usize, S::Error> {
        if self.room() < wanted || self.is_stale() {
            self.refresh(store).await?;
        }
        let (mut pause, longest) = BACKLOG_PAUSES;
        while self.room() == 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
            self.refresh(store).await?;
        }
        Ok(self.room().min(wanted))
    }
}
