//! Batches start in the order submitted, also where several are in flight on
//! several threads. A decorator that called the inner processor in the first poll
//! of its future swapped some ten in 40 000.

use std::time::Duration;

use microbatch::{BatchProcessor, BatchProcessorExt, BlockingProcessor};

use crate::support::StartLog;

/// The processor inside the decorators, which writes the log.
fn innermost(log: &StartLog) -> impl BatchProcessor<u32, u32, Error = String> + use<> {
    let log = log.clone();
    move |jobs: Vec<u32>| {
        log.note(&jobs);
        async move {
            tokio::task::yield_now().await;
            Ok(jobs)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_timeout() {
    let log = StartLog::default();
    let inner = innermost(&log);
    log.check(inner.timeout(Duration::MAX)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_bisect() {
    let log = StartLog::default();
    let inner = innermost(&log);
    log.check(inner.bisect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_coalesce() {
    let log = StartLog::default();
    let inner = innermost(&log);
    log.check(inner.coalesce()).await;
}

#[cfg(feature = "retry")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_retry() {
    let log = StartLog::default();
    let inner = innermost(&log);
    log.check(inner.retry(backon::ConstantBuilder::default()))
        .await;
}

#[cfg(feature = "retry")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_retry_of_items() {
    let log = StartLog::default();
    let inner = innermost(&log).bisect();
    log.check(inner.retry_items(backon::ConstantBuilder::default()))
        .await;
}

#[cfg(feature = "retry")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_under_all_of_them() {
    let log = StartLog::default();
    let inner = innermost(&log).coalesce().timeout(Duration::MAX);
    let inner = inner.retry(backon::ConstantBuilder::default()).bisect();
    log.check(inner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_come_to_a_blocking_processor_in_order() {
    let log = StartLog::default();
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
