//! The options of a drain.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use microbatch::{BatchProcessor, BuildError, CancellationToken};

use super::attempts::Limits;
use super::input::{Delivery, Input};
use super::report::{DrainError, DrainReport, Drained};
use super::worker::{Backoff, Hook, Shared};
use crate::codec::{Codec, Json};
use crate::outcome::IntoVerdict;
use crate::store::Store;

/// Leases jobs from a [`Store`] in batches, has each batch processed, and settles it.
///
/// - Delivery is at least once: a job may be processed again, with a later attempt, if its
///   process died or its lease was lost before it was settled.
/// - A batch that fails as a whole (an error, a panic, a wrong number of results) is tried
///   again, each job after its backoff.
/// - No job is declared dead in company. Redelivered jobs share no batch with fresh ones;
///   attempt *k* runs in batches of at most `max_batch_size / 2^(k-1)`, and the last
///   attempt alone: no other batch is in the processor, whatever `max_in_flight` is. Dead
///   is only what failed alone, was said to be [`Dead`], does not decode, or was delivered
///   more than `max_attempts` times because its process died each time. (A drain cannot
///   know before a lease that the last attempt of a job is among it. If other batches are
///   in the processor then, the job is put back; if one of them ends the process in that
///   very moment, the attempt counts.)
/// - All this holds within one drain. What another drain processes in the same process is
///   company that it does not know of: if it ends the process, attempts count in both.
/// - A drain leases whatever is in its store, so jobs of two types need two stores: what it
///   cannot decode goes to the dead letters.
/// - Jobs are leased in the order in which they were appended, as far as none is retried
///   and `max_in_flight` is 1.
/// - While a batch is processed, its leases are extended at each third of their time. A
///   batch all of whose leases are lost is dropped.
///
/// Any [`BatchProcessor`] fits whose results are verdicts ([`IntoVerdict`]), with all
/// decorators: [`bisect`](microbatch::BatchProcessorExt::bisect) finds the job that fails
/// a batch at once, [`timeout`](microbatch::BatchProcessorExt::timeout) bounds a batch.
///
/// [`Dead`]: crate::Verdict::Dead
///
/// # Examples
///
/// ```
/// use microbatch_durable::{CancellationToken, Drain, Durable, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let mails = Durable::<String>::builder(store.clone())
///     .build_running(CancellationToken::new())?;
/// for n in 0..250 {
///     mails.submit(format!("mail-{n}"), "hello".to_owned()).accepted().await?;
/// }
/// mails.shutdown().await?;
///
/// let done = CancellationToken::new();
/// let drain = Drain::builder(store, move |mails: Vec<String>| async move {
///     // One bulk call.
///     Ok::<_, std::io::Error>(vec![(); mails.len()])
/// })
/// .max_batch_size(100)
/// .on_batch({
///     let (done, mut left) = (done.clone(), std::sync::Mutex::new(250));
///     move |batch| {
///         let mut left = left.lock().unwrap();
///         *left -= batch.done;
///         if *left == 0 {
///             done.cancel();
///         }
///     }
/// })
/// .build()?;
/// assert_eq!(drain.run(done).await?.done, 250);
/// # Ok(())
/// # }
/// ```
#[must_use = "a drain does nothing until it is run"]
pub struct Drain<S, J, R, P, C = Json, I = J> {
    shared: Arc<Shared<S, P, C>>,
    jobs: PhantomData<fn(J, I) -> R>,
}

impl<S, J, R, P> Drain<S, J, R, P>
where
    S: Store,
    P: BatchProcessor<J, R>,
{
    /// Starts to build one. Jobs are decoded as [`Json`] unless another codec is chosen.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let stop = CancellationToken::new();
    /// let at_end = stop.clone();
    /// let drain = Drain::builder(store, |jobs: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![(); jobs.len()])
    /// })
    /// .on_batch(move |_| at_end.cancel())
    /// .build()?;
    /// assert_eq!(drain.run(stop).await?.done, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(store: S, processor: P) -> DrainBuilder<S, J, R, P> {
        DrainBuilder::new(store, processor)
    }
}

impl<S, J, R, P> Drain<S, J, R, P, Json, Delivery<J, S::Lease>>
where
    S: Store,
    P: BatchProcessor<Delivery<J, S::Lease>, R>,
{
    /// Starts to build one whose processor gets each job with its id, its attempt and its
    /// lease, so that it can settle the lease itself, in one transaction with the effects.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Delivery, Drain, MemoryLease, MemoryStore, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let (stop, settling) = (CancellationToken::new(), store.clone());
    /// let at_end = stop.clone();
    /// let drain = Drain::deliveries(store, move |batch: Vec<Delivery<u32, MemoryLease>>| {
    ///     let store = settling.clone();
    ///     async move {
    ///         // With a database: in a transaction, and the effects of the jobs as well.
    ///         let verdicts: Vec<_> =
    ///             batch.iter().map(|job| (job.lease.clone(), Verdict::Done)).collect();
    ///         store.settle(&verdicts).await?;
    ///         Ok::<_, std::convert::Infallible>(vec![Verdict::Settled; batch.len()])
    ///     }
    /// })
    /// .on_batch(move |_| at_end.cancel())
    /// .build()?;
    /// assert_eq!(drain.run(stop).await?.done, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn deliveries(
        store: S,
        processor: P,
    ) -> DrainBuilder<S, J, R, P, Json, Delivery<J, S::Lease>> {
        DrainBuilder::new(store, processor)
    }
}

impl<S, J, R, P, I> DrainBuilder<S, J, R, P, Json, I> {
    fn new(store: S, processor: P) -> Self {
        Self {
            store,
            processor,
            codec: Json,
            limits: Limits {
                max_batch_size: 100,
                max_attempts: 5,
            },
            max_in_flight: 1,
            shutdown_timeout: Duration::from_secs(5),
            backoff: backoff_of(
                ExponentialBuilder::new()
                    .with_min_delay(Duration::from_secs(1))
                    .with_factor(6.0)
                    .with_max_delay(Duration::from_secs(600))
                    .with_jitter()
                    .without_max_times(),
            ),
            on_batch: None,
            name: None,
            jobs: PhantomData,
        }
    }
}

impl<S, J, R, P, C, I> Drain<S, J, R, P, C, I>
where
    S: Store,
    I: Input<J, S::Lease>,
    J: Send + 'static,
    R: IntoVerdict + Send + 'static,
    P: BatchProcessor<I, R>,
    C: Codec<J>,
{
    /// Drains until the token is cancelled. Then it leases no more, waits up to
    /// `shutdown_timeout` for the batches in flight, and gives back the jobs of those that
    /// are not done, this attempt not counted.
    ///
    /// An error or a panic of the store ends no drain: every call is repeated with a
    /// growing pause, logged and counted. This holds for a store that was closed as well, so
    /// cancel the drain before.
    ///
    /// # Errors
    ///
    /// [`DrainError::Unreleased`] if the store does not take back what was leased.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, batches in flight are dropped and their jobs given back,
    /// by tasks that the runtime finishes.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a"), job("b")]).await?;
    /// let stop = CancellationToken::new();
    /// let drain = Drain::builder(store.clone(), |jobs: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![(); jobs.len()])
    /// })
    /// .build()?;
    /// let running = tokio::spawn(drain.run(stop.clone()));
    /// while store.depth().await?.pending() > 0 {
    ///     tokio::task::yield_now().await;
    /// }
    /// stop.cancel();
    /// assert_eq!(running.await??.done, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run(self, cancel: CancellationToken) -> Result<Drained, DrainError> {
        self.shared.run::<J, I, R>(cancel).await
    }
}

impl<S, J, R, P, C, I> fmt::Debug for Drain<S, J, R, P, C, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

/// Builds a [`Drain`].
///
/// # Examples
///
/// ```
/// use microbatch_durable::{CancellationToken, Drain, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let drain = Drain::builder(MemoryStore::new(), |jobs: Vec<u32>| async move {
///     Ok::<_, String>(vec![(); jobs.len()])
/// })
/// .name("orders")
/// .max_batch_size(500)
/// .max_attempts(8)
/// .build()?;
/// let stop = CancellationToken::new();
/// stop.cancel();
/// assert_eq!(drain.run(stop).await?.batches, 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct DrainBuilder<S, J, R, P, C = Json, I = J> {
    store: S,
    processor: P,
    codec: C,
    limits: Limits,
    max_in_flight: usize,
    shutdown_timeout: Duration,
    backoff: Arc<Backoff>,
    on_batch: Option<Box<Hook>>,
    name: Option<String>,
    jobs: PhantomData<fn(J, I) -> R>,
}

impl<S, J, R, P, C, I> DrainBuilder<S, J, R, P, C, I> {
    /// Sets the codec. A job that was written by a codec of another name goes to the dead
    /// letters.
    ///
    /// # Default
    ///
    /// [`Json`].
    pub fn codec<D: Codec<J>>(self, codec: D) -> DrainBuilder<S, J, R, P, D, I> {
        DrainBuilder {
            store: self.store,
            processor: self.processor,
            codec,
            limits: self.limits,
            max_in_flight: self.max_in_flight,
            shutdown_timeout: self.shutdown_timeout,
            backoff: self.backoff,
            on_batch: self.on_batch,
            name: self.name,
            jobs: PhantomData,
        }
    }

    /// Sets the most jobs in a batch of first attempts.
    ///
    /// # Default
    ///
    /// 100.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let jobs: Vec<_> = (0..9).map(|n| job(&format!("job-{n}"))).collect();
    /// store.append(&jobs).await?;
    /// let stop = CancellationToken::new();
    /// let at_end = stop.clone();
    /// let drain = Drain::builder(store, |jobs: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![(); jobs.len()])
    /// })
    /// .max_batch_size(4)
    /// .on_batch(move |batch| if batch.size == 4 { at_end.cancel() })
    /// .build()?;
    /// let drained = drain.run(stop).await?;
    /// assert_eq!((drained.batches, drained.done), (2, 5)); // one alone at first, to see what waits
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_batch_size(mut self, jobs: usize) -> Self {
        self.limits.max_batch_size = jobs;
        self
    }

    /// Sets how many batches are processed side by side.
    ///
    /// # Default
    ///
    /// 1.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let jobs: Vec<_> = (0..9).map(|n| job(&format!("job-{n}"))).collect();
    /// store.append(&jobs).await?;
    /// let stop = CancellationToken::new();
    /// let drain = Drain::builder(store.clone(), |jobs: Vec<u32>| async move {
    ///     tokio::time::sleep(Duration::from_secs(1)).await;
    ///     Ok::<_, String>(vec![(); jobs.len()])
    /// })
    /// .max_batch_size(2)
    /// .max_in_flight(4)
    /// .build()?;
    /// let started = tokio::time::Instant::now();
    /// let running = tokio::spawn(drain.run(stop.clone()));
    /// while store.depth().await?.pending() > 0 {
    ///     tokio::time::sleep(Duration::from_millis(10)).await;
    /// }
    /// assert!(started.elapsed() < Duration::from_secs(3)); // one alone, then four side by side
    /// stop.cancel();
    /// assert_eq!(running.await??.batches, 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.max_in_flight = batches;
        self
    }

    /// Sets how often a job is tried before it is dead. The last attempt runs alone, so
    /// with 1 every job is processed by itself, one after the other.
    ///
    /// # Default
    ///
    /// 5.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let stop = CancellationToken::new();
    /// let at_end = stop.clone();
    /// let drain = Drain::builder(store.clone(), |_: Vec<u32>| async move {
    ///     Err::<Vec<()>, _>("out of order")
    /// })
    /// .max_attempts(2)
    /// .on_batch(move |batch| if batch.dead > 0 { at_end.cancel() })
    /// .build()?;
    /// let drained = drain.run(stop).await?;
    /// assert_eq!((drained.retried, drained.dead), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.limits.max_attempts = attempts;
        self
    }

    /// Sets the pause after each attempt, by any `backon` builder: the n-th pause follows
    /// the n-th attempt, and the last one is used again if there are no more. Together they
    /// are the longest outage of what the processor needs that no job dies of.
    ///
    /// # Default
    ///
    /// Exponential: 1, 6, 36 and 216 seconds with 5 attempts, at most 10 minutes each, and
    /// with jitter, which adds up to as much again.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let stop = CancellationToken::new();
    /// let at_end = stop.clone();
    /// let drain = Drain::builder(store, |_: Vec<u32>| async move { Err::<Vec<()>, _>("busy") })
    ///     .max_attempts(3)
    ///     .backoff(backon::ConstantBuilder::new().with_delay(Duration::from_secs(10)))
    ///     .on_batch(move |batch| if batch.dead > 0 { at_end.cancel() })
    ///     .build()?;
    /// let started = tokio::time::Instant::now();
    /// assert_eq!(drain.run(stop).await?.dead, 1);
    /// assert_eq!(started.elapsed().as_secs(), 20);
    /// # Ok(())
    /// # }
    /// ```
    pub fn backoff<B: BackoffBuilder + Clone + Send + Sync + 'static>(
        mut self,
        backoff: B,
    ) -> Self {
        self.backoff = backoff_of(backoff);
        self
    }

    /// Sets how long a stop waits for the batches in flight, and then for the store to
    /// take back the rest.
    ///
    /// # Default
    ///
    /// 5 seconds.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let stop = CancellationToken::new();
    /// let begun = stop.clone();
    /// let drain = Drain::builder(store.clone(), move |_: Vec<u32>| {
    ///     begun.cancel();
    ///     std::future::pending::<Result<Vec<()>, String>>()
    /// })
    /// .shutdown_timeout(Duration::from_secs(2))
    /// .build()?;
    /// assert_eq!(drain.run(stop).await?.released, 1);
    /// assert_eq!(store.lease(1).await?[0].attempt.get(), 1); // not counted
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets what is called with each batch once it is settled. It runs on async threads
    /// and should be quick; a panic in it is logged. Jobs that are dead because they were
    /// delivered too often are in no batch.
    ///
    /// # Default
    ///
    /// None.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{CancellationToken, Drain, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let stop = CancellationToken::new();
    /// let at_end = stop.clone();
    /// let drain = Drain::builder(store, |jobs: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![(); jobs.len()])
    /// })
    /// .on_batch(move |batch| {
    ///     assert_eq!((batch.size, batch.done, batch.error), (1, 1, None));
    ///     at_end.cancel();
    /// })
    /// .build()?;
    /// assert_eq!(drain.run(stop).await?.batches, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_batch(mut self, hook: impl Fn(&DrainReport<'_>) + Send + Sync + 'static) -> Self {
        self.on_batch = Some(Box::new(hook));
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
    /// use microbatch_durable::{Drain, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let drain = Drain::builder(MemoryStore::new(), |jobs: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![(); jobs.len()])
    /// })
    /// .name("orders") // the field `name` of its spans and events
    /// .build()?;
    /// assert!(format!("{drain:?}").contains("orders"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Builds it.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the option that is zero.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Drain, MemoryStore};
    ///
    /// let wrong = Drain::builder(MemoryStore::new(), |jobs: Vec<u32>| async move {
    ///     Ok::<_, String>(vec![(); jobs.len()])
    /// })
    /// .max_batch_size(0)
    /// .build();
    /// assert!(wrong.unwrap_err().to_string().contains("max_batch_size"));
    /// ```
    pub fn build(self) -> Result<Drain<S, J, R, P, C, I>, BuildError> {
        for (name, value) in [
            ("max_batch_size", self.limits.max_batch_size),
            ("max_in_flight", self.max_in_flight),
            ("max_attempts", self.limits.max_attempts as usize),
        ] {
            if value == 0 {
                return Err(BuildError::Zero(name));
            }
        }
        Ok(Drain {
            shared: Arc::new(Shared {
                store: self.store,
                processor: self.processor,
                codec: self.codec,
                limits: self.limits,
                max_in_flight: self.max_in_flight,
                shutdown_timeout: self.shutdown_timeout,
                backoff: self.backoff,
                on_batch: self.on_batch,
                name: self.name.unwrap_or_default(),
                counts: Default::default(),
            }),
            jobs: PhantomData,
        })
    }
}

impl<S: fmt::Debug, J, R, P, C, I> fmt::Debug for DrainBuilder<S, J, R, P, C, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainBuilder")
            .field("store", &self.store)
            .field("limits", &self.limits)
            .field("max_in_flight", &self.max_in_flight)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn backoff_of<B: BackoffBuilder + Clone + Send + Sync + 'static>(builder: B) -> Arc<Backoff> {
    Arc::new(move |attempt| {
        // No pause of a builder differs much beyond its ten thousandth.
        let attempt = attempt.min(10_000) as usize;
        builder
            .clone()
            .build()
            .take(attempt)
            .last()
            .unwrap_or_default()
    })
}
