#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod builder;
mod control;
mod engine;
mod error;
mod handle;
mod job;
#[cfg(feature = "metrics")]
mod metrics;
mod micro_batch;
mod processor;
mod report;
mod settings;
mod storage;
mod wrappers;

pub use builder::MicroBatchBuilder;
pub use error::{
    BuildError, Closed, JobError, ReconfigureError, ShutdownTimeout, StartError, TrySubmitError,
};
pub use handle::JobHandle;
pub use job::PendingJob;
pub use micro_batch::{MicroBatch, Permit, WeakMicroBatch};
pub use processor::{
    Always, BatchProcessor, BatchProcessorExt, Bisect, BlockingProcessor, Coalesce, Elapsed,
    SpawnError, Timeout,
};
#[cfg(feature = "retry")]
pub use processor::{Retry, RetryItems};
pub use report::{BatchReport, FlushReason, Stats};
pub use settings::Settings;
pub use storage::{BatchStorage, Lanes, MemoryStorage, Similar};
pub use tokio_util::sync::CancellationToken;
pub use wrappers::keyed::{Keyed, KeyedBuilder, KeyedJob, KeyedOptions, KeyedProcessor, PerKey};
pub use wrappers::stream::{SubmitStream, SubmitStreamUnordered};
#[cfg(feature = "tower")]
pub use wrappers::tower::ServiceProcessor;
#[cfg(feature = "tracked")]
pub use wrappers::tracked::{
    JobStatus, Tracked, TrackedBuilder, TrackedJob, TrackedOptions, Tracking,
};
