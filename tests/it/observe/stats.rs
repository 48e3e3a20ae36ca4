//! Counters and gauges.

use microbatch::{CancellationToken, MicroBatch, Stats};

use crate::queue::crowded;
use crate::support::{
    Fate, Gate, answers, assert_balanced, decide, idle, poll_once, run, settle, soon, submit,
};

#[test]
fn everything_starts_at_zero() {
    let batcher = idle(MicroBatch::builder(Gate::open()));
    assert_eq!(batcher.stats(), Stats::default());
}

#[tokio::test(start_paused = true)]
async fn every_job_is_counted_where_it_is() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let mut waiting = submit(&batcher, 3..5);
    assert!(
        waiting
            .iter_mut()
            .all(|handle| poll_once(handle).is_pending())
    );
    let stats = batcher.stats();
    assert_eq!(stats.accepted, 3);
    assert_eq!(
        (stats.processing, stats.in_flight, stats.batches),
        (1, 1, 1)
    );
    assert_eq!((stats.pending, stats.queued, stats.waiting), (1, 1, 2));
    gate.pass(1);
    settle().await;
    let stats = batcher.stats();
    assert_eq!((stats.completed, stats.batches), (1, 2));
    assert_eq!((stats.accepted, stats.queued, stats.waiting), (4, 1, 1));
    gate.pass(9);
    answers(handles).await;
    answers(waiting).await;
    let stats = batcher.stats();
    assert_eq!((stats.accepted, stats.completed, stats.batches), (5, 5, 5));
    assert_eq!((stats.waiting, stats.in_flight), (0, 0));
    assert_balanced(stats);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_counts_as_waiting_and_not_as_accepted() {
    let gate = Gate::closed();
    let (batcher, _handles) = crowded(&gate).await;
    let mut reservation = Box::pin(batcher.reserve());
    assert!(poll_once(&mut reservation).is_pending());
    assert_eq!((batcher.stats().waiting, batcher.stats().accepted), (1, 3));
    gate.pass(1);
    let permit = soon(reservation).await.expect("room");
    assert_eq!((batcher.stats().waiting, batcher.stats().accepted), (0, 3));
    let _handle = permit.submit(3);
    assert_eq!(batcher.stats().accepted, 4);
}

#[tokio::test(start_paused = true)]
async fn a_caller_finds_its_job_counted() {
    let batcher = run(MicroBatch::builder(decide).max_batch_size(1));
    for (turn, fate) in (1..).zip([Fate::Answer(0), Fate::Fail(0), Fate::Panic, Fate::Long]) {
        let _ = soon(batcher.submit(fate)).await;
        let stats = batcher.stats();
        assert_eq!((stats.completed, stats.failed), (1, turn - 1));
        assert_eq!((stats.processing, stats.in_flight), (0, 0));
    }
}

/// Every kind of ending, with a check of the counters after every step.
#[tokio::test(start_paused = true)]
async fn the_counters_agree_at_every_moment() {
    let batcher = idle(
        MicroBatch::builder(decide)
            .max_batch_size(2)
            .max_in_flight(2)
            .queue_capacity(5)
            .cancel_on_drop(true),
    );
    let check = || {
        let stats = batcher.stats();
        assert_balanced(stats);
        stats
    };
    let mut handles = Vec::new();
    for step in 0..200 {
        let fate = match step % 7 {
            3 => Fate::Fail(step),
            4 => Fate::Panic,
            5 => Fate::Short,
            6 if step > 150 => Fate::Hang,
            _ => Fate::Answer(step),
        };
        let mut handle = batcher.submit(fate);
        let _ = poll_once(&mut handle);
        check();
        match step % 5 {
            0 => drop(handle),
            _ => handles.push(handle),
        }
        check();
        match step {
            20 => drop(tokio::spawn(batcher.start(CancellationToken::new()))),
            60 => soon(batcher.flush()).await,
            _ if step % 3 == 0 => tokio::task::yield_now().await,
            _ if step % 11 == 0 => settle().await,
            _ => {}
        }
        check();
    }
    assert!(soon(batcher.shutdown()).await.is_err(), "some batches hang");
    check();
    answers(handles).await;
    let stats = check();
    let (left, waiting) = (
        stats.queued + stats.pending + stats.processing,
        stats.waiting,
    );
    assert_eq!((left, waiting, stats.in_flight), (0, 0, 0));
    let kinds = [
        stats.completed,
        stats.failed,
        stats.withdrawn,
        stats.abandoned,
    ];
    assert!(kinds.iter().all(|count| *count > 0), "{stats:?}");
}
