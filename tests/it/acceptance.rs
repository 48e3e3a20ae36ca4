//! Time counts from acceptance, wherever a job waits since.

use std::time::Duration;

use microbatch::{BatchProcessor, MicroBatch, MicroBatchBuilder};
use tokio::time::{advance, sleep};

use crate::support::{Gate, Reports, millis, results, run, secs, settle, soon, submit};

/// Batches of a length that the test sets.
fn slow(
    gate: &Gate,
    reports: &Reports,
    takes: Duration,
) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    let gate = gate.clone();
    let processor = move |jobs: Vec<u32>| {
        let gate = gate.clone();
        async move {
            let jobs = gate.process(jobs).await;
            sleep(takes).await;
            jobs
        }
    };
    MicroBatch::builder(processor).on_batch(reports.hook())
}

/// Of seven jobs behind a long batch the last was timed when the loop came to it:
/// it waited for the interval once more, and its report said that it had not.
#[tokio::test(start_paused = true)]
async fn who_waits_behind_a_batch_has_waited_when_it_ends() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(slow(&gate, &reports, secs(10)).max_in_flight(2));
    let handles = submit(&batcher, 0..13);
    results(handles).await;
    assert_eq!(
        gate.times(),
        [secs(0), secs(0), secs(10), secs(10), secs(20)]
    );
    assert_eq!(
        reports.waits(),
        [secs(0), secs(0), secs(10), secs(10), secs(20)]
    );

    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(slow(&gate, &reports, Duration::ZERO));
    let handles = submit(&batcher, 0..3);
    settle().await;
    let seven = submit(&batcher, 3..10);
    sleep(secs(10) - millis(1)).await;
    gate.pass(9);
    results(handles).await;
    results(seven).await;
    assert_eq!(gate.times(), [secs(0), secs(10), secs(10), secs(10)]);
    let waited = secs(10) - millis(1);
    assert_eq!(reports.waits(), [secs(0), waited, waited, waited]);
}

/// The same with jobs that came one after the other, in each kind of place.
#[tokio::test(start_paused = true)]
async fn each_has_its_own_moment_of_acceptance() {
    for (weighed, cancel, in_flight) in [
        (false, false, 1),
        (true, false, 1),
        (false, true, 1),
        (true, true, 1),
        (false, false, 2),
    ] {
        let (gate, reports) = (Gate::closed(), Reports::default());
        let limit = if weighed { 3 } else { usize::MAX };
        let batcher = run(slow(&gate, &reports, Duration::ZERO)
            .max_batch_weight(limit, |_| 1)
            .cancel_on_drop(cancel)
            .max_in_flight(in_flight));
        let in_hand = u32::try_from(in_flight).expect("few") * 3;
        let mut handles = submit(&batcher, 0..in_hand);
        for job in in_hand..in_hand + 10 {
            sleep(millis(100)).await;
            handles.extend(submit(&batcher, [job]));
        }
        // Accepted at 100 to 1000; the first of each batch at 100, 400, 700, 1000.
        sleep(millis(500)).await;
        gate.pass(99);
        results(handles).await;
        let first = gate.times().len() - 4;
        let times = &gate.times()[first..];
        let expected = [1_500, 1_500, 1_500, 2_000].map(millis);
        assert_eq!(times, expected, "{weighed} {cancel} {in_flight}");
        let waited = &reports.waits()[first..];
        assert_eq!(waited, [1_400, 1_100, 800, 1_000].map(millis));
    }
}

/// A waiter is accepted when room is made, and its clock starts then.
#[tokio::test(start_paused = true)]
async fn a_waiter_is_timed_from_its_acceptance() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(slow(&gate, &reports, Duration::ZERO).queue_capacity(3));
    let mut handles = submit(&batcher, 0..3);
    settle().await;
    handles.extend(submit(&batcher, 3..6));
    settle().await;
    // Three in the queue, and one waiter until the second batch is cut.
    handles.extend(submit(&batcher, 6..10));
    sleep(secs(5)).await;
    gate.pass(1);
    sleep(secs(5)).await;
    gate.pass(9);
    results(handles).await;
    let times: Vec<_> = gate.times().iter().map(Duration::as_secs).collect();
    assert_eq!(times, [0, 5, 10, 10]);
    let waited: Vec<_> = reports.waits().iter().map(Duration::as_secs).collect();
    assert_eq!(waited, [0, 5, 10, 5]);
}

/// A flush behind a long batch does not touch the clocks of those behind it.
#[tokio::test(start_paused = true)]
async fn a_flush_leaves_the_clocks_behind_it_alone() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(slow(&gate, &reports, Duration::ZERO));
    let mut handles = submit(&batcher, 0..4);
    settle().await;
    let flush = tokio::spawn(batcher.flush());
    sleep(millis(299)).await;
    handles.extend(submit(&batcher, [4]));
    sleep(millis(200)).await;
    handles.extend(submit(&batcher, [5]));
    sleep(millis(400)).await;
    gate.pass(9);
    soon(flush).await.expect("no panic");
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3], vec![4, 5]]);
    assert_eq!(gate.times(), [0, 900, 1_300].map(millis));
    assert_eq!(reports.waits(), [0, 900, 1_000].map(millis));
}

/// What the jobs have waited together counts from their acceptance as well.
#[tokio::test(start_paused = true)]
async fn a_cost_is_waited_for_from_acceptance() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(slow(&gate, &reports, Duration::ZERO)
        .max_batch_size(100)
        .interval(Duration::MAX)
        .flush_cost(secs(4)));
    let mut handles = submit(&batcher, [0]);
    sleep(secs(4)).await;
    for job in 1..4 {
        sleep(secs(1)).await;
        handles.extend(submit(&batcher, [job]));
    }
    // They have waited for 2.5, 1.5 and 0.5 s, which is more than a flush costs.
    sleep(millis(500)).await;
    gate.pass(9);
    results(handles).await;
    assert_eq!(gate.times(), [4_000, 7_500].map(millis));
    assert_eq!(reports.waits(), [4_000, 2_500].map(millis));
}

/// A clock that jumps while nothing is polled moves no accept time.
#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_is_the_clock() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(slow(&gate, &reports, Duration::ZERO));
    let handles = submit(&batcher, 0..2);
    settle().await;
    advance(secs(60)).await;
    results(handles).await;
    assert_eq!(gate.times(), [secs(60) + millis(1)]);
    assert_eq!(reports.waits(), [secs(60) + millis(1)]);
}
