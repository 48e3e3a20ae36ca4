//! Starting, and what becomes of a loop whose future is dropped.

use std::task::Poll;
use std::time::Duration;

use microbatch::{CancellationToken, JobError, MicroBatch, StartError};
use tokio::runtime::Handle;

use crate::support::{
    Counted, Gate, answers, assert_balanced, idle, poll_once, results, settle, soon, submit,
};

#[tokio::test(start_paused = true)]
async fn jobs_submitted_before_the_start_wait_in_the_queue() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..7);
    settle().await;
    assert_eq!(batcher.stats().queued, 7);
    assert!(gate.batches().is_empty());
    tokio::spawn(batcher.start(CancellationToken::new()));
    assert!(results(handles).await.into_iter().eq(0..7));
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_an_early_job_starts_with_the_loop() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..2);
    tokio::time::sleep(Duration::from_secs(10)).await;
    tokio::spawn(batcher.start(CancellationToken::new()));
    results(handles).await;
    assert_eq!(gate.times(), [Duration::from_secs(11)]);
}

#[tokio::test(start_paused = true)]
async fn a_batcher_runs_from_the_call_of_start_to_its_end() {
    let batcher = idle(MicroBatch::builder(Gate::open()));
    assert!(!batcher.is_running() && !batcher.is_closed());
    let start = batcher.start(CancellationToken::new());
    assert!(batcher.is_running());
    let start = tokio::spawn(start);
    settle().await;
    assert!(batcher.is_running());
    soon(batcher.shutdown()).await.expect("drains");
    assert!(!batcher.is_running() && batcher.is_closed());
    assert_eq!(soon(start).await.expect("no panic"), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn only_the_first_start_runs() {
    let batcher = idle(MicroBatch::builder(Gate::open()));
    let first = batcher.start(CancellationToken::new());
    // Before the first is polled, while it runs, and after its end.
    let second = soon(batcher.start(CancellationToken::new())).await;
    assert_eq!(second, Err(StartError::AlreadyStarted));
    let first = tokio::spawn(first);
    settle().await;
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let third = soon(batcher.clone().start(cancelled)).await;
    assert_eq!(third, Err(StartError::AlreadyStarted));
    assert!(
        !batcher.is_closed(),
        "the token of a refused start stops nothing"
    );
    soon(batcher.shutdown()).await.expect("drains");
    let last = soon(batcher.start(CancellationToken::new())).await;
    assert_eq!(last, Err(StartError::AlreadyStarted));
    assert_eq!(soon(first).await.expect("no panic"), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn cancelled_before_the_start_still_drains() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).interval(Duration::MAX));
    let handles = submit(&batcher, 0..7);
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert_eq!(soon(batcher.start(cancel)).await, Ok(()));
    assert!(results(handles).await.into_iter().eq(0..7));
    assert!(batcher.is_closed());
}

#[tokio::test(start_paused = true)]
async fn there_is_nothing_to_start_after_a_shutdown() {
    let batcher = idle(MicroBatch::builder(Gate::open()));
    soon(batcher.shutdown()).await.expect("nothing runs");
    for _ in 0..2 {
        assert_eq!(soon(batcher.start(CancellationToken::new())).await, Ok(()));
    }
    assert!(!batcher.is_running());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_a_start_that_is_not_polled_yet() {
    let batcher = idle(MicroBatch::builder(Gate::open()));
    let handles = submit(&batcher, 0..2);
    let start = batcher.start(CancellationToken::new());
    let shutdown = tokio::spawn(batcher.shutdown());
    settle().await;
    assert!(!shutdown.is_finished(), "the jobs can still be processed");
    assert_eq!(soon(start).await, Ok(()));
    assert_eq!(soon(shutdown).await.expect("no panic"), Ok(()));
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_dropped_unpolled_answers_every_job() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(2));
    let handles = submit(&batcher, 0..2);
    let mut waiting = batcher.submit(2);
    assert!(poll_once(&mut waiting).is_pending());
    drop(batcher.start(CancellationToken::new()));
    let answers = answers(handles).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    assert!(matches!(soon(waiting).await, Err(JobError::Closed)));
    assert!(!batcher.is_running() && batcher.is_closed());
    assert_balanced(batcher.stats());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_start_leaves_no_task_behind() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let gate = Gate::closed();
    let before = tasks();
    let batcher = idle(
        MicroBatch::builder(gate.clone())
            .max_batch_size(1)
            .max_in_flight(3),
    );
    let handles = submit(&batcher, 0..10);
    let start = tokio::spawn(batcher.start(CancellationToken::new()));
    settle().await;
    gate.pass(2);
    settle().await;
    start.abort();
    answers(handles).await;
    settle().await;
    assert_eq!((gate.inside(), tasks()), (0, before));
}

/// Drives a batcher through `polls` polls of its loop, one event at a time,
/// then drops the future. Returns whether the loop was still alive then.
async fn dropped_after(polls: usize) -> bool {
    let gate = Gate::closed();
    let batcher = idle(
        MicroBatch::builder(gate.clone())
            .max_in_flight(2)
            .queue_capacity(4),
    );
    let (mut start, count) = Counted::new(batcher.start(CancellationToken::new()));
    let mut handles = Vec::new();
    let mut flushes = Vec::new();
    let mut alive = true;
    for job in 0..40 {
        let mut handle = batcher.submit(job);
        match poll_once(&mut handle) {
            Poll::Pending => handles.push(handle),
            Poll::Ready(answer) => assert!(matches!(answer, Err(JobError::Closed))),
        }
        match job {
            5 | 12 => flushes.push(tokio::spawn(batcher.flush())),
            8 | 16 | 20 => gate.pass(1),
            30 => drop(tokio::spawn(batcher.shutdown())),
            32 => gate.pass(99),
            _ => {}
        }
        if alive && count.get() < polls {
            tokio::select! {
                biased;
                _ = &mut start => alive = false,
                () = settle() => {}
            }
        } else {
            settle().await;
        }
        assert_balanced(batcher.stats());
    }
    drop(start);
    for answer in answers(handles).await {
        let known = matches!(answer, Ok(_) | Err(JobError::Abandoned | JobError::Closed));
        assert!(known, "{answer:?}");
    }
    for flush in flushes {
        soon(flush).await.expect("no panic");
    }
    let _ = soon(batcher.shutdown()).await;
    settle().await;
    assert_eq!(gate.inside(), 0, "batches in flight are gone");
    let stats = batcher.stats();
    assert_balanced(stats);
    let left = stats.queued + stats.pending + stats.processing + stats.in_flight;
    assert_eq!((left, stats.waiting), (0, 0), "{stats:?}");
    assert!(batcher.is_closed() && !batcher.is_running());
    alive
}

#[tokio::test(start_paused = true)]
async fn a_start_dropped_at_any_moment_answers_every_job() {
    let mut polls = 0;
    while dropped_after(polls).await {
        polls += 1;
    }
    assert!(polls > 30, "the last run reached the end");
}
