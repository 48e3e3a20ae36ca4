//! What a drain tells: of each batch, and at its end.

use std::time::Duration;

/// What became of one batch of a [`Drain`](crate::Drain), once it is settled; see
/// [`on_batch`](crate::DrainBuilder::on_batch).
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
