#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod batch;
mod builder;
mod crew;
mod error;
mod ids;
mod in_order;
mod intake;
mod job;
mod keyed;
mod micro_batch;
mod oneshot;
mod panics;
mod pending;
mod processor;
mod recent;
mod report;
mod storage;
mod stream;
mod timer;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "tracked")]
mod tracked;
mod worker;

pub use builder::MicroBatchBuilder;
pub use error::{BuildError, Closed, JobError, ShutdownTimeout, StartError, TrySubmitError};
pub use job::{JobHandle, PendingJob};
pub use keyed::{Keyed, KeyedBuilder, KeyedJob, KeyedOptions, KeyedProcessor, PerKey};
pub use micro_batch::{MicroBatch, Permit};
#[cfg(feature = "retry")]
pub use processor::Retry;
pub use processor::{
    Always, BatchProcessor, BatchProcessorExt, Bisect, BlockingProcessor, Coalesce, Elapsed,
    Timeout,
};
pub use report::{BatchReport, FlushReason, Stats};
pub use storage::{BatchStorage, MemoryStorage};
pub use stream::{SubmitStream, SubmitStreamUnordered};
pub use tokio_util::sync::CancellationToken;
#[cfg(feature = "tower")]
pub use tower::ServiceProcessor;
#[cfg(feature = "tracked")]
pub use tracked::{JobStatus, Tracked, TrackedBuilder, TrackedJob, TrackedOptions, Tracking};
