//! `settings` and `reconfigure`. Each wake-up that a change needs has a test: a worker
//! that slept through the change would wait for ever, and the test would fail.

use std::time::Duration;

use microbatch::{BuildError, FlushReason, MicroBatch, ReconfigureError, Settings};
use tokio::time::{Instant, sleep};

use crate::support::{Gate, Reports, idle, millis, results, run, secs, settle, soon, submit};

const NEVER: Duration = Duration::MAX;

/// Makes one of the settings zero.
type Zero = fn(&mut Settings);

#[tokio::test(start_paused = true)]
async fn the_settings_are_those_of_the_builder_until_they_are_changed() {
    let batcher = idle(
        MicroBatch::builder(Gate::open())
            .max_batch_size(7)
            .max_batch_weight(70, |job| *job as usize)
            .interval(millis(70))
            .max_in_flight(2)
            .flush_when_idle(true)
            .flush_cost(millis(7)),
    );
    let settings = batcher.settings();
    assert_eq!(
        (settings.max_batch_size, settings.max_batch_weight),
        (7, 70)
    );
    assert_eq!((settings.interval, settings.max_in_flight), (millis(70), 2));
    assert_eq!(settings.flush_cost, Some(millis(7)));
    assert!(settings.flush_when_idle);
    let changed = batcher.reconfigure(|settings| settings.max_batch_size = 8);
    let expected = batcher.settings();
    assert_eq!(changed, Ok(expected));
    assert_eq!(expected.max_batch_size, 8);
    assert_eq!(expected.interval, millis(70));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_all_or_nothing() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let before = batcher.settings();
    let zeros: [(&str, Zero); 4] = [
        ("max_batch_size", |settings| settings.max_batch_size = 0),
        ("max_batch_weight", |settings| settings.max_batch_weight = 0),
        ("interval", |settings| settings.interval = Duration::ZERO),
        ("max_in_flight", |settings| settings.max_in_flight = 0),
    ];
    for (name, zero) in zeros {
        let refused = batcher.reconfigure(|settings| {
            settings.flush_when_idle = true;
            zero(settings);
        });
        let error = ReconfigureError::Invalid(BuildError::Zero(name));
        assert_eq!(refused, Err(error));
        assert_eq!(
            error.to_string(),
            format!("`{name}` must be greater than zero")
        );
        assert_eq!(batcher.settings(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_panics_changes_nothing() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let before = batcher.settings();
    let other = batcher.clone();
    let panicked = tokio::spawn(async move {
        other.reconfigure(|settings| {
            settings.max_batch_size = 9;
            panic!("in the change")
        })
    });
    assert!(panicked.await.expect_err("it panics").is_panic());
    assert_eq!(batcher.settings(), before);
    assert_eq!(batcher.reconfigure(|_| ()), Ok(before));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_micro_batcher_refuses_changes() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    batcher.shutdown().await.expect("nothing to drain");
    let refused = batcher.reconfigure(|settings| settings.max_batch_size = 9);
    assert_eq!(refused, Err(ReconfigureError::Closed));
    assert_eq!(batcher.settings().max_batch_size, 3);
}

#[tokio::test(start_paused = true)]
async fn a_weight_limit_without_weights_stays_as_it_is() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let settings = batcher.reconfigure(|settings| settings.max_batch_weight = 9);
    assert_eq!(settings.map(|now| now.max_batch_weight), Ok(usize::MAX));
}

#[tokio::test(start_paused = true)]
async fn a_cost_of_zero_is_idle_flush() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let now = batcher.reconfigure(|settings| settings.flush_cost = Some(Duration::ZERO));
    let now = now.expect("valid");
    assert_eq!((now.flush_cost, now.flush_when_idle), (None, true));
}

#[tokio::test(start_paused = true)]
async fn changes_before_the_start_hold_from_the_start() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..4);
    batcher
        .reconfigure(|settings| settings.max_batch_size = 2)
        .expect("valid");
    tokio::spawn(batcher.start(Default::default()));
    soon(results(handles)).await;
    assert_eq!(gate.batches(), [vec![0, 1], vec![2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn a_finite_interval_arms_the_timer_of_a_loop_without_one() {
    let batcher = run(MicroBatch::builder(Gate::open()).interval(NEVER));
    let handles = submit(&batcher, [1]);
    sleep(secs(10)).await;
    batcher
        .reconfigure(|settings| settings.interval = secs(15))
        .expect("valid");
    let start = Instant::now();
    soon(results(handles)).await;
    assert_eq!(
        start.elapsed(),
        secs(5),
        "it counts from the job's own arrival"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shorter_interval_that_is_over_flushes_at_once() {
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(Gate::open())
        .interval(NEVER)
        .on_batch(reports.hook()));
    let handles = submit(&batcher, [1]);
    sleep(secs(10)).await;
    batcher
        .reconfigure(|settings| settings.interval = secs(1))
        .expect("valid");
    let start = Instant::now();
    soon(results(handles)).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(reports.all()[0].reason, FlushReason::Interval);
    assert_eq!(reports.all()[0].waited, secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_longer_interval_puts_the_flush_off() {
    let batcher = run(MicroBatch::builder(Gate::open()).interval(secs(1)));
    let start = Instant::now();
    let handles = submit(&batcher, [1]);
    settle().await;
    batcher
        .reconfigure(|settings| settings.interval = secs(5))
        .expect("valid");
    soon(results(handles)).await;
    assert!(start.elapsed() >= secs(5) && start.elapsed() < secs(6));
}

#[tokio::test(start_paused = true)]
async fn a_smaller_size_wakes_a_loop_that_sleeps_until_there_are_more() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .interval(NEVER));
    let handles = submit(&batcher, 0..10);
    settle().await;
    assert!(gate.batches().is_empty());
    batcher
        .reconfigure(|settings| settings.max_batch_size = 5)
        .expect("valid");
    soon(results(handles)).await;
    assert_eq!(gate.batches(), [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]);
}

#[tokio::test(start_paused = true)]
async fn what_is_pending_goes_in_batches_of_the_smaller_size() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .interval(secs(1)));
    let first = submit(&batcher, 0..1);
    sleep(secs(2)).await;
    // In flight is a batch of one; pending are more than the new size.
    let handles = submit(&batcher, 1..8);
    sleep(secs(2)).await;
    batcher
        .reconfigure(|settings| settings.max_batch_size = 3)
        .expect("valid");
    gate.pass(10);
    soon(results(first)).await;
    soon(results(handles)).await;
    let sizes: Vec<_> = gate.batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 3, 3, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_larger_size_lets_the_batch_grow() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(secs(1)));
    batcher
        .reconfigure(|settings| settings.max_batch_size = 50)
        .expect("valid");
    soon(results(submit(&batcher, 0..50))).await;
    assert_eq!(gate.batches().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn more_in_flight_starts_what_is_due_although_no_job_comes() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..9);
    settle().await;
    assert_eq!(gate.batches().len(), 1);
    batcher
        .reconfigure(|settings| settings.max_in_flight = 3)
        .expect("valid");
    settle().await;
    assert_eq!(gate.batches().len(), 3);
    gate.pass(3);
    soon(results(handles)).await;
}

#[tokio::test(start_paused = true)]
async fn fewer_in_flight_cancels_nothing() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_in_flight(3));
    let handles = submit(&batcher, 0..12);
    settle().await;
    assert_eq!(gate.batches().len(), 3);
    batcher
        .reconfigure(|settings| settings.max_in_flight = 1)
        .expect("valid");
    gate.pass(2);
    settle().await;
    assert_eq!(gate.batches().len(), 3, "one is still in flight");
    gate.pass(2);
    soon(results(handles)).await;
}

#[tokio::test(start_paused = true)]
async fn idle_flush_that_is_switched_on_flushes_what_waits() {
    let batcher = run(MicroBatch::builder(Gate::open()).interval(NEVER));
    let handles = submit(&batcher, [1]);
    settle().await;
    batcher
        .reconfigure(|settings| settings.flush_when_idle = true)
        .expect("valid");
    soon(results(handles)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_is_set_counts_what_has_been_waited() {
    let batcher = run(MicroBatch::builder(Gate::open())
        .max_batch_size(10)
        .interval(NEVER));
    let mut handles = submit(&batcher, [1]);
    sleep(secs(2)).await;
    handles.extend(submit(&batcher, [2]));
    sleep(secs(1)).await;
    // Together they have waited for 4 s: 3 and 1. The second may count as older.
    batcher
        .reconfigure(|settings| settings.flush_cost = Some(secs(10)))
        .expect("valid");
    let start = Instant::now();
    soon(results(handles)).await;
    assert!(start.elapsed() <= secs(3), "{:?}", start.elapsed());
    assert!(start.elapsed() >= secs(2), "{:?}", start.elapsed());
}

/// The second job is not timed when it comes, because it shares the batch of the first;
/// until the size says otherwise.
#[tokio::test(start_paused = true)]
async fn a_job_that_leaves_the_batch_of_its_neighbour_waits_no_longer_than_the_interval() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(3)
        .interval(secs(10)));
    let mut handles = submit(&batcher, [1]);
    sleep(secs(4)).await;
    handles.extend(submit(&batcher, [2]));
    sleep(secs(4)).await;
    let start = Instant::now();
    batcher
        .reconfigure(|settings| {
            settings.max_batch_size = 1;
            settings.max_in_flight = 2;
        })
        .expect("valid");
    settle().await;
    assert_eq!(gate.batches(), [[1], [2]]);
    gate.pass(2);
    soon(results(handles)).await;
    assert!(start.elapsed() < secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_smaller_weight_wakes_the_loop_and_holds() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .max_batch_weight(100, |job| *job as usize)
        .interval(NEVER));
    let handles = submit(&batcher, [10; 4]);
    settle().await;
    batcher
        .reconfigure(|settings| settings.max_batch_weight = 20)
        .expect("valid");
    soon(results(handles)).await;
    assert_eq!(gate.batches(), [[10, 10], [10, 10]]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_heavier_than_a_new_limit_goes_alone() {
    let gate = Gate::closed();
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .max_batch_weight(100, |job| *job as usize)
        .interval(secs(1))
        .on_batch(reports.hook()));
    let mut handles = submit(&batcher, [100]);
    settle().await;
    handles.extend(submit(&batcher, [1, 60, 2, 3, 70, 80]));
    settle().await;
    batcher
        .reconfigure(|settings| settings.max_batch_weight = 50)
        .expect("valid");
    gate.pass(10);
    soon(results(handles)).await;
    let batches = gate.batches();
    assert_eq!(
        batches,
        [vec![100], vec![1], vec![60], vec![2, 3], vec![70], vec![80]]
    );
    let refused = batcher.submit(51).await;
    assert!(matches!(
        refused,
        Err(microbatch::JobError::TooHeavy {
            weight: 51,
            limit: 50
        })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_heavy_job_goes_alone_from_a_storage_of_ones_own_as_well() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .max_batch_weight(100, |job| *job as usize)
        .interval(secs(1))
        .storage(microbatch::MemoryStorage::new()));
    let mut handles = submit(&batcher, [100]);
    settle().await;
    handles.extend(submit(&batcher, [1, 60, 2, 3]));
    settle().await;
    batcher
        .reconfigure(|settings| settings.max_batch_weight = 50)
        .expect("valid");
    gate.pass(10);
    soon(results(handles)).await;
    assert_eq!(gate.batches(), [vec![100], vec![1], vec![60], vec![2, 3]]);
    assert_eq!(batcher.stats().abandoned, 0);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_changes_while_jobs_flow_lose_nothing() {
    let batcher = run(MicroBatch::builder(Gate::open()).interval(NEVER));
    let mut handles = Vec::new();
    for round in 0..1000 {
        handles.extend(submit(&batcher, round * 5..round * 5 + 5));
        batcher
            .reconfigure(|settings| {
                settings.max_batch_size = 1 + round as usize % 7;
                settings.max_in_flight = 1 + round as usize % 3;
                settings.interval = if round % 2 == 0 { NEVER } else { millis(3) };
            })
            .expect("valid");
        tokio::task::yield_now().await;
    }
    batcher
        .reconfigure(|settings| settings.interval = millis(1))
        .expect("valid");
    assert_eq!(soon(results(handles)).await, (0..5000).collect::<Vec<_>>());
}
