use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backon::{ConstantBuilder, ExponentialBuilder};
use microbatch::{BatchProcessor, BatchProcessorExt, JobError};
use tokio::time::Instant;

use super::{Calls, batcher, cause};

/// Fails that many times.
fn flaky(failures: u32, calls: &Calls<u8>) -> impl BatchProcessor<u8, u8, Error = &'static str> {
    let (calls, failed) = (calls.clone(), Arc::new(AtomicU32::new(0)));
    move |jobs: Vec<u8>| {
        calls.note(&jobs);
        let fails = failed.fetch_add(1, Ordering::SeqCst) < failures;
        async move { if fails { Err("reset") } else { Ok(jobs) } }
    }
}

fn pauses(times: usize) -> ConstantBuilder {
    ConstantBuilder::default()
        .with_delay(Duration::from_secs(1))
        .with_max_times(times)
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_is_tried_again_after_a_pause() {
    let calls = Calls::new();
    let batcher = batcher(2, flaky(2, &calls).retry(pauses(3)));
    let start = Instant::now();
    for (job, result) in (1..).zip(batcher.submit_all([1, 2]).await) {
        assert_eq!(result.expect("third time lucky"), job);
    }
    assert_eq!(calls.all(), [[1, 2], [1, 2], [1, 2]]);
    assert_eq!(start.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn the_last_error_is_returned_when_the_pauses_are_used_up() {
    let calls = Calls::new();
    let batcher = batcher(1, flaky(9, &calls).retry(pauses(3)));
    let error = batcher.submit(1).await.expect_err("four failures");
    assert_eq!(cause(&error), "reset");
    assert_eq!(calls.count(), 4);
    // Each batch starts with all pauses.
    batcher.submit(1).await.expect_err("four more");
    assert_eq!(calls.count(), 8);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_will_not_pass_is_not_retried() {
    let calls = Calls::new();
    let retried = flaky(9, &calls)
        .retry(pauses(3))
        .when(|error| error.starts_with("busy"));
    let batcher = batcher(1, retried);
    batcher.submit(1).await.expect_err("fails");
    assert_eq!(calls.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_not_retried() {
    let panics = |_: Vec<u8>| async { panic!("once") as Result<Vec<u8>, String> };
    let batcher = batcher(1, panics.retry(pauses(3)));
    let start = Instant::now();
    let error = batcher.submit(1).await.expect_err("panics");
    assert!(matches!(error, JobError::Panicked(message) if &*message == "once"));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_out_a_pause_longer_than_its_deadline() {
    let calls = Calls::new();
    let hours = ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(3600))
        .with_max_delay(Duration::from_secs(36_000));
    let batcher = batcher(1, flaky(9, &calls).retry(hours));
    let handle = batcher.submit(1);
    tokio::task::yield_now().await;
    let start = Instant::now();
    let timeout = batcher.shutdown().await.expect_err("the pause is too long");
    assert_eq!(timeout.abandoned, 1);
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert!(matches!(handle.await, Err(JobError::Abandoned)));
    assert_eq!(calls.count(), 1);
}
