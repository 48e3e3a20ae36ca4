//! The finer timer, of the feature `fine-timer`. Where it goes off the clock is
//! real, so these tests wait for events only, and claim no more than that no
//! job is early. On a runtime without a timer of its own nothing else can go
//! off.

use std::thread;
use std::time::Duration;

use microbatch::{FlushReason, JobHandle, MicroBatch};
use tokio::task::yield_now;
use tokio::time;

use crate::support::{
    Counted, Gate, Polls, Reports, bare_runtime, idle, millis, results, run, settle_now, submit,
};

/// The longest that Tokio's timer does not keep, so that a test can do a thing or
/// two before it is over.
const INTERVAL: Duration = Duration::from_micros(999);

/// Awaits every handle, without a deadline: there may be no timer for it, and a
/// paused clock would jump to it.
async fn await_all(handles: Vec<JobHandle<u32>>) {
    for handle in handles {
        handle.await.expect("succeeds");
    }
}

/// How often the loop is polled while a timer left over would go off.
async fn later_polls(polls: &Polls) -> usize {
    settle_now().await;
    let before = polls.get();
    thread::sleep(INTERVAL * 10);
    settle_now().await;
    polls.get() - before
}

#[test]
fn an_interval_below_a_millisecond_needs_no_timer_of_the_runtime() {
    let (gate, reports) = (Gate::open(), Reports::default());
    bare_runtime().block_on(async {
        let batcher = run(MicroBatch::builder(gate.clone())
            .interval(INTERVAL)
            .on_batch(reports.hook()));
        for job in 0..3 {
            batcher.submit(job).await.expect("succeeds");
        }
    });
    assert_eq!(gate.batches(), [[0], [1], [2]]);
    assert_eq!(reports.reasons(), [FlushReason::Interval; 3]);
    assert!(reports.all().iter().all(|batch| batch.waited >= INTERVAL));
}

#[test]
fn so_does_a_flush_cost_below_a_millisecond() {
    let reports = Reports::default();
    bare_runtime().block_on(async {
        let batcher = run(MicroBatch::builder(Gate::open())
            .interval(Duration::MAX)
            .flush_cost(INTERVAL)
            .on_batch(reports.hook()));
        batcher.submit(0).await.expect("succeeds");
    });
    assert_eq!(reports.reasons(), [FlushReason::Cost]);
    assert!(reports.all()[0].waited >= INTERVAL);
}

#[test]
fn nothing_is_set_while_nothing_is_pending() {
    bare_runtime().block_on(async {
        let batcher = idle(MicroBatch::builder(Gate::open()).interval(INTERVAL));
        let (start, polls) = Counted::new(batcher.start(Default::default()));
        tokio::spawn(start);
        await_all(submit(&batcher, [0])).await;
        assert_eq!(later_polls(&polls).await, 0, "after an interval");
        let mut handles = submit(&batcher, [1]);
        // The loop has set its timer once this task is scheduled again.
        yield_now().await;
        handles.extend(submit(&batcher, [2, 3]));
        await_all(handles).await;
        assert_eq!(later_polls(&polls).await, 0, "after a full batch");
    });
}

#[tokio::test(start_paused = true)]
async fn on_a_paused_clock_it_leaves_all_to_the_runtime() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(INTERVAL));
    results(submit(&batcher, [0])).await;
    assert_eq!(gate.times(), [millis(1)], "the timer rounds up");
}

#[tokio::test]
async fn a_clock_that_is_paused_meanwhile_keeps_the_interval() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .interval(INTERVAL)
        .on_batch(reports.hook()));
    let handles = submit(&batcher, [0]);
    // The loop has set its timer once this task is scheduled again.
    yield_now().await;
    time::pause();
    await_all(handles).await;
    assert_eq!(reports.reasons(), [FlushReason::Interval]);
    assert!(reports.all()[0].waited >= INTERVAL);
}
