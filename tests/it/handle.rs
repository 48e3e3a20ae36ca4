//! What a caller can do with a handle.

use std::time::Duration;

use microbatch::{JobError, JobHandle, MicroBatch};
use tokio::time::{Instant, timeout};

use crate::support::{Gate, answers, idle, poll_once, run, secs, settle, soon, submit};

#[tokio::test(start_paused = true)]
async fn a_handle_is_finished_once_its_result_is_there() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(1));
    let mut handle = batcher.submit(1);
    assert!(!handle.is_finished());
    settle().await;
    assert!(!handle.is_finished(), "in the processor's hands");
    gate.pass(1);
    settle().await;
    assert!(handle.is_finished());
    assert_eq!((&mut handle).await.expect("succeeds"), 1);
    assert!(handle.is_finished(), "and stays so");
}

#[tokio::test(start_paused = true)]
async fn waiting_under_a_timeout_loses_nothing() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(1));
    let mut handle = batcher.submit(1);
    for _ in 0..3 {
        assert!(timeout(secs(1), &mut handle).await.is_err());
    }
    gate.pass(1);
    assert_eq!(soon(handle).await.expect("succeeds"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handle_may_move_between_tasks() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let mut handle = batcher.submit(1);
    assert!(poll_once(&mut handle).is_pending());
    let task = tokio::spawn(handle);
    assert_eq!(soon(task).await.expect("no panic").expect("succeeds"), 1);
}

#[tokio::test(start_paused = true)]
async fn accepted_returns_at_once_for_an_accepted_job() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(1));
    let mut handle = batcher.submit(1);
    for _ in 0..2 {
        handle.accepted().await.expect("accepted");
    }
    gate.pass(1);
    settle().await;
    handle.accepted().await.expect("finished, so accepted");
    assert_eq!(handle.await.expect("succeeds"), 1);
}

#[tokio::test(start_paused = true)]
async fn accepted_waits_for_room_and_not_for_the_result() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(1)
        .queue_capacity(1));
    let mut handles = Vec::new();
    for job in 0..3 {
        let mut handle = batcher.submit(job);
        soon(handle.accepted()).await.expect("room");
        handles.push(handle);
    }
    let mut last = batcher.submit(3);
    assert!(timeout(secs(9), last.accepted()).await.is_err());
    gate.pass(1);
    soon(last.accepted()).await.expect("room");
    assert!(!last.is_finished());
    handles.push(last);
    gate.pass(3);
    assert!(answers(handles).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn an_accepted_job_is_processed_though_its_handle_is_dropped() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).queue_capacity(1));
    for job in 0..7 {
        let mut handle = batcher.submit(job);
        soon(handle.accepted()).await.expect("room");
    }
    soon(batcher.flush()).await;
    assert_eq!(gate.batches().concat(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(batcher.stats().completed, 7);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    batcher.shutdown().await.expect("drains");
    let mut handle = batcher.submit(1);
    for _ in 0..2 {
        let refused = handle.accepted().await;
        assert!(matches!(refused, Err(JobError::Closed)));
    }
    assert!(handle.is_finished());
    assert!(matches!(handle.await, Err(JobError::Closed)));
}

/// A caller that polls `is_finished` before awaiting must not do so for ever.
#[tokio::test(start_paused = true)]
async fn a_handle_that_was_never_awaited_is_finished_once_it_can_only_be_refused() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(1));
    let _queued = batcher.submit(0);
    let handle = batcher.submit(1);
    assert!(!handle.is_finished());
    batcher.shutdown().await.expect("nothing runs");
    assert!(handle.is_finished());
    assert!(matches!(soon(handle).await, Err(JobError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_handle_says_in_debug_where_its_job_is() {
    fn shown(handle: &JobHandle<u32>) -> String {
        format!("{handle:?}")
    }
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(1));
    let (accepted, waiting) = (batcher.submit(0), batcher.submit(1));
    assert!(shown(&accepted).contains("accepted"));
    assert!(shown(&waiting).contains("waiting"));
    tokio::spawn(batcher.start(Default::default()));
    soon(batcher.flush()).await;
    assert!(shown(&accepted).contains("finished"));
}

#[tokio::test(start_paused = true)]
async fn handles_outlive_the_batcher() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(Duration::MAX));
    let began = Instant::now();
    let handles = submit(&batcher, 0..2);
    drop(batcher);
    assert!(answers(handles).await.iter().all(Result::is_ok));
    assert_eq!(began.elapsed(), Duration::ZERO);
}
