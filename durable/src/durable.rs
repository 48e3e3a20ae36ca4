//! The front: submits jobs, and says when they are in the store.

mod append;
mod builder;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use builder::DurableBuilder;
use microbatch::{JobError, JobHandle, MicroBatch, ShutdownTimeout, Stats, TrySubmitError};

use self::append::{Backlog, Request};
use crate::codec::Json;
use crate::job::{JobId, NewJob};
use crate::outcome::{Appended, Refusal};
use crate::store::Store;

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
        DurableBuilder::new(store)
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
