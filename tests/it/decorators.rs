//! What can be put around a processor.

mod bisect;
mod blocking;
mod bombs;
mod coalesce;
#[cfg(feature = "retry")]
mod combined;
#[cfg(feature = "retry")]
mod large;
mod order;
#[cfg(feature = "retry")]
mod retry;
#[cfg(feature = "retry")]
mod retry_items;
mod timeout;

use std::sync::{Arc, Mutex};

use microbatch::{BatchProcessor, CancellationToken, JobError, MicroBatch};

/// Notes what a processor is called with.
struct Calls<J>(Arc<Mutex<Vec<Vec<J>>>>);

impl<J> Clone for Calls<J> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<J: Clone> Calls<J> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn note(&self, jobs: &[J]) {
        self.0.lock().expect("unpoisoned").push(jobs.to_vec());
    }

    fn all(&self) -> Vec<Vec<J>> {
        self.0.lock().expect("unpoisoned").clone()
    }

    fn count(&self) -> usize {
        self.0.lock().expect("unpoisoned").len()
    }
}

/// A micro-batcher for batches of that size around the processor.
fn batcher<J, R>(size: usize, processor: impl BatchProcessor<J, R>) -> MicroBatch<J, R>
where
    J: Send + 'static,
    R: Send + 'static,
{
    MicroBatch::builder(processor)
        .max_batch_size(size)
        .queue_capacity(size)
        .build_running(CancellationToken::new())
        .expect("valid options")
}

/// The processor's own error in a job's.
fn cause(error: &JobError) -> String {
    use std::error::Error;
    error.source().map(ToString::to_string).unwrap_or_default()
}
