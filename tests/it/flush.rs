//! Flushing on request.

use std::time::Duration;

use microbatch::{CancellationToken, FlushReason, MicroBatch};
use tokio::time::{Instant, sleep};

use crate::support::{
    Fate, Gate, Reports, answers, decide, idle, poll_once, results, run, secs, settle, soon, submit,
};

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_neither_size_nor_interval() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .interval(Duration::MAX)
        .on_batch(reports.hook()));
    let handles = submit(&batcher, 0..2);
    soon(batcher.flush()).await;
    assert!(handles.iter().all(|handle| handle.is_finished()));
    assert_eq!(batcher.stats().completed, 2);
    assert_eq!(gate.batches(), [[0, 1]]);
    assert_eq!(gate.times(), [Duration::ZERO]);
    assert_eq!(reports.reasons(), [FlushReason::Requested]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_nothing_is_done_at_once() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let began = Instant::now();
    soon(batcher.flush()).await;
    soon(batcher.flush()).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(gate.batches().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_flush_keeps_limits_and_order() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone()).on_batch(reports.hook()));
    let handles = submit(&batcher, 0..8);
    soon(batcher.flush()).await;
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
    use FlushReason::{Requested, Size};
    assert_eq!(reports.reasons(), [Size, Size, Requested]);
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_done_when_all_is_processed() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..8);
    let flush = tokio::spawn(batcher.flush());
    for _ in 0..3 {
        sleep(secs(9)).await;
        assert!(!flush.is_finished());
        gate.pass(1);
    }
    soon(flush).await.expect("no panic");
    assert!(handles.iter().all(|handle| handle.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_the_batches_in_flight_before_it() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_in_flight(2));
    let _handles = submit(&batcher, 0..3);
    settle().await;
    let flush = tokio::spawn(batcher.flush());
    sleep(secs(9)).await;
    assert!(!flush.is_finished());
    gate.pass(1);
    soon(flush).await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_jobs_accepted_later() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_in_flight(2));
    let _meant = submit(&batcher, 0..2);
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    let later = submit(&batcher, 2..5);
    settle().await;
    assert_eq!(gate.batches(), [vec![0, 1], vec![2, 3, 4]]);
    gate.pass(1);
    soon(flush).await.expect("no panic");
    assert!(later.iter().all(|handle| !handle.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn a_flush_ends_under_steady_load() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        sleep(secs(1)).await;
        Ok::<_, String>(jobs)
    })
    .queue_capacity(2));
    let endless = tokio::spawn({
        let batcher = batcher.clone();
        async move {
            loop {
                let _ = batcher.submit(0).accepted().await;
            }
        }
    });
    settle().await;
    let began = Instant::now();
    soon(batcher.flush()).await;
    assert!(
        began.elapsed() <= secs(4),
        "what is accepted is at most four batches"
    );
    endless.abort();
}

#[tokio::test(start_paused = true)]
async fn jobs_that_come_after_a_flush_wait_for_their_interval() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(10));
    let mut handles = submit(&batcher, 0..2);
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    handles.extend(submit(&batcher, 2..4));
    gate.pass(2);
    soon(flush).await.expect("no panic");
    assert_eq!(gate.batches(), [[0, 1]]);
    results(handles).await;
    assert_eq!(gate.times()[1], secs(1) + crate::support::millis(1));
}

#[tokio::test(start_paused = true)]
async fn a_flush_reaches_all_of_the_queue_behind_a_busy_processor() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(Duration::MAX));
    let handles = submit(&batcher, 0..11);
    settle().await;
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    // Too late for the flush.
    let _late = submit(&batcher, [11]);
    gate.pass(9);
    soon(flush).await.expect("no panic");
    assert_eq!(gate.batches().last(), Some(&vec![9, 10]));
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn flushes_one_after_the_other_are_all_answered() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(Duration::MAX));
    let mut flushes = Vec::new();
    for job in 0..5 {
        let _accepted = batcher.submit(job);
        flushes.push(tokio::spawn(batcher.flush()));
        settle().await;
    }
    gate.pass(9);
    for flush in flushes {
        soon(flush).await.expect("no panic");
    }
    assert_eq!(gate.batches().concat(), [0, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_one_that_came_later() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(1)
        .interval(Duration::MAX));
    let _first = submit(&batcher, 0..4);
    let first = tokio::spawn(batcher.flush());
    settle().await;
    // Some of the first jobs are still in the queue, before this one.
    let _second = submit(&batcher, [4]);
    let second = tokio::spawn(batcher.flush());
    settle().await;
    gate.pass(4);
    soon(first).await.expect("no panic");
    settle().await;
    assert!(!second.is_finished());
    gate.pass(1);
    soon(second).await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_flush_before_the_start_waits_for_it() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).interval(Duration::MAX));
    let flush = tokio::spawn(batcher.flush());
    let _handles = submit(&batcher, 0..2);
    settle().await;
    let late = tokio::spawn(batcher.flush());
    settle().await;
    assert!(!flush.is_finished() && !late.is_finished());
    tokio::spawn(batcher.start(CancellationToken::new()));
    soon(flush).await.expect("no panic");
    soon(late).await.expect("no panic");
    assert_eq!(gate.batches(), [[0, 1]]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_requested_when_first_polled_and_goes_on_by_itself() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(Duration::MAX));
    let _handles = submit(&batcher, 0..2);
    drop(batcher.flush());
    settle().await;
    assert!(gate.batches().is_empty());
    let mut flush = Box::pin(batcher.flush());
    assert!(poll_once(&mut flush).is_pending());
    drop(flush);
    settle().await;
    assert_eq!(gate.batches(), [[0, 1]]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_after_the_end_returns_at_once() {
    let unstarted = idle(MicroBatch::builder(Gate::open()));
    soon(unstarted.shutdown()).await.expect("nothing runs");
    soon(unstarted.flush()).await;
    let batcher = run(MicroBatch::builder(Gate::open()));
    soon(batcher.shutdown()).await.expect("drains");
    soon(batcher.flush()).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_outlasts_a_stop() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(1));
    let _handles = submit(&batcher, 0..3);
    let before = tokio::spawn(batcher.flush());
    settle().await;
    let stop = tokio::spawn(batcher.shutdown());
    settle().await;
    let during = tokio::spawn(batcher.flush());
    settle().await;
    assert!(!before.is_finished() && !during.is_finished());
    gate.pass(3);
    soon(before).await.expect("no panic");
    soon(during).await.expect("no panic");
    soon(stop).await.expect("no panic").expect("drains");
    assert_eq!(batcher.stats().completed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_flush_resolves_though_nothing_will_be_processed() {
    // Shut down unstarted.
    let batcher = idle(MicroBatch::builder(Gate::open()));
    let _queued = batcher.submit(0);
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    soon(batcher.shutdown()).await.expect("nothing runs");
    soon(flush).await.expect("no panic");
    // Out of time.
    let batcher = run(MicroBatch::builder(Gate::closed()));
    let _hung = submit(&batcher, 0..5);
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    soon(batcher.shutdown())
        .await
        .expect_err("the gate is closed");
    soon(flush).await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_batches_that_fail_is_done() {
    let batcher = run(MicroBatch::builder(decide).max_batch_size(1));
    let fates = [Fate::Fail(1), Fate::Panic, Fate::PanicEarly, Fate::Short];
    let handles = submit(&batcher, fates);
    soon(batcher.flush()).await;
    assert!(handles.iter().all(|handle| handle.is_finished()));
    assert!(answers(handles).await.iter().all(Result::is_err));
}

#[tokio::test(start_paused = true)]
async fn a_flush_means_accepted_jobs_only() {
    let gate = Gate::closed();
    let (batcher, _handles) = crate::queue::crowded(&gate).await;
    let mut waiting = batcher.submit(9);
    assert!(poll_once(&mut waiting).is_pending());
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    gate.pass(3);
    soon(flush).await.expect("no panic");
    assert!(!waiting.is_finished());
}
