//! Room in the queue.

use std::time::Duration;

use microbatch::{JobError, MicroBatch, TrySubmitError};
use tokio::time::Instant;

use super::crowded;
use crate::support::{Gate, assert_balanced, idle, results, run, secs, settle, soon, submit};

#[tokio::test(start_paused = true)]
async fn submit_accepts_at_once_while_there_is_room() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(5));
    let _handles = submit(&batcher, 0..5);
    let stats = batcher.stats();
    assert_eq!((stats.accepted, stats.queued, stats.waiting), (5, 5, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_gives_the_job_back() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(2));
    let _handles = submit(&batcher, 0..2);
    let refused = batcher.try_submit(7).expect_err("full");
    assert_eq!(refused, TrySubmitError::Full(7));
    assert_eq!(refused.into_job(), 7);
    assert_eq!(batcher.stats().accepted, 2);
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_gives_the_job_back() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(1));
    let _handle = batcher.submit(0);
    batcher.shutdown().await.expect("nothing runs");
    let refused = batcher.try_submit(7).expect_err("closed");
    assert_eq!(
        refused,
        TrySubmitError::Closed(7),
        "closed rather than full"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_worker_has_received_takes_no_room() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).queue_capacity(10));
    let mut handles = Vec::new();
    // Three run, three are pending, ten are queued.
    while let Ok(handle) = batcher.try_submit(0) {
        handles.push(handle);
        settle().await;
    }
    assert_eq!(handles.len(), 16);
    gate.pass(1);
    settle().await;
    assert_eq!(batcher.stats().queued, 7);
    gate.pass(5);
    results(handles).await;
}

/// Beyond the queue a job became a waiter only once its handle was polled. So a
/// thousand handles awaited one after the other went one an interval: 901 s.
#[tokio::test(start_paused = true)]
async fn handles_awaited_one_after_the_other_make_full_batches() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let start = Instant::now();
    let answers = results(submit(&batcher, 0..999)).await;
    assert!(answers.into_iter().eq(0..999));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(gate.batches().len(), 333);
    let start = Instant::now();
    results(submit(&batcher, 0..1000)).await;
    assert_eq!(gate.batches().len(), 333 + 334);
    assert_eq!(start.elapsed(), secs(1), "the last one has no company");
}

/// They were processed in the order in which they were polled.
#[tokio::test(start_paused = true)]
async fn jobs_are_processed_in_the_order_submitted_however_they_are_awaited() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).queue_capacity(7));
    let mut handles = submit(&batcher, 0..100);
    handles.reverse();
    results(handles).await;
    assert!(gate.batches().into_iter().flatten().eq(0..100));
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_is_not_polled_waits_for_room() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let unawaited = batcher.submit(99);
    assert!(!unawaited.is_finished());
    assert_eq!(batcher.stats().waiting, 1);
    gate.pass(10);
    results(handles).await;
    settle().await;
    assert!(unawaited.is_finished());
    assert_eq!(gate.batches(), [[0], [1], [2], [99]]);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_waiting_handle_withdraws_its_job() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let mut waiting = submit(&batcher, 10..110);
    for at in (0..100).rev().filter(|at| at % 10 != 0) {
        drop(waiting.remove(at));
    }
    let stats = batcher.stats();
    assert_eq!((stats.waiting, stats.withdrawn_waiting), (10, 90));
    gate.pass(20);
    results(handles).await;
    results(waiting).await;
    let processed = gate.batches().into_iter().flatten();
    assert!(processed.skip(3).eq((10..110).step_by(10)));
    assert_balanced(batcher.stats());
}

#[tokio::test(start_paused = true)]
async fn a_handle_awaited_after_the_end_was_never_accepted() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).queue_capacity(1));
    let _queued = batcher.submit(0);
    let (awaited, mut asked) = (batcher.submit(1), batcher.submit(2));
    batcher.shutdown().await.expect("nothing runs");
    assert!(matches!(soon(awaited).await, Err(JobError::Closed)));
    let accepted = soon(asked.accepted()).await;
    assert!(matches!(accepted, Err(JobError::Closed)));
    assert!(matches!(soon(asked).await, Err(JobError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_refused_try_leaves_no_trace() {
    let gate = Gate::closed();
    let (batcher, _handles) = crowded(&gate).await;
    let before = batcher.stats();
    for job in 0..100 {
        assert!(batcher.try_submit(job).is_err());
    }
    let mut stats = batcher.stats();
    assert_eq!(stats.refused, 100);
    stats.refused = 0;
    assert_eq!(stats, before);
}
