//! Options: defaults, limits, refusals.

use std::time::Duration;

use microbatch::{
    BatchProcessor, BuildError, CancellationToken, MicroBatch, MicroBatchBuilder, ShutdownTimeout,
};
use tokio::time::{Instant, sleep};

use crate::support::{Gate, Reports, idle, run, secs, settle, soon, submit};

fn builder() -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32>> {
    MicroBatch::builder(Gate::open())
}

#[test]
fn zero_is_refused_by_name() {
    let refused = [
        ("max_batch_size", builder().max_batch_size(0)),
        ("interval", builder().interval(Duration::ZERO)),
        ("queue_capacity", builder().queue_capacity(0)),
        (
            "shutdown_timeout",
            builder().shutdown_timeout(Duration::ZERO),
        ),
        ("max_in_flight", builder().max_in_flight(0)),
        ("max_batch_weight", builder().max_batch_weight(0, |_| 1)),
    ];
    for (name, builder) in refused {
        let error = builder.build().expect_err(name);
        assert_eq!(error, BuildError::Zero(name));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_value_starts_nothing() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let refused = builder()
        .interval(Duration::ZERO)
        .build_running(CancellationToken::new());
    assert_eq!(refused.expect_err("zero"), BuildError::Zero("interval"));
    assert_eq!(tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn the_last_value_given_counts() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(0)
        .max_batch_size(2));
    soon(batcher.submit_all(0..4)).await;
    assert_eq!(gate.batches(), [[0, 1], [2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn options_set_before_the_storage_are_kept() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(5)
        .queue_capacity(7)
        .interval(secs(2))
        .max_batch_weight(4, |_| 1)
        .on_batch(reports.hook())
        .cancel_on_drop(true)
        .storage(microbatch::MemoryStorage::new()));
    drop(batcher.submit(0));
    soon(batcher.submit_all(1..6)).await;
    assert_eq!(gate.batches(), [vec![1, 2, 3, 4], vec![5]]);
    assert_eq!(gate.times(), [Duration::ZERO, secs(2)]);
    assert_eq!(reports.weights(), [4, 1]);
}

/// The three ways to the default options.
fn with_defaults(gate: &Gate) -> [MicroBatch<u32, u32>; 3] {
    [
        MicroBatch::new(gate.clone()),
        MicroBatch::new_running(CancellationToken::new(), gate.clone()),
        idle(MicroBatch::builder(gate.clone())),
    ]
}

/// Starts what is not running yet.
fn start(batcher: &MicroBatch<u32, u32>) {
    if !batcher.is_running() {
        tokio::spawn(batcher.start(CancellationToken::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_three_jobs_are_a_batch_and_fewer_wait_a_second() {
    for at in 0..3 {
        let gate = Gate::open();
        let batcher = &with_defaults(&gate)[at];
        start(batcher);
        soon(batcher.submit_all(0..4)).await;
        assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3]]);
        assert_eq!(gate.times(), [Duration::ZERO, secs(1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_the_queue_holds_a_hundred_jobs() {
    for batcher in with_defaults(&Gate::open()) {
        let handles = (0..100).map(|job| batcher.try_submit(job));
        let handles: Result<Vec<_>, _> = handles.collect();
        assert_eq!(handles.expect("room").len(), 100);
        assert!(batcher.try_submit(100).is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_a_stop_drains_for_five_seconds() {
    for at in 0..3 {
        let batcher = &with_defaults(&Gate::closed())[at];
        start(batcher);
        let _handles = submit(batcher, 0..3);
        let began = Instant::now();
        let stopped = soon(batcher.shutdown()).await;
        assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 3 }));
        assert_eq!(began.elapsed(), secs(5));
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_batches_run_one_at_a_time() {
    for at in 0..3 {
        let gate = Gate::closed();
        let batcher = &with_defaults(&gate)[at];
        start(batcher);
        let _handles = submit(batcher, 0..9);
        settle().await;
        assert_eq!(gate.inside(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_a_dropped_handle_does_not_cancel() {
    for at in 0..3 {
        let gate = Gate::open();
        let batcher = &with_defaults(&gate)[at];
        start(batcher);
        drop(submit(batcher, 0..2));
        sleep(secs(2)).await;
        assert_eq!(gate.batches(), [[0, 1]]);
    }
}

#[test]
fn a_batcher_can_be_built_outside_a_runtime() {
    let batcher = idle(builder());
    let _queued = batcher.submit(1);
    assert_eq!(batcher.stats().queued, 1);
}
