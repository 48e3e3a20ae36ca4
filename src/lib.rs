#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod batch;
mod builder;
mod error;
mod intake;
mod job;
mod micro_batch;
mod pending;
mod processor;
mod report;
mod storage;
mod worker;

pub use builder::MicroBatchBuilder;
pub use error::{BuildError, Closed, JobError, ShutdownTimeout, StartError, TrySubmitError};
pub use job::{JobHandle, PendingJob};
pub use micro_batch::{MicroBatch, Permit};
pub use processor::BatchProcessor;
pub use report::{BatchReport, FlushReason, Stats};
pub use storage::{BatchStorage, MemoryStorage};
pub use tokio_util::sync::CancellationToken;
