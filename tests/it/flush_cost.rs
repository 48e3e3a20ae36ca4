//! Flush once the pending jobs have together waited as long as a flush costs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use microbatch::{CancellationToken, FlushReason, MicroBatch, MicroBatchBuilder};
use tokio::time::{Instant, sleep};

type Log = Arc<Mutex<Vec<(Duration, usize, FlushReason)>>>;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A micro-batcher that logs when each batch was flushed, how large and why.
fn logging(
    options: impl FnOnce(
        MicroBatchBuilder<u32, u32, fn(Vec<u32>) -> std::future::Ready<Result<Vec<u32>, String>>>,
    ) -> MicroBatchBuilder<
        u32,
        u32,
        fn(Vec<u32>) -> std::future::Ready<Result<Vec<u32>, String>>,
    >,
) -> (MicroBatch<u32, u32>, Log) {
    let log = Log::default();
    let (entries, start) = (Arc::clone(&log), Instant::now());
    let echo: fn(Vec<u32>) -> _ = |jobs| std::future::ready(Ok(jobs));
    let builder = MicroBatch::builder(echo)
        .max_batch_size(1000)
        .queue_capacity(1000)
        .interval(Duration::MAX)
        .on_batch(move |report| {
            let entry = (start.elapsed(), report.size, report.reason);
            entries.lock().expect("unpoisoned").push(entry);
        });
    let batcher = options(builder).build_running(CancellationToken::new());
    (batcher.expect("valid options"), log)
}

async fn submit_at(batcher: &MicroBatch<u32, u32>, times: &[u64]) {
    let start = Instant::now();
    let mut handles = Vec::new();
    for time in times {
        tokio::time::sleep_until(start + seconds(*time)).await;
        handles.push(batcher.submit(0));
    }
    for handle in handles {
        handle.await.expect("processed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_job_waits_for_the_cost_of_a_flush() {
    let (batcher, log) = logging(|options| options.flush_cost(seconds(12)));
    submit_at(&batcher, &[0]).await;
    assert_eq!(
        *log.lock().expect("unpoisoned"),
        [(seconds(12), 1, FlushReason::Cost)]
    );
}

#[tokio::test(start_paused = true)]
async fn each_job_that_joins_brings_the_flush_nearer() {
    let (batcher, log) = logging(|options| options.flush_cost(seconds(12)));
    // At 7 they have waited 7 + 4 + 1 = 12 seconds.
    submit_at(&batcher, &[0, 3, 6]).await;
    assert_eq!(
        *log.lock().expect("unpoisoned"),
        [(seconds(7), 3, FlushReason::Cost)]
    );
}

#[tokio::test(start_paused = true)]
async fn jobs_that_come_together_share_the_cost() {
    let (batcher, log) = logging(|options| options.flush_cost(seconds(12)));
    submit_at(&batcher, &[0, 0, 0, 0]).await;
    assert_eq!(
        *log.lock().expect("unpoisoned"),
        [(seconds(3), 4, FlushReason::Cost)]
    );
}

#[tokio::test(start_paused = true)]
async fn size_and_interval_hold_as_well() {
    let (batcher, log) = logging(|options| {
        options
            .flush_cost(seconds(12))
            .max_batch_size(2)
            .interval(seconds(5))
    });
    submit_at(&batcher, &[0, 1, 1]).await;
    let expected = [
        (seconds(1), 2, FlushReason::Size),
        (seconds(6), 1, FlushReason::Interval),
    ];
    assert_eq!(*log.lock().expect("unpoisoned"), expected);
}

#[tokio::test(start_paused = true)]
async fn jobs_left_behind_by_a_full_batch_are_counted_from_their_own_arrival() {
    let (batcher, log) = logging(|options| {
        options
            .flush_cost(seconds(12))
            .max_batch_weight(10, |job| *job as usize)
    });
    let first = batcher.submit(6);
    sleep(seconds(1)).await;
    let second = batcher.submit(6);
    let _ = (first.await, second.await);
    let expected = [
        (seconds(1), 1, FlushReason::Weight),
        (seconds(13), 1, FlushReason::Cost),
    ];
    assert_eq!(*log.lock().expect("unpoisoned"), expected);
}

#[tokio::test(start_paused = true)]
async fn a_cost_of_zero_is_idle_flush() {
    let (batcher, log) = logging(|options| options.flush_cost(Duration::ZERO));
    submit_at(&batcher, &[0, 3]).await;
    let expected = [
        (seconds(0), 1, FlushReason::Idle),
        (seconds(3), 1, FlushReason::Idle),
    ];
    assert_eq!(*log.lock().expect("unpoisoned"), expected);
}

#[tokio::test(start_paused = true)]
async fn a_huge_cost_is_meant_literally() {
    let (batcher, log) = logging(|options| options.flush_cost(Duration::MAX).interval(seconds(9)));
    submit_at(&batcher, &[0, 1]).await;
    assert_eq!(
        *log.lock().expect("unpoisoned"),
        [(seconds(9), 2, FlushReason::Interval)]
    );
}
