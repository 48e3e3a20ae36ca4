//! The hook that sees every finished batch.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use microbatch::{FlushReason, MicroBatch};
use tokio::time::sleep;

use crate::support::{
    Fate, Gate, Report, Reports, answers, decide, lock, millis, results, run, secs, settle, soon,
    submit,
};

#[tokio::test(start_paused = true)]
async fn it_sees_what_there_is_to_know_of_a_batch() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_weight(100, |job| *job as usize)
        .on_batch(reports.hook()));
    let mut handles = submit(&batcher, [3]);
    sleep(millis(250)).await;
    handles.extend(submit(&batcher, [4]));
    sleep(secs(4)).await;
    assert!(reports.all().is_empty(), "not finished yet");
    gate.pass(1);
    results(handles).await;
    let report = Report {
        size: 2,
        weight: 7,
        reason: FlushReason::Interval,
        waited: secs(1),
        took: millis(3_250),
        error: None,
    };
    assert_eq!(reports.all(), [report]);
}

#[tokio::test(start_paused = true)]
async fn it_is_told_how_long_the_first_job_waited_behind_others() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone()).on_batch(reports.hook()));
    let mut handles = submit(&batcher, 0..3);
    sleep(secs(1)).await;
    handles.extend(submit(&batcher, 3..6));
    sleep(secs(6)).await;
    gate.pass(2);
    results(handles).await;
    let waited: Vec<_> = reports.all().iter().map(|report| report.waited).collect();
    assert_eq!(waited, [Duration::ZERO, secs(6)]);
}

/// The simulation found it: a second request to flush woke the worker, which had
/// nothing to do and parked again. A job that came in between was taken for as old as
/// the job before it.
#[tokio::test(start_paused = true)]
async fn a_job_that_comes_while_the_worker_wakes_for_nothing_has_its_own_time() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(1)
        .on_batch(reports.hook()));
    let mut handles = submit(&batcher, 0..3);
    let mut first = Box::pin(batcher.flush());
    assert!(first.as_mut().now_or_never().is_none());
    sleep(secs(1)).await;
    let mut second = Box::pin(batcher.flush());
    assert!(second.as_mut().now_or_never().is_none());
    handles.extend(submit(&batcher, 3..4));
    sleep(secs(4)).await;
    gate.pass(4);
    results(handles).await;
    let waited: Vec<_> = reports.all().iter().map(|report| report.waited).collect();
    assert_eq!(waited, [secs(0), secs(5), secs(5), secs(4)]);
}

#[tokio::test(start_paused = true)]
async fn without_a_weigher_the_weight_is_zero() {
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(Gate::open()).on_batch(reports.hook()));
    results(submit(&batcher, 0..3)).await;
    assert_eq!(reports.weights(), [0]);
}

#[tokio::test(start_paused = true)]
async fn it_is_told_every_reason() {
    use FlushReason::{Idle, Interval, Requested, Shutdown, Size, Weight};
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(Gate::open())
        .max_batch_weight(10, |job| *job as usize)
        .on_batch(reports.hook()));
    results(submit(&batcher, [1, 1, 1])).await;
    results(submit(&batcher, [10])).await;
    results(submit(&batcher, [1])).await;
    let _requested = submit(&batcher, [1]);
    soon(batcher.flush()).await;
    let _last = submit(&batcher, [1]);
    soon(batcher.shutdown()).await.expect("drains");
    assert_eq!(
        reports.reasons(),
        [Size, Weight, Interval, Requested, Shutdown]
    );

    let reports = Reports::default();
    let eager = run(MicroBatch::builder(Gate::open())
        .flush_when_idle(true)
        .on_batch(reports.hook()));
    results(submit(&eager, [1])).await;
    assert_eq!(reports.reasons(), [Idle]);
}

#[test]
fn a_reason_is_shown_as_one_word() {
    use FlushReason::{Idle, Interval, Requested, Shutdown, Size, Weight};
    let shown =
        [Size, Weight, Interval, Idle, Requested, Shutdown].map(|reason| reason.to_string());
    assert_eq!(
        shown,
        [
            "size",
            "weight",
            "interval",
            "idle",
            "requested",
            "shutdown"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn it_is_told_why_a_batch_failed() {
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(decide)
        .max_batch_size(1)
        .on_batch(reports.hook()));
    let fates = [Fate::Answer(1), Fate::Fail(7), Fate::Panic, Fate::Short];
    for answer in answers(submit(&batcher, fates)).await {
        // Callers are told the same.
        let error = answer.err().map(|error| error.to_string());
        assert!(reports.all().iter().any(|report| report.error == error));
    }
    let failed: Vec<_> = reports
        .all()
        .iter()
        .map(|report| report.error.is_some())
        .collect();
    assert_eq!(failed, [false, true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn it_is_called_once_per_batch_before_the_replies() {
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(Gate::open()).on_batch(reports.hook()));
    for turn in 1..5 {
        results(submit(&batcher, 0..3)).await;
        assert_eq!(reports.all().len(), turn);
    }
}

#[tokio::test(start_paused = true)]
async fn it_may_use_the_batcher() {
    let slot = Arc::new(OnceLock::<MicroBatch<u32, u32>>::new());
    let (own, seen) = (Arc::clone(&slot), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&seen);
    let batcher = run(MicroBatch::builder(Gate::open()).on_batch(move |report| {
        let batcher = own.get().expect("set before the first job");
        lock(&log).push((report.size, batcher.stats().completed));
        if report.size == 3 {
            drop(batcher.submit(9));
        }
    }));
    assert!(slot.set(batcher.clone()).is_ok());
    results(submit(&batcher, 0..3)).await;
    soon(batcher.flush()).await;
    assert_eq!(*lock(&seen), [(3, 3), (1, 4)]);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_see_a_batch_that_was_abandoned() {
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(Gate::closed()).on_batch(reports.hook()));
    let _handles = submit(&batcher, 0..3);
    soon(batcher.shutdown())
        .await
        .expect_err("the gate is closed");
    settle().await;
    assert!(reports.all().is_empty());
}
