//! The options of a [`Keyed`].

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::key_map::Factory;
use super::processor::{KeyedJob, PerKey};
use super::{Keyed, KeyedProcessor};
use crate::builder::MicroBatchBuilder;
use crate::engine::panics::Shielded;
use crate::engine::queue::SharedLimit;
use crate::error::BuildError;
use crate::micro_batch::MicroBatch;
use crate::storage::BatchStorage;

/// Sets the options of a [`Keyed`].
///
/// # Default
///
/// | option | default |
/// | --- | --- |
/// | [`max_in_flight_overall`](Self::max_in_flight_overall) | 10 batches |
/// | [`queue_capacity_overall`](Self::queue_capacity_overall) | 10 000 jobs |
/// | [`options`](Self::options) | those of [`MicroBatchBuilder`], for each key |
#[must_use = "a builder does nothing until `build_running`"]
pub struct KeyedBuilder<K, J, R, P> {
    processor: P,
    max_in_flight_overall: usize,
    queue_capacity_overall: usize,
    build: BuildPerKey<K, J, R, P>,
}

/// The options of the micro-batcher of one key of a [`Keyed`].
pub type KeyedOptions<K, J, R, P> = MicroBatchBuilder<KeyedJob<K, J>, R, PerKey<P>>;

/// Sets the options of the micro-batcher of one key, and builds it.
type BuildPerKey<K, J, R, P> = Box<
    dyn Fn(
            KeyedOptions<K, J, R, P>,
            Arc<Semaphore>,
            Arc<SharedLimit>,
        ) -> Result<MicroBatch<KeyedJob<K, J>, R>, BuildError>
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
    pub(super) fn new(processor: P) -> Self {
        Self {
            processor,
            max_in_flight_overall: 10,
            queue_capacity_overall: 10_000,
            build: Box::new(|options, permits, limit| options.share(permits, limit).build()),
        }
    }

    /// Sets the options that every key has. A second call replaces the first.
    ///
    /// All limits hold for each key: `max_in_flight`, whose default is 1, is
    /// how many batches of one key are processed side by side, and `storage` is
    /// made anew for each. `set` is called once by
    /// [`build_running`](Self::build_running), which returns its errors, and
    /// again whenever a key without jobs gets one. If the options are wrong or `set`
    /// panics only then, the job is refused as
    /// [`JobError::Failed`](crate::JobError::Failed) or
    /// [`JobError::Panicked`](crate::JobError::Panicked).
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
        self.build =
            Box::new(move |options, permits, limit| set(options).share(permits, limit).build());
        self
    }

    /// Sets how many batches are processed side by side, over all keys. Default
    /// 10; zero is refused.
    ///
    /// A key that has a batch due waits for its turn, first come, first served, and its
    /// batch is cut when it has the turn and not before: what comes meanwhile joins the
    /// batch. Each key waits for one turn at a time, so keys take turns and each gets its
    /// share. A processor that awaits a job of the same [`Keyed`] keeps its turn
    /// meanwhile.
    pub fn max_in_flight_overall(mut self, batches: usize) -> Self {
        self.max_in_flight_overall = batches;
        self
    }

    /// Sets how many jobs may be accepted and not yet in a batch, over all keys. Default
    /// 10 000; zero is refused.
    ///
    /// Beyond it `submit` waits, first come, first served, and `try_submit` says
    /// [`Full`](crate::TrySubmitError::Full). The `queue_capacity` of each key holds as
    /// well, and a job that waits for room there takes none here. A key without jobs gets
    /// its loop only when there is room, so a flood of new keys costs no more than its
    /// jobs. Make it large enough for a batch of each key that is busy at a time: with
    /// less, batches stay small and go by the interval.
    pub fn queue_capacity_overall(mut self, jobs: usize) -> Self {
        self.queue_capacity_overall = jobs;
        self
    }

    /// Builds it, running on the current runtime. It stops when `cancel` is
    /// cancelled.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the first option whose value is invalid.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn build_running(self, cancel: CancellationToken) -> Result<Keyed<K, J, R>, BuildError> {
        if self.max_in_flight_overall == 0 {
            return Err(BuildError::Zero("max_in_flight_overall"));
        }
        if self.queue_capacity_overall == 0 {
            return Err(BuildError::Zero("queue_capacity_overall"));
        }
        let (make, limit) = self.factory();
        let example = make()?;
        let (settings, weighs) = (example.settings(), example.queue().weighs());
        Ok(Keyed::run(make, limit, settings, weighs, &cancel))
    }

    /// Returns the function that makes the micro-batcher of a key.
    /// Also returns the limit that they share.
    pub(super) fn factory(self) -> (Factory<KeyedJob<K, J>, R>, Arc<SharedLimit>) {
        let permits = self.max_in_flight_overall.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(permits));
        let processor = Arc::new(Shielded::new(self.processor));
        let limit = Arc::new(SharedLimit::new(self.queue_capacity_overall));
        let build = Shielded::new(self.build);
        let shared_limit = Arc::clone(&limit);
        let make = Box::new(move || {
            let options = MicroBatch::builder(PerKey::new(Arc::clone(&processor)));
            build(options, Arc::clone(&permits), Arc::clone(&shared_limit))
        });
        (make, limit)
    }
}

impl<K, J, R, P> fmt::Debug for KeyedBuilder<K, J, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBuilder")
            .field("max_in_flight_overall", &self.max_in_flight_overall)
            .field("queue_capacity_overall", &self.queue_capacity_overall)
            .finish_non_exhaustive()
    }
}
