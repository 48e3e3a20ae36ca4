//! What a burst leaves behind.

use std::time::Duration;

use microbatch::MicroBatch;
use tokio::runtime::Handle;

use crate::support::{Gate, millis, results, run, settle, submit};

/// After a thousand batches in flight a thousand tasks stayed for ever.
#[tokio::test(start_paused = true)]
async fn tasks_that_are_no_longer_needed_end() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        tokio::time::sleep(millis(50)).await;
        Ok::<_, String>(jobs)
    })
    .max_batch_size(1)
    .queue_capacity(1000)
    .max_in_flight(1000));
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    results(submit(&batcher, 0..1000)).await;
    assert!(tasks() > before + 900);
    for job in 0..20 {
        results(submit(&batcher, [job])).await;
    }
    settle().await;
    let left = tasks() - before;
    assert!(left <= 3, "{left} tasks");
    // Those that are left do the work, and new ones come when there is more.
    results(submit(&batcher, 0..1000)).await;
    batcher.shutdown().await.expect("drains");
    assert_eq!(tasks(), before - 1, "the loop has ended as well");
}

/// Two at a time as ordinary work: no task is started anew for each batch.
#[tokio::test(start_paused = true)]
async fn tasks_that_are_needed_stay() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(1)
        .interval(Duration::MAX)
        .max_in_flight(8));
    results(submit(&batcher, 0..8)).await;
    let metrics = Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    for _ in 0..100 {
        results(submit(&batcher, 0..8)).await;
        assert!(metrics.num_alive_tasks() <= before + 8);
    }
}
