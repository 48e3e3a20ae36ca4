//! Batches start in the order submitted, also where several are in flight on
//! several threads. A decorator that called the inner processor in the first poll
//! of its future swapped some ten in 40 000.

use std::sync::{Arc, Mutex};

use microbatch::{BatchProcessor, BatchProcessorExt, BlockingProcessor, CancellationToken};
use microbatch::{JobError, MicroBatch};

use crate::support::lock;

const BATCHES: u32 = 20_000;

/// The jobs in the order in which they came to the innermost processor.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u32>>>);

impl Log {
    fn note(&self, jobs: &[u32]) {
        lock(&self.0).extend(jobs);
    }

    fn innermost(&self) -> impl BatchProcessor<u32, u32, Error = String> {
        let log = self.clone();
        move |jobs: Vec<u32>| {
            log.note(&jobs);
            async move {
                tokio::task::yield_now().await;
                Ok(jobs)
            }
        }
    }

    /// As [`innermost`](Self::innermost), with a result of its own for each job.
    #[cfg(feature = "retry")]
    fn innermost_items(&self) -> impl BatchProcessor<u32, Result<u32, String>, Error = String> {
        let log = self.clone();
        move |jobs: Vec<u32>| {
            log.note(&jobs);
            async move {
                tokio::task::yield_now().await;
                Ok(jobs.into_iter().map(Ok).collect())
            }
        }
    }

    /// Has the processor, which writes this log, process many batches.
    async fn check<R: Send + 'static>(self, processor: impl BatchProcessor<u32, R>) {
        let batcher = MicroBatch::builder(processor)
            .max_batch_size(1)
            .max_in_flight(8)
            .build_running(CancellationToken::new())
            .expect("valid options");
        let results: Vec<Result<R, JobError>> = batcher.submit_all(0..BATCHES).await;
        assert!(results.iter().all(Result::is_ok));
        let log = lock(&self.0);
        let swaps = log.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert_eq!((swaps, log.len()), (0, BATCHES as usize));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_timeout() {
    let log = Log::default();
    let inner = log.innermost();
    log.check(inner.timeout(std::time::Duration::MAX)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_bisect() {
    let log = Log::default();
    let inner = log.innermost();
    log.check(inner.bisect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_coalesce() {
    let log = Log::default();
    let inner = log.innermost();
    log.check(inner.coalesce()).await;
}

#[cfg(feature = "retry")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_retry() {
    let log = Log::default();
    let inner = log.innermost();
    log.check(inner.retry(backon::ConstantBuilder::default()))
        .await;
}

#[cfg(feature = "retry")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_retry_items() {
    let log = Log::default();
    let inner = log.innermost_items();
    log.check(inner.retry_items(backon::ConstantBuilder::default()))
        .await;
}

#[cfg(feature = "retry")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_all_of_them() {
    let log = Log::default();
    let inner = log.innermost().coalesce().timeout(std::time::Duration::MAX);
    let inner = inner.retry(backon::ConstantBuilder::default()).bisect();
    log.check(inner).await;
    let log = Log::default();
    let backoff = backon::ConstantBuilder::default();
    let inner = log.innermost_items().timeout(std::time::Duration::MAX);
    let inner = inner.retry(backoff).retry_items(backoff).bisect();
    log.check(inner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_come_to_a_blocking_processor_in_order() {
    let log = Log::default();
    let note = log.clone();
    let processor = BlockingProcessor::spawn(
        || Ok::<_, String>(()),
        move |(), jobs: Vec<u32>| {
            note.note(&jobs);
            Ok(jobs)
        },
    );
    log.check(processor.await.expect("started")).await;
}
