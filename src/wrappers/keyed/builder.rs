//! The options of a [`Keyed`].

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::key_map::Factory;
use super::processor::{KeyedJob, PerKey, SharedProcessor};
use super::{Keyed, KeyedProcessor};
use crate::builder::MicroBatchBuilder;
use crate::engine::panics::Shielded;
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
/// | [`options`](Self::options) | those of [`MicroBatchBuilder`], for each key |
#[must_use = "a builder does nothing until `build_running`"]
pub struct KeyedBuilder<K, J, R, P> {
    processor: P,
    max_in_flight_overall: usize,
    build: BuildPerKey<K, J, R, P>,
}

/// The options of the micro-batcher of one key of a [`Keyed`].
pub type KeyedOptions<K, J, R, P> = MicroBatchBuilder<KeyedJob<K, J>, R, PerKey<P>>;

/// Sets the options of the micro-batcher of one key, and builds it.
type BuildPerKey<K, J, R, P> = Box<
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
    pub(super) fn new(processor: P) -> Self {
        Self {
            processor,
            max_in_flight_overall: 10,
            build: Box::new(MicroBatchBuilder::build),
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
        self.build = Box::new(move |options| set(options).build());
        self
    }

    /// Sets how many batches are processed side by side, over all keys. Default
    /// 10; zero is refused.
    ///
    /// A batch waits for a permit after it was cut, first come, first served.
    /// Of each key only the first batch waits at a time, so keys take turns and
    /// each gets its share. A processor that awaits a job of the same [`Keyed`]
    /// keeps its permit meanwhile.
    pub fn max_in_flight_overall(mut self, batches: usize) -> Self {
        self.max_in_flight_overall = batches;
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
        let make = self.factory();
        make()?;
        Ok(Keyed::run(make, &cancel))
    }

    /// Returns the function that makes the micro-batcher of a key.
    pub(super) fn factory(self) -> Factory<KeyedJob<K, J>, R> {
        let shared = SharedProcessor::new(self.processor, self.max_in_flight_overall);
        let shared = Arc::new(shared);
        let build = Shielded::new(self.build);
        Box::new(move || build(MicroBatch::builder(PerKey::new(Arc::clone(&shared)))))
    }
}

impl<K, J, R, P> fmt::Debug for KeyedBuilder<K, J, R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBuilder")
            .field("max_in_flight_overall", &self.max_in_flight_overall)
            .finish_non_exhaustive()
    }
}
