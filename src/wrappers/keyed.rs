//! Batches that hold one key each.
//!
//! Every key that has jobs has a micro-batcher of its own, so all that is
//! promised of one holds for each key. What is added is who owns them, in
//! `hub`, and whose turn it is to process.

mod key_map;

use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::builder::MicroBatchBuilder;
use crate::engine::panics::{Call, Shielded, catch, discard};
use crate::error::{BuildError, JobError, ShutdownTimeout, TrySubmitError};
use crate::handle::JobHandle;
use crate::micro_batch::MicroBatch;
use crate::processor::BatchProcessor;
use crate::processor::in_order::InOrder;
use crate::storage::BatchStorage;

use key_map::{Factory, Hub, Ticket};

/// Groups jobs into batches that hold one key each: a tenant, a table, a shard.
///
/// Each key has a queue, an interval and limits of its own, and jobs of one key
/// are processed in order, as by a [`MicroBatch`] of its own. Over all keys
/// there is [one limit](KeyedBuilder::max_in_flight_overall) of batches in
/// flight, and under it keys take turns: a key with a million jobs holds
/// another one up by its share of batches, and no more.
///
/// A key costs a loop and some kilobytes while it has jobs, and nothing
/// afterwards.
///
/// Cheap to clone; dropping the last one stops all keys as
/// [`shutdown`](Self::shutdown) does, without waiting.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, Keyed};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let rows = Keyed::builder(|table: &'static str, rows: Vec<u64>| async move {
///     Ok::<_, String>(rows.iter().map(|row| format!("{table}/{row} of {}", rows.len())).collect())
/// })
/// .options(|options| options.max_batch_size(2))
/// .build_running(CancellationToken::new())?;
///
/// let (a, b, c) = (rows.submit("users", 1), rows.submit("orders", 7), rows.submit("users", 2));
/// rows.flush().await;
/// assert_eq!(a.await?, "users/1 of 2");
/// assert_eq!(b.await?, "orders/7 of 1");
/// assert_eq!(c.await?, "users/2 of 2");
/// # Ok(())
/// # }
/// ```
pub struct Keyed<K, J, R> {
    owner: Arc<Owner<K, J, R>>,
}

/// What the users share, and by whose drop the keys are stopped.
struct Owner<K, J, R>(Arc<Hub<K, J, R>>);

impl<K, J, R> Drop for Owner<K, J, R> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Processes a whole batch of jobs that have the same key.
///
/// Every `Fn(K, Vec<J>) -> impl Future<Output = Result<Vec<R>, E>>` is one.
/// Apart from the key it is a [`BatchProcessor`], and what is said there of
/// panics and cancel safety holds.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, Keyed, KeyedProcessor};
///
/// struct Shards;
///
/// impl KeyedProcessor<u8, u64, u64> for Shards {
///     type Error = std::convert::Infallible;
///
///     async fn process(&self, shard: u8, jobs: Vec<u64>) -> Result<Vec<u64>, Self::Error> {
///         Ok(jobs.iter().map(|job| job + u64::from(shard)).collect())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), microbatch::JobError> {
/// let shards = Keyed::new_running(CancellationToken::new(), Shards);
/// assert_eq!(shards.submit(2, 40).await?, 42);
/// # Ok(())
/// # }
/// ```
pub trait KeyedProcessor<K, J, R>: Send + Sync + 'static {
    /// Why a whole batch failed, as for [`BatchProcessor::Error`].
    type Error: Into<Box<dyn Error + Send + Sync>>;

    /// Returns one result per job, in the same order. All jobs have this key.
    ///
    /// # Errors
    ///
    /// As for [`BatchProcessor::process`].
    fn process(
        &self,
        key: K,
        jobs: Vec<J>,
    ) -> impl Future<Output = Result<Vec<R>, Self::Error>> + Send;
}

impl<K, J, R, E, F, Fut> KeyedProcessor<K, J, R> for F
where
    F: Fn(K, Vec<J>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<R>, E>> + Send,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Error = E;

    fn process(&self, key: K, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, E>> + Send {
        self(key, jobs)
    }
}

impl<K, J, R> Keyed<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// Makes it with the default options, running on the current runtime. It
    /// stops when `cancel` is cancelled.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn new_running<P>(cancel: CancellationToken, processor: P) -> Self
    where
        P: KeyedProcessor<K, J, R>,
    {
        Self::run(Self::builder(processor).factory(), &cancel)
    }

    /// Returns a builder with the default options.
    pub fn builder<P>(processor: P) -> KeyedBuilder<K, J, R, P>
    where
        P: KeyedProcessor<K, J, R>,
    {
        KeyedBuilder {
            processor,
            max_in_flight_overall: 10,
            make: Box::new(MicroBatchBuilder::build),
        }
    }

    fn run(make: Factory<K, J, R>, cancel: &CancellationToken) -> Self {
        let owner = Arc::new(Owner(Hub::new(make, cancel)));
        Self { owner }
    }

    /// Submits a job, and returns a handle that resolves to its result.
    ///
    /// It is as [`MicroBatch::submit`], with a queue for each key: a full one
    /// holds up this key alone. Where the hash or the comparison of the key
    /// panics, the handle resolves as [`JobError::Panicked`].
    ///
    /// May be called from anywhere, also outside the runtime.
    pub fn submit(&self, key: K, job: J) -> JobHandle<R> {
        match self.owner.0.enter(key) {
            Ok((micro_batch, ticket)) => micro_batch.submit(KeyedJob::new(job, ticket)),
            Err(error) => {
                discard([job], None);
                JobHandle::refused(error)
            }
        }
    }

    /// Submits a job if the queue of its key has room for it now.
    ///
    /// # Errors
    ///
    /// [`TrySubmitError`] says why not, and gives the job back.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed, TrySubmitError};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<&'static str>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .options(|options| options.queue_capacity(1))
    ///     .build_running(CancellationToken::new())?;
    /// let one = tenants.try_submit(1, "first")?;
    /// assert_eq!(tenants.try_submit(1, "second").unwrap_err(), TrySubmitError::Full("second"));
    /// let two = tenants.try_submit(2, "third")?; // another tenant, another queue
    /// # tenants.flush().await;
    /// # assert_eq!((one.await?, two.await?), ("first", "third"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_submit(&self, key: K, job: J) -> Result<JobHandle<R>, TrySubmitError<J>> {
        let (micro_batch, ticket) = match self.owner.0.enter(key) {
            Ok(entered) => entered,
            Err(JobError::Closed) => return Err(TrySubmitError::Closed(job)),
            Err(error) => {
                discard([job], None);
                return Ok(JobHandle::refused(error));
            }
        };
        micro_batch
            .try_submit(KeyedJob::new(job, ticket))
            .map_err(|refused| match refused {
                TrySubmitError::Full(entry) => TrySubmitError::Full(entry.into_job()),
                TrySubmitError::Closed(entry) => TrySubmitError::Closed(entry.into_job()),
                TrySubmitError::TooHeavy(entry) => TrySubmitError::TooHeavy(entry.into_job()),
            })
    }

    /// Flushes everything accepted so far, of all keys, without waiting for
    /// size or interval, and waits until it is processed and its handles have
    /// their results.
    ///
    /// The request is made when the future is first polled. A processor that
    /// awaits this waits for itself.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the flush goes on by itself.
    pub fn flush(&self) -> impl Future<Output = ()> + Send + 'static + use<K, J, R> {
        let hub = Arc::clone(&self.owner.0);
        async move { hub.flush().await }
    }

    /// Stops: refuses jobs, drains those accepted, of all keys, without waiting
    /// for an interval, and waits for the end. There is one deadline for all
    /// keys, the `shutdown_timeout` of their options. May be called any number
    /// of times and by anyone; all calls wait for the same end.
    ///
    /// A processor that awaits this waits for itself, until the stop runs out
    /// of time.
    ///
    /// # Errors
    ///
    /// [`ShutdownTimeout`] says how many jobs were given up, over all keys.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the stop goes on by itself; dropping the future only stops
    /// the waiting.
    pub fn shutdown(
        &self,
    ) -> impl Future<Output = Result<(), ShutdownTimeout>> + Send + 'static + use<K, J, R> {
        let owner = Arc::clone(&self.owner);
        async move {
            owner.0.close();
            owner.0.drained().await
        }
    }

    /// Returns whether jobs are no longer accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.owner.0.is_closed()
    }

    /// Returns how many keys have jobs now.
    #[must_use]
    pub fn live_keys(&self) -> usize {
        self.owner.0.live_keys()
    }
}

impl<K, J, R> Clone for Keyed<K, J, R> {
    fn clone(&self) -> Self {
        Self {
            owner: Arc::clone(&self.owner),
        }
    }
}

impl<K, J, R> fmt::Debug for Keyed<K, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hub = &self.owner.0;
        f.debug_struct("Keyed")
            .field("live_keys", &hub.live_keys())
            .field("closed", &hub.is_closed())
            .finish_non_exhaustive()
    }
}

/// Sets the options of a [`Keyed`].
///
/// # Default
///
/// | option | default |
/// | --- | --- |
/// | [`max_in_flight_overall`](Self::max_in_flight_overall) | 10 batches |
/// | [`options`](Self::options) | those of [`MicroBatchBuilder`], for each key |
#[must_use = "a builder does nothing until `build_running`"]
pub struct KeyedBuilder<K, J, R, P> {
    processor: P,
    max_in_flight_overall: usize,
    make: Make<K, J, R, P>,
}

/// The options of the micro-batcher of one key of a [`Keyed`].
pub type KeyedOptions<K, J, R, P> = MicroBatchBuilder<KeyedJob<K, J>, R, PerKey<P>>;

type Make<K, J, R, P> = Box<
    dyn Fn(KeyedOptions<K, J, R, P>) -> Result<MicroBatch<KeyedJob<K, J>, R>, BuildError>
        + Send
        + Sync,
>;

impl<K, J, R, P> KeyedBuilder<K, J, R, P>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
    P: KeyedProcessor<K, J, R>,
{
    /// Sets the options that every key has. A second call replaces the first.
    ///
    /// All limits hold for each key: `max_in_flight`, whose default is 1, is
    /// how many batches of one key are processed side by side, and `storage` is
    /// made anew for each. It is called once by
    /// [`build_running`](Self::build_running), to find the errors in it, and
    /// then for each key that comes to have jobs. Where it errs or panics only
    /// then, the job is refused as [`JobError::Failed`] or
    /// [`JobError::Panicked`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, Keyed};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let processor = |_tenant: u8, jobs: Vec<&'static str>| async move { Ok::<_, String>(jobs) };
    /// let tenants = Keyed::builder(processor)
    ///     .max_in_flight_overall(4)
    ///     .options(|options| {
    ///         options
    ///             .flush_when_idle(true)
    ///             .max_batch_weight(64 * 1024, |entry| entry.job().len())
    ///     })
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(tenants.submit(1, "one").await?, "one");
    /// # Ok(())
    /// # }
    /// ```
    pub fn options<F, S>(mut self, set: F) -> Self
    where
        F: Fn(KeyedOptions<K, J, R, P>) -> MicroBatchBuilder<KeyedJob<K, J>, R, PerKey<P>, S>
            + Send
            + Sync
            + 'static,
        S: BatchStorage<KeyedJob<K, J>, R>,
    {
        self.make = Box::new(move |options| set(options).build());
        self
    }

    /// Sets how many batches are processed side by side, over all keys. Default
    /// 10; zero is refused.
    ///
    /// A batch waits for its turn after it was cut, first come first served.
    /// Each key has one batch there at a time, its first, so it gets its share
    /// and leaves the others theirs. A processor that awaits a job of
    /// the same [`Keyed`] keeps its turn meanwhile.
    pub fn max_in_flight_overall(mut self, batches: usize) -> Self {
        self.max_in_flight_overall = batches;
        self
    }

    /// Builds it, running on the current runtime. It stops when `cancel` is
    /// cancelled.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the first option whose value means nothing.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn build_running(self, cancel: CancellationToken) -> Result<Keyed<K, J, R>, BuildError> {
        if self.max_in_flight_overall == 0 {
            return Err(BuildError::Zero("max_in_flight_overall"));
        }
        let make = self.factory();
        make()?;
        Ok(Keyed::run(make, &cancel))
    }

    /// Returns what makes the micro-batcher of a key.
    fn factory(self) -> Factory<K, J, R> {
        let turns = self.max_in_flight_overall.min(Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared {
            processor: Shielded::new(self.processor),
            turns: Semaphore::new(turns),
        });
        let make = Shielded::new(self.make);
        Box::new(move || {
            make(MicroBatch::builder(PerKey {
                shared: Arc::clone(&shared),
                order: InOrder::new(),
            }))
        })
    }
}

impl<K, J, R, P> fmt::Debug for KeyedBuilder<K, J, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBuilder")
            .field("max_in_flight_overall", &self.max_in_flight_overall)
            .finish_non_exhaustive()
    }
}

/// A job with its key, as the micro-batcher of one key of a [`Keyed`], its
/// weight function and its storage see it.
pub struct KeyedJob<K, J> {
    /// There until it is taken.
    job: Shielded<Option<J>>,
    /// After the job, so that a key that has gone has left no job.
    ticket: Arc<Ticket<K>>,
}

impl<K, J> KeyedJob<K, J> {
    fn new(job: J, ticket: Arc<Ticket<K>>) -> Self {
        let job = Shielded::new(Some(job));
        Self { job, ticket }
    }

    fn into_job(mut self) -> J {
        self.job.get_mut().take().expect("it is taken once")
    }

    /// Returns the key that the job was submitted under.
    pub fn key(&self) -> &K {
        self.ticket.key()
    }

    /// Returns the job.
    pub fn job(&self) -> &J {
        self.job.as_ref().expect("it is taken with the entry")
    }
}

impl<K: fmt::Debug, J: fmt::Debug> fmt::Debug for KeyedJob<K, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedJob")
            .field("key", self.key())
            .field("job", self.job())
            .finish()
    }
}

/// The processor of a [`Keyed`], as the micro-batcher of one key sees it.
pub struct PerKey<P> {
    shared: Arc<Shared<P>>,
    /// The order of this key's batches.
    order: InOrder,
}

struct Shared<P> {
    processor: Shielded<P>,
    /// Who may process. It is fair, so those who wait take turns.
    turns: Semaphore,
}

impl<K, J, R, P> BatchProcessor<KeyedJob<K, J>, R> for PerKey<P>
where
    K: Clone + Send + Sync + 'static,
    J: Send + 'static,
    P: KeyedProcessor<K, J, R>,
{
    type Error = P::Error;

    fn process(
        &self,
        entries: Vec<KeyedJob<K, J>>,
    ) -> impl Future<Output = Result<Vec<R>, P::Error>> + Send {
        let ticket = Arc::clone(&entries[0].ticket);
        let order = self.order.enter();
        async move {
            // Held to the end, and dropped after the turn: the next batch of the
            // key, if it is of another micro-batcher, comes after this one.
            let ticket = ticket;
            // One batch of a key at a time stands among those who wait for a
            // turn, the first.
            let first = order.await;
            // The semaphore is never closed, so this is a turn.
            let _turn = self.shared.turns.acquire().await;
            let outcome = match catch(|| ticket.key().clone()) {
                Ok(key) => {
                    let jobs = entries.into_iter().map(KeyedJob::into_job).collect();
                    let called = Call::new(|| self.shared.processor.process(key, jobs));
                    drop(first);
                    called.await
                }
                Err(message) => Err(message),
            };
            // A panic is for the micro-batcher to tell.
            outcome.unwrap_or_else(|message| resume_unwind(Box::new(message.to_string())))
        }
    }
}

impl<P> fmt::Debug for PerKey<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerKey").finish_non_exhaustive()
    }
}
