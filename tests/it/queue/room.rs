//! Room in the queue.

use microbatch::{JobError, MicroBatch, TrySubmitError};

use super::crowded;
use crate::support::{Gate, idle, poll_once, results, run, settle, soon, submit};

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
async fn what_the_loop_has_taken_up_takes_no_room() {
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

#[tokio::test(start_paused = true)]
async fn an_unawaited_handle_is_not_accepted() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let unawaited = batcher.submit(99);
    assert_eq!(batcher.stats().waiting, 0, "not even in line");
    gate.pass(10);
    results(handles).await;
    settle().await;
    assert!(!unawaited.is_finished());
    assert_eq!(batcher.stats().accepted, 3, "though there is room by now");
    drop(unawaited);
    soon(batcher.shutdown()).await.expect("drains");
    assert_eq!(gate.batches(), [[0], [1], [2]]);
}

#[tokio::test(start_paused = true)]
async fn a_handle_awaited_late_is_accepted_late() {
    let gate = Gate::closed();
    let (batcher, mut handles) = crowded(&gate).await;
    let late = batcher.submit(3);
    gate.pass(10);
    handles.push(batcher.submit(4));
    results(handles).await;
    assert_eq!(soon(late).await.expect("succeeds"), 3);
    assert_eq!(gate.batches(), [[0], [1], [2], [4], [3]]);
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
async fn asking_whether_it_is_finished_puts_nobody_in_line() {
    let gate = Gate::closed();
    let (batcher, _handles) = crowded(&gate).await;
    let mut handle = batcher.submit(3);
    assert!(!handle.is_finished());
    assert_eq!(batcher.stats().waiting, 0);
    assert!(poll_once(&mut handle).is_pending());
    assert_eq!(batcher.stats().waiting, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_try_leaves_no_trace() {
    let gate = Gate::closed();
    let (batcher, _handles) = crowded(&gate).await;
    let before = batcher.stats();
    for job in 0..100 {
        assert!(batcher.try_submit(job).is_err());
    }
    assert_eq!(batcher.stats(), before);
}
