//! Permits: room reserved for a job to come.

use std::time::Duration;

use microbatch::{JobError, MicroBatch};
use tokio::time::timeout;

use super::crowded;
use crate::support::{Gate, idle, results, run, secs, settle, soon, submit};

#[tokio::test(start_paused = true)]
async fn a_permit_holds_room_until_it_is_used() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(2));
    let permit = soon(batcher.reserve()).await.expect("room");
    let _first = batcher.submit(0);
    assert!(
        batcher.try_submit(1).is_err(),
        "the rest of the room is reserved"
    );
    let _second = permit.submit(1);
    let stats = batcher.stats();
    assert_eq!((stats.accepted, stats.queued), (2, 2));
    assert!(batcher.try_submit(2).is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unused_permit_gives_its_room_back() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(1));
    for _ in 0..3 {
        drop(soon(batcher.reserve()).await.expect("room"));
    }
    assert!(batcher.try_submit(0).is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_unused_permit_gives_its_room_to_the_next_waiter() {
    let batcher = run(MicroBatch::builder(Gate::open()).queue_capacity(1));
    let permit = soon(batcher.reserve()).await.expect("room");
    let next = tokio::spawn(batcher.submit(1));
    let last = tokio::spawn({
        let batcher = batcher.clone();
        async move { batcher.reserve().await.map(drop) }
    });
    settle().await;
    assert_eq!(batcher.stats().waiting, 2);
    drop(permit);
    soon(last).await.expect("no panic").expect("room");
    assert_eq!(soon(next).await.expect("no panic").expect("succeeds"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_reservation_leaves_the_waiters() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    assert!(timeout(secs(1), batcher.reserve()).await.is_err());
    assert_eq!(batcher.stats().waiting, 0);
    gate.pass(9);
    results(handles).await;
    assert!(batcher.try_submit(9).is_ok(), "no room is held");
}

/// The room falls free while the future exists and is not polled again.
#[tokio::test(start_paused = true)]
async fn room_granted_to_a_reservation_that_is_dropped_is_not_lost() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let mut reservation = Box::pin(batcher.reserve());
    assert!(crate::support::poll_once(&mut reservation).is_pending());
    gate.pass(9);
    results(handles).await;
    assert!(batcher.try_submit(9).is_err(), "reserved by now");
    drop(reservation);
    assert!(batcher.try_submit(9).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_permit_of_a_closed_batcher_gets_its_job_refused() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let permit = soon(batcher.reserve()).await.expect("room");
    soon(batcher.shutdown())
        .await
        .expect("a permit holds up no stop");
    assert!(matches!(
        soon(permit.submit(1)).await,
        Err(JobError::Closed)
    ));
    assert_eq!(batcher.stats().accepted, 0);
    assert!(soon(batcher.reserve()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn permits_may_take_all_room_at_once() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .queue_capacity(4)
        .max_batch_size(4));
    let mut permits = Vec::new();
    for _ in 0..4 {
        permits.push(soon(batcher.reserve()).await.expect("room"));
    }
    assert!(batcher.try_submit(9).is_err());
    let jobs = permits.into_iter().zip(0..);
    let handles = jobs.map(|(permit, job)| permit.submit(job)).collect();
    assert_eq!(results(handles).await, [0, 1, 2, 3]);
    assert_eq!(gate.times(), [Duration::ZERO]);
}

/// What is queued is all that can be queued while the rest is reserved, so the
/// worker must take it up rather than wait for more.
#[tokio::test(start_paused = true)]
async fn reservations_do_not_starve_a_batch() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .queue_capacity(2)
        .max_batch_size(4)
        .interval(Duration::MAX));
    let mut handles = submit(&batcher, [0]);
    settle().await;
    handles.extend(submit(&batcher, [1]));
    let permit = soon(batcher.reserve()).await.expect("room");
    let another = soon(batcher.reserve()).await.expect("room is made");
    handles.push(permit.submit(2));
    handles.push(another.submit(3));
    results(handles).await;
    assert_eq!(gate.batches(), [[0, 1, 2, 3]]);
}

/// The same the other way round: the room is reserved while the worker is
/// already parked over an empty queue, and then a job takes what is left of it.
#[tokio::test(start_paused = true)]
async fn a_job_beside_a_reservation_does_not_starve_a_batch() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .queue_capacity(2)
        .max_batch_size(4)
        .interval(Duration::MAX));
    let mut handles = submit(&batcher, [0]);
    settle().await;
    let permit = soon(batcher.reserve()).await.expect("room");
    handles.extend(submit(&batcher, [1]));
    settle().await;
    handles.push(batcher.try_submit(2).expect("room is made"));
    settle().await;
    handles.push(permit.submit(3));
    results(handles).await;
    assert_eq!(gate.batches(), [[0, 1, 2, 3]]);
}

/// And once more: the room was reserved before the worker parked.
#[tokio::test(start_paused = true)]
async fn a_job_beside_an_old_reservation_does_not_starve_a_batch() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .queue_capacity(2)
        .max_batch_size(4)
        .interval(Duration::MAX));
    let permit = soon(batcher.reserve()).await.expect("room");
    let mut handles = submit(&batcher, [0]);
    settle().await;
    handles.extend(submit(&batcher, [1]));
    settle().await;
    handles.push(batcher.try_submit(2).expect("room is made"));
    settle().await;
    handles.push(permit.submit(3));
    results(handles).await;
    assert_eq!(gate.batches(), [[0, 1, 2, 3]]);
}
