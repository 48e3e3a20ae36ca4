//! Pausing and resuming.

use std::time::Duration;

use microbatch::MicroBatch;
use tokio::time::{Instant, sleep};

use crate::support::{Gate, Reports, idle, results, run, secs, settle, soon, submit};

#[tokio::test(start_paused = true)]
async fn no_batch_is_cut_while_paused() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).flush_when_idle(true));
    batcher.pause();
    assert!(batcher.is_paused());
    let handles = submit(&batcher, 0..7);
    sleep(secs(60)).await;
    assert!(gate.batches().is_empty());
    batcher.resume();
    assert!(!batcher.is_paused());
    let start = Instant::now();
    soon(results(handles)).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn batches_in_flight_end_during_a_pause() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..3);
    settle().await;
    batcher.pause();
    gate.pass(1);
    soon(results(handles)).await;
}

#[tokio::test(start_paused = true)]
async fn callers_wait_once_there_is_no_room() {
    let batcher = run(MicroBatch::builder(Gate::open()).queue_capacity(5));
    batcher.pause();
    let handles = submit(&batcher, 0..20);
    sleep(secs(10)).await;
    let stats = batcher.stats();
    assert_eq!(stats.waiting + stats.queued + stats.pending, 20);
    assert_eq!((stats.queued, stats.pending), (5, 3));
    batcher.resume();
    soon(results(handles)).await;
}

#[tokio::test(start_paused = true)]
async fn the_interval_goes_on_counting() {
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(Gate::open())
        .interval(secs(10))
        .on_batch(reports.hook()));
    let handles = submit(&batcher, [1]);
    settle().await;
    batcher.pause();
    sleep(secs(4)).await;
    batcher.resume();
    let start = Instant::now();
    soon(results(handles)).await;
    assert!(start.elapsed() <= secs(6), "{:?}", start.elapsed());
    assert!(reports.all()[0].waited >= secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_requested_flush_waits_for_the_end_of_the_pause() {
    let batcher = run(MicroBatch::builder(Gate::open()).interval(Duration::MAX));
    let handles = submit(&batcher, [1]);
    batcher.pause();
    let flush = tokio::spawn(batcher.flush());
    sleep(secs(10)).await;
    assert!(!flush.is_finished());
    batcher.resume();
    soon(flush).await.expect("it does not panic");
    assert!(handles.iter().all(|handle| handle.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_pause() {
    let batcher = run(MicroBatch::builder(Gate::open()).interval(Duration::MAX));
    batcher.pause();
    let handles = submit(&batcher, 0..7);
    soon(batcher.shutdown()).await.expect("it drains");
    assert!(!batcher.is_paused());
    assert_eq!(results(handles).await.len(), 7);
    batcher.pause();
    assert!(!batcher.is_paused(), "there is nothing left to pause");
}

#[tokio::test(start_paused = true)]
async fn a_pause_before_the_start_holds() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).flush_when_idle(true));
    batcher.pause();
    let handles = submit(&batcher, [1]);
    tokio::spawn(batcher.start(Default::default()));
    sleep(secs(10)).await;
    assert!(gate.batches().is_empty());
    batcher.resume();
    soon(results(handles)).await;
}

#[tokio::test(start_paused = true)]
async fn a_resume_without_a_pause_changes_nothing() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    batcher.resume();
    soon(results(submit(&batcher, 0..4))).await;
}
