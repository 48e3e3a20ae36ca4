//! Many callers each submit one job, your processor handles a whole batch at once, and
//! every caller gets its own result.
//!
//! ```
//! use microbatch::{CancellationToken, MicroBatch};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lengths = MicroBatch::builder(|words: Vec<&'static str>| async move {
//!     Ok::<_, String>(words.iter().map(|word| word.len()).collect()) // one bulk call
//! })
//! .flush_when_idle(true)
//! .max_batch_size(100)
//! .build_running(CancellationToken::new())?;
//!
//! let (fig, banana) = tokio::try_join!(lengths.submit("fig"), lengths.submit("banana"))?;
//! assert_eq!((fig, banana), (3, 6));
//! lengths.shutdown().await?; // whatever was accepted is processed first
//! # Ok(())
//! # }
//! ```
//!
//! The [`guide`] says how to choose the options, what is guaranteed, and how it compares.
//!
//! | you want to | look at |
//! | --- | --- |
//! | make one, start, submit, stop | [`MicroBatch`], [`MicroBatchBuilder`], [`CancellationToken`] |
//! | await a result | [`JobHandle`], [`JobError`] |
//! | process batches | [`BatchProcessor`], or a closure; [`BlockingProcessor`] on a thread |
//! | retry, split, limit or merge them | [`BatchProcessorExt`] (`retry` with the feature of that name) |
//! | refuse or reserve instead of waiting | [`MicroBatch::try_submit`], [`MicroBatch::reserve`] |
//! | run a stream through | [`MicroBatch::submit_stream`], [`SubmitStream`] |
//! | keep keys apart | [`Keyed`], [`KeyedProcessor`] |
//! | find results by id | `Tracked` (feature `tracked`) |
//! | use tower | `ServiceProcessor`; `MicroBatch` is a `Service` (feature `tower`) |
//! | change settings while it runs | [`Settings`], [`MicroBatch::reconfigure`], [`MicroBatch::pause`] |
//! | see what it does | [`Stats`], [`BatchReport`], [`FlushReason`] |
//! | order pending jobs yourself | [`BatchStorage`], [`PendingJob`] |
//!
//! Intervals below a millisecond need the feature `fine-timer`.

#![forbid(unsafe_code)]
// docs.rs builds with this, so that items of a feature say so.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod builder;
mod control;
mod engine;
mod error;
pub mod guide;
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
/// Stops micro-batchers: each drains what it has accepted once its token is cancelled. It is
/// that of the `tokio-util` crate.
///
/// ```
/// use microbatch::{CancellationToken, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let echo = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
/// let stop = CancellationToken::new();
/// let reads = MicroBatch::new_running(stop.child_token(), echo);
/// let writes = MicroBatch::new_running(stop.child_token(), echo);
/// let (read, write) = (reads.submit(1), writes.submit(2));
///
/// stop.cancel();
/// assert_eq!((read.await?, write.await?), (1, 2));
/// assert!(reads.is_closed() && writes.is_closed());
/// # Ok(())
/// # }
/// ```
pub use tokio_util::sync::CancellationToken;
pub use wrappers::keyed::{Keyed, KeyedBuilder, KeyedJob, KeyedOptions, KeyedProcessor, PerKey};
pub use wrappers::stream::{SubmitStream, SubmitStreamUnordered};
#[cfg(feature = "tower")]
pub use wrappers::tower::ServiceProcessor;
#[cfg(feature = "tracked")]
pub use wrappers::tracked::{
    JobStatus, Tracked, TrackedBuilder, TrackedJob, TrackedOptions, Tracking,
};

// The code in the README is run as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
