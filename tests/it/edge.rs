//! Values at the edge (promise 10). Zero is in `build`.

use std::time::Duration;

use microbatch::MicroBatch;
use tokio::time::{Instant, sleep};

use crate::support::{AGES, Gate, millis, results, run, secs, soon, submit};

#[tokio::test(start_paused = true)]
async fn everything_may_be_as_large_as_can_be() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(usize::MAX)
        .interval(Duration::MAX)
        .queue_capacity(usize::MAX)
        .shutdown_timeout(Duration::MAX)
        .max_in_flight(usize::MAX)
        .max_batch_weight(usize::MAX, |job| *job as usize));
    let handles = submit(&batcher, 0..1_000);
    sleep(AGES).await;
    assert!(gate.batches().is_empty());
    batcher.flush().await;
    assert_eq!(gate.batches().len(), 1);
    let more = submit(&batcher, 0..1_000);
    batcher.shutdown().await.expect("drains");
    assert_eq!(results(handles).await.len(), results(more).await.len());
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_end_is_bounded_by_the_interval() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(usize::MAX));
    results(submit(&batcher, 0..100)).await;
    // More than the queue holds at once.
    soon(batcher.submit_all(0..1_000)).await;
    assert_eq!(gate.batches()[0].len(), 100);
    assert_eq!(gate.batches()[1].len(), 1_000);
    assert_eq!(gate.times(), [secs(1), secs(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_without_end_never_makes_a_caller_wait() {
    let batcher = run(MicroBatch::builder(Gate::closed()).queue_capacity(usize::MAX));
    let handles = (0..100_000).map(|job| batcher.try_submit(job));
    assert!(handles.into_iter().all(|handle| handle.is_ok()));
}

#[tokio::test(start_paused = true)]
async fn any_number_of_batches_may_run_side_by_side() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(1)
        .max_in_flight(usize::MAX));
    let handles = submit(&batcher, 0..100);
    crate::support::settle().await;
    assert_eq!(gate.inside(), 100);
    gate.pass(100);
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_may_drain_for_ever() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).shutdown_timeout(Duration::MAX));
    let handles = submit(&batcher, 0..5);
    let stop = tokio::spawn(batcher.shutdown());
    sleep(AGES).await;
    assert!(!stop.is_finished());
    gate.pass(2);
    soon(stop).await.expect("no panic").expect("drains");
    results(handles).await;
}

/// The last moment that the clock can name.
fn longest() -> Duration {
    let now = Instant::now();
    let (mut fits, mut exceeds) = (Duration::ZERO, Duration::MAX);
    while exceeds - fits > Duration::from_nanos(1) {
        let middle = fits + (exceeds - fits) / 2;
        match now.checked_add(middle) {
            Some(_) => fits = middle,
            None => exceeds = middle,
        }
    }
    fits
}

#[tokio::test(start_paused = true)]
async fn an_interval_to_the_end_of_time_is_no_overflow() {
    for interval in [
        AGES * 100,
        longest() - secs(1),
        longest(),
        longest() + secs(1),
    ] {
        let batcher = run(MicroBatch::builder(Gate::open()).interval(interval));
        let handles = submit(&batcher, 0..2);
        sleep(secs(1)).await;
        assert!(batcher.is_running(), "{interval:?}");
        batcher.flush().await;
        results(handles).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_timeout_to_the_end_of_time_is_no_overflow() {
    for timeout in [
        AGES * 100,
        longest() - secs(1),
        longest(),
        longest() + secs(1),
    ] {
        let gate = Gate::closed();
        let batcher = run(MicroBatch::builder(gate.clone()).shutdown_timeout(timeout));
        let handles = submit(&batcher, 0..2);
        let stop = tokio::spawn(batcher.shutdown());
        sleep(secs(1)).await;
        assert!(batcher.is_running(), "{timeout:?}");
        gate.pass(1);
        assert_eq!(soon(stop).await.expect("no panic"), Ok(()));
        results(handles).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_shortest_interval_is_the_timers_next_tick() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(Duration::from_nanos(1)));
    results(submit(&batcher, [0])).await;
    assert!(gate.times()[0] <= millis(1));
}

#[tokio::test(start_paused = true)]
async fn the_shortest_shutdown_timeout_still_stops_in_order() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).shutdown_timeout(Duration::from_nanos(1)));
    let _handles = submit(&batcher, 0..5);
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped.expect_err("the gate is closed").abandoned, 5);
}
