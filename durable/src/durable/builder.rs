//! The options of a front.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use microbatch::{BuildError, CancellationToken, MicroBatch};

use super::Durable;
use super::append::{Appender, Backlog};
use crate::codec::{Codec, Json};
use crate::gather;
use crate::job::NewJob;
use crate::store::Store;

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
    job: PhantomData<fn(J)>,
}

impl<J: Send + 'static, S: Store> DurableBuilder<J, S> {
    pub(super) fn new(store: S) -> Self {
        Self {
            store,
            codec: Json,
            max_pending: None,
            max_batch_size: 1024,
            queue_capacity: 1024,
            shutdown_timeout: Duration::from_secs(5),
            name: None,
            job: PhantomData,
        }
    }
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
            encode: Arc::new(move |id, job| NewJob::encoded(id, job, &codec, &codec_name)),
            backlog,
        })
    }
}
