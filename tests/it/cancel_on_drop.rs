//! Jobs whose callers have gone, under `cancel_on_drop`.

use std::sync::Arc;
use std::time::Duration;

use microbatch::{BatchProcessor, FlushReason, JobHandle, MicroBatch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::{
    Gate, Reports, assert_balanced, cancelling, millis, results, run, secs, settle, soon, submit,
};

#[tokio::test(start_paused = true)]
async fn a_job_whose_handle_is_dropped_is_left_out_and_its_neighbours_are_not() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(cancelling(&gate)
        .max_batch_weight(100, |_| 7)
        .on_batch(reports.hook()));
    let mut handles = submit(&batcher, 0..3);
    drop(handles.remove(1));
    assert_eq!(results(handles).await, [0, 2]);
    assert_eq!(gate.batches(), [[0, 2]]);
    let report = &reports.all()[0];
    assert_eq!((report.size, report.weight), (2, 14));
    let stats = batcher.stats();
    assert_eq!(
        (stats.accepted, stats.completed, stats.withdrawn),
        (3, 2, 1)
    );
    assert_balanced(stats);
}

#[tokio::test(start_paused = true)]
async fn without_it_the_job_is_processed() {
    let gate = Gate::open();
    let batcher = run(cancelling(&gate).cancel_on_drop(false));
    let mut handles = submit(&batcher, 0..3);
    drop(handles.remove(1));
    assert_eq!(results(handles).await, [0, 2]);
    assert_eq!(gate.batches(), [[0, 1, 2]]);
    assert_eq!(batcher.stats().withdrawn, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_which_nothing_is_left_is_none() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(cancelling(&gate).on_batch(reports.hook()));
    drop(submit(&batcher, 0..7));
    soon(batcher.flush()).await;
    assert!(gate.batches().is_empty() && reports.all().is_empty());
    let stats = batcher.stats();
    assert_eq!((stats.batches, stats.withdrawn, stats.in_flight), (0, 7, 0));
    assert_balanced(stats);
    assert_eq!(results(submit(&batcher, 7..10)).await, [7, 8, 9]);
}

#[tokio::test(start_paused = true)]
async fn withdrawn_jobs_leave_the_loop_as_it_was() {
    let gate = Gate::open();
    let batcher = run(cancelling(&gate));
    drop(submit(&batcher, 0..2));
    sleep(secs(5)).await;
    assert_eq!(batcher.stats().withdrawn, 2);
    results(submit(&batcher, [2])).await;
    assert_eq!(gate.times(), [secs(6)], "with a clock of its own");
}

#[tokio::test(start_paused = true)]
async fn a_job_in_the_processors_hands_is_not_withdrawn() {
    let gate = Gate::closed();
    let batcher = run(cancelling(&gate));
    let handles = submit(&batcher, 0..3);
    settle().await;
    drop(handles);
    gate.pass(1);
    soon(batcher.flush()).await;
    let stats = batcher.stats();
    assert_eq!((stats.completed, stats.withdrawn), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_is_withdrawn_wherever_it_waits() {
    let gate = Gate::closed();
    let batcher = run(cancelling(&gate).queue_capacity(3));
    let mut handles = submit(&batcher, 0..3);
    settle().await;
    let pending = submit(&batcher, 3..6);
    settle().await;
    let queued = submit(&batcher, 6..9);
    let waiting = batcher.submit(9);
    assert_eq!(batcher.stats().waiting, 1);
    drop((pending, waiting, queued));
    gate.pass(9);
    handles.extend(submit(&batcher, [10]));
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![10]]);
    let stats = batcher.stats();
    assert_eq!((stats.accepted, stats.withdrawn), (10, 6));
    assert_eq!(stats.withdrawn_waiting, 1, "one was never accepted");
    assert_balanced(stats);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_submit_all_withdraws_all_its_jobs() {
    let gate = Gate::open();
    let batcher = run(cancelling(&gate)
        .interval(Duration::MAX)
        .max_batch_size(100));
    let bulk = batcher.submit_all(0..50);
    assert!(timeout(secs(1), bulk).await.is_err());
    soon(batcher.flush()).await;
    assert!(gate.batches().is_empty());
    assert_eq!(batcher.stats().withdrawn, 50);
}

#[tokio::test(start_paused = true)]
async fn jobs_are_withdrawn_at_a_stop_too() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(cancelling(&gate).on_batch(reports.hook()));
    let mut handles = submit(&batcher, 0..2);
    drop(handles.remove(0));
    soon(batcher.shutdown()).await.expect("drains");
    assert_eq!(results(handles).await, [1]);
    assert_eq!(gate.batches(), [[1]]);
    assert_eq!(reports.reasons(), [FlushReason::Shutdown]);
}

/// Withdrawn jobs were left out after the cut, and no other jobs put in: ten batches
/// of one.
#[tokio::test(start_paused = true)]
async fn a_batch_is_cut_from_jobs_that_are_not_withdrawn() {
    for (rounds, size) in [(10, 10), (100, 50)] {
        let (gate, reports) = (Gate::open(), Reports::default());
        let batcher = run(cancelling(&gate)
            .max_batch_size(size)
            .interval(secs(3600))
            .on_batch(reports.hook()));
        let mut kept = Vec::new();
        for round in 0..rounds {
            let mut handles = submit(&batcher, (0..10).map(|job| round * 10 + job));
            kept.push(handles.pop().expect("ten"));
            drop(handles);
            if round % 3 == 0 {
                settle().await;
            }
        }
        settle().await;
        let batches = gate.batches();
        assert_eq!(batches.len(), rounds as usize / size, "{batches:?}");
        assert!(batches.iter().all(|batch| batch.len() == size));
        let stats = batcher.stats();
        assert_eq!(stats.withdrawn, u64::from(rounds) * 9);
        assert_balanced(stats);
    }
}

/// A queue full of withdrawn jobs refused others as `Full`, and kept their data.
#[tokio::test(start_paused = true)]
async fn withdrawn_jobs_leave_room_and_no_memory() {
    let data = Arc::new(());
    let gate = Gate::closed();
    let processor = gate.clone();
    let process = move |jobs: Vec<Arc<()>>| {
        let gate = processor.clone();
        async move { gate.process(vec![0; jobs.len()]).await }
    };
    let batcher = run(MicroBatch::builder(process)
        .max_batch_size(2)
        .queue_capacity(50)
        .cancel_on_drop(true));
    let in_hand: Vec<_> = (0..2).map(|_| batcher.submit(Arc::clone(&data))).collect();
    settle().await;
    for _ in 0..100 {
        let handles: Vec<_> = (0..100)
            .map(|_| batcher.submit(Arc::clone(&data)))
            .collect();
        settle().await;
        drop(handles);
        let handles: Vec<_> = (0..50)
            .filter_map(|_| batcher.try_submit(Arc::clone(&data)).ok())
            .collect();
        assert_eq!(handles.len(), 50, "there is room");
        drop(handles);
        settle().await;
        assert_eq!(Arc::strong_count(&data), 3);
    }
    gate.pass(1);
    settle().await;
    assert!(in_hand.iter().all(JobHandle::is_finished));
    let stats = batcher.stats();
    assert_eq!((stats.queued, stats.pending, stats.waiting), (0, 0, 0));
    assert_balanced(stats);
}

/// Arrivals at twice the capacity, each caller with patience for a service and a
/// half: batches were of withdrawn jobs, with 1.1 others each. This is how a service
/// that is slow for a minute stays down for an hour.
#[tokio::test(start_paused = true)]
async fn an_overloaded_processor_works_for_those_who_still_wait() {
    const SIZE: usize = 10;
    let reports = Reports::default();
    let batcher = MicroBatch::builder(|jobs: Vec<u32>| async move {
        sleep(millis(100)).await;
        Ok::<_, String>(jobs)
    });
    let batcher = run(batcher
        .max_batch_size(SIZE)
        .interval(millis(1000))
        .cancel_on_drop(true)
        .on_batch(reports.hook()));
    let mut callers = JoinSet::new();
    for job in 0..4000 {
        // Ten are served in the time in which twenty come.
        let handle = batcher.submit(job);
        callers.spawn(async move { timeout(millis(150), handle).await.is_ok() });
        sleep(millis(5)).await;
    }
    callers.join_all().await;
    // Those who still wait are more than a batch at every moment.
    let full = (0..)
        .map(|cut| 45 + cut * 100)
        .take_while(|at| *at < 4000 * 5)
        .count();
    let stats = batcher.stats();
    let processed = usize::try_from(stats.completed).unwrap();
    assert!(
        processed >= full * SIZE * 95 / 100,
        "{processed} of {}",
        full * SIZE
    );
    assert_eq!(stats.completed + stats.withdrawn, 4000);
    assert_balanced(stats);
}
