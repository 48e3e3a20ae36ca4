//! What a drain tells: of each batch, and at its end.

use std::time::Duration;

/// What became of one batch of a [`Drain`](crate::Drain), once it is settled; see
/// [`on_batch`](crate::DrainBuilder::on_batch).
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
/// let drain = Drain::builder(store, |_: Vec<u32>| async move { Err::<Vec<()>, _>("busy") })
///     .on_batch(move |batch| {
///         assert_eq!((batch.size, batch.attempt, batch.retried), (1, 1, 1));
///         assert_eq!(batch.error, Some("busy"));
///         at_end.cancel();
///     })
///     .build()?;
/// assert_eq!(drain.run(stop).await?.retried, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct DrainReport<'a> {
    /// Jobs in the batch.
    pub size: usize,
    /// Which attempt it is for each of them, from 1.
    pub attempt: u32,
    /// Jobs that are done and have left the store.
    pub done: usize,
    /// Jobs that will be tried again.
    pub retried: usize,
    /// Jobs that went to the dead letters.
    pub dead: usize,
    /// Jobs that were given back, this attempt not counted.
    pub released: usize,
    /// Jobs whose lease was lost: what the processor did for them may happen again.
    pub lost: usize,
    /// Jobs of which it is not known whether they were settled: the store cannot tell, or
    /// an answer of it was lost.
    pub unknown: usize,
    /// How long it was in the processor.
    pub took: Duration,
    /// Why the whole batch failed, if it did.
    pub error: Option<&'a str>,
}

/// What a [`Drain`](crate::Drain) did, from its start to its end.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{CancellationToken, Drain, Drained, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let drain = Drain::builder(MemoryStore::new(), |jobs: Vec<u32>| async move {
///     Ok::<_, String>(vec![(); jobs.len()])
/// })
/// .build()?;
/// let stop = CancellationToken::new();
/// stop.cancel();
/// assert_eq!(drain.run(stop).await?, Drained::default());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Drained {
    /// Batches that were given to the processor.
    pub batches: u64,
    /// Jobs that are done and have left the store.
    pub done: u64,
    /// Attempts after which a job was to be tried again.
    pub retried: u64,
    /// Jobs that went to the dead letters.
    pub dead: u64,
    /// Jobs that were given back, the attempt not counted: at the end, or by verdict.
    pub released: u64,
    /// Deliveries whose lease was lost.
    pub lost: u64,
    /// Deliveries of which it is not known whether they were settled.
    pub unknown: u64,
    /// Errors of the store. Each was tried again.
    pub store_errors: u64,
}

/// Why a [`Drain`](crate::Drain) did not end well.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{DrainError, Drained};
///
/// let error = |drained: Drained| DrainError::Unreleased { jobs: 3, drained };
/// assert!(error(Drained::default()).to_string().contains("3 leased jobs"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The store did not take back what was leased within the
    /// [`shutdown_timeout`](crate::DrainBuilder::shutdown_timeout). Nothing is lost: these
    /// jobs are due again when their leases end.
    #[error(
        "the store did not take back {jobs} leased jobs; they are due again when their leases end"
    )]
    Unreleased {
        /// How many jobs.
        jobs: usize,
        /// What was done until then.
        drained: Drained,
    },
}
