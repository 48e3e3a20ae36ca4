//! The waiters for room in the queue.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use microbatch::{CancellationToken, JobError, MicroBatch};
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::crowded;
use crate::support::{
    Counted, Gate, idle, lock, owning, poll_once, results, run, secs, settle, soon, submit,
};
use crate::watch::Watch;

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_order_whatever_they_wait_with() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    for turn in 0..9 {
        let (batcher, order) = (batcher.clone(), Arc::clone(&order));
        tokio::spawn(async move {
            let handle = match turn % 3 {
                0 => batcher.submit(turn),
                1 => {
                    let mut handle = batcher.submit(turn);
                    handle.accepted().await.expect("room");
                    handle
                }
                _ => batcher.reserve().await.expect("room").submit(turn),
            };
            handle.await.expect("succeeds");
            lock(&order).push(turn);
        });
        settle().await;
    }
    assert_eq!(batcher.stats().waiting, 9);
    for _ in 0..12 {
        gate.pass(1);
        settle().await;
    }
    results(handles).await;
    assert!(lock(&order).iter().copied().eq(0..9), "{order:?}");
    assert_eq!(gate.batches().concat()[3..], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test(start_paused = true)]
async fn no_job_overtakes_a_waiter() {
    let gate = Gate::closed();
    let (batcher, _handles) = crowded(&gate).await;
    let mut waiting = submit(&batcher, 10..13);
    assert!(
        waiting
            .iter_mut()
            .all(|handle| poll_once(handle).is_pending())
    );
    for left in [2, 1, 0] {
        gate.pass(1);
        settle().await;
        // The room that fell free is gone already.
        assert!(batcher.try_submit(99).is_err());
        assert_eq!(batcher.stats().waiting, left);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_a_waiting_handle_withdraws_its_job() {
    let gate = Gate::closed();
    let (batcher, mut handles) = crowded(&gate).await;
    let mut waiting = submit(&batcher, 10..15);
    assert!(
        waiting
            .iter_mut()
            .all(|handle| poll_once(handle).is_pending())
    );
    // From the front, the middle and the end.
    for at in [4, 2, 0] {
        drop(waiting.remove(at));
    }
    assert_eq!(batcher.stats().waiting, 2);
    gate.pass(9);
    handles.extend(waiting);
    results(handles).await;
    assert_eq!(gate.batches(), [[0], [1], [2], [11], [13]]);
    assert_eq!(batcher.stats().accepted, 5);
}

#[tokio::test(start_paused = true)]
async fn a_handle_stays_a_waiter_when_its_future_is_dropped() {
    let gate = Gate::closed();
    let (batcher, mut handles) = crowded(&gate).await;
    let mut first = batcher.submit(10);
    // The waiting future is dropped three times, by timeouts.
    assert!(timeout(secs(1), first.accepted()).await.is_err());
    let mut second = batcher.submit(11);
    assert!(poll_once(&mut second).is_pending());
    assert!(timeout(secs(1), &mut first).await.is_err());
    assert!(timeout(secs(1), first.accepted()).await.is_err());
    assert_eq!(batcher.stats().waiting, 2);
    gate.pass(9);
    handles.extend([first, second]);
    results(handles).await;
    assert_eq!(gate.batches().concat()[3..], [10, 11]);
}

#[tokio::test(start_paused = true)]
async fn a_job_accepted_while_its_handle_is_not_polled_is_processed() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let mut handle = batcher.submit(10);
    assert!(poll_once(&mut handle).is_pending());
    gate.pass(1);
    settle().await;
    assert_eq!(batcher.stats().accepted, 4);
    // Too late to withdraw.
    drop(handle);
    gate.pass(9);
    results(handles).await;
    soon(batcher.flush()).await;
    assert_eq!(gate.batches().concat()[3..], [10]);
}

/// The next waiter may get the entry that an accepted job has left.
#[tokio::test(start_paused = true)]
async fn an_accepted_job_is_not_taken_for_the_waiter_in_its_entry() {
    let gate = Gate::closed();
    let (batcher, mut handles) = crowded(&gate).await;
    let (mut dropped, mut asked) = (batcher.submit(10), batcher.submit(11));
    for handle in [&mut dropped, &mut asked] {
        assert!(poll_once(handle).is_pending());
        gate.pass(1);
        settle().await;
    }
    let mut waiting = submit(&batcher, 12..15);
    assert!(
        waiting
            .iter_mut()
            .all(|handle| poll_once(handle).is_pending())
    );
    drop(dropped);
    soon(asked.accepted()).await.expect("accepted before");
    assert_eq!(batcher.stats().waiting, 3);
    gate.pass(9);
    handles.push(asked);
    handles.extend(waiting);
    results(handles).await;
    assert_eq!(gate.batches().concat()[3..], [10, 11, 12, 13, 14]);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_handle_may_move_to_another_task() {
    let gate = Gate::closed();
    let (batcher, _handles) = crowded(&gate).await;
    let mut handle = batcher.submit(10);
    let accepted = Box::pin(handle.accepted());
    assert!(timeout(secs(1), accepted).await.is_err());
    let task = tokio::spawn(async move {
        handle.accepted().await.expect("room");
        handle.await
    });
    settle().await;
    gate.pass(9);
    assert_eq!(soon(task).await.expect("no panic").expect("succeeds"), 10);
}

#[tokio::test(start_paused = true)]
async fn closing_refuses_all_waiters() {
    let gate = Gate::closed();
    let (batcher, mut handles) = crowded(&gate).await;
    let mut awaited = batcher.submit(10);
    assert!(poll_once(&mut awaited).is_pending());
    let accepting = tokio::spawn({
        let mut handle = batcher.submit(11);
        async move { handle.accepted().await }
    });
    let reserving = tokio::spawn({
        let batcher = batcher.clone();
        async move { batcher.reserve().await.map(drop) }
    });
    settle().await;
    assert_eq!(batcher.stats().waiting, 3);
    let stop = tokio::spawn(batcher.shutdown());
    assert!(matches!(soon(awaited).await, Err(JobError::Closed)));
    let accepted = soon(accepting).await.expect("no panic");
    assert!(matches!(accepted, Err(JobError::Closed)));
    assert!(soon(reserving).await.expect("no panic").is_err());
    assert_eq!(batcher.stats().waiting, 0);
    gate.pass(9);
    soon(stop).await.expect("no panic").expect("drains");
    handles.truncate(3);
    results(handles).await;
    assert_eq!(gate.batches(), [[0], [1], [2]]);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_batcher_refuses_all_waiters() {
    let gate = Gate::closed();
    let (batcher, handles) = crowded(&gate).await;
    let mut waiting = batcher.submit(10);
    assert!(poll_once(&mut waiting).is_pending());
    drop(batcher);
    assert!(matches!(soon(waiting).await, Err(JobError::Closed)));
    gate.pass(9);
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn waiters_from_before_the_start_are_served_after_it() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(1));
    let handles = submit(&batcher, 0..20);
    let served = tokio::spawn(results(handles));
    settle().await;
    assert_eq!(batcher.stats().queued, 1);
    tokio::spawn(batcher.start(CancellationToken::new()));
    assert!(soon(served).await.expect("no panic").into_iter().eq(0..20));
}

#[tokio::test(start_paused = true)]
async fn thousands_of_waiters_that_leave_leave_nothing_behind() {
    let gate = Gate::closed();
    let held = Arc::new(());
    let batcher = run(MicroBatch::builder({
        let gate = gate.clone();
        move |jobs: Vec<(u32, Arc<()>)>| {
            let gate = gate.clone();
            async move {
                let jobs = jobs.into_iter().map(|(job, _)| job).collect();
                microbatch::BatchProcessor::process(&gate, jobs).await
            }
        }
    })
    .max_batch_size(1)
    .queue_capacity(1));
    let job = |number| (number, Arc::clone(&held));
    let mut handles = Vec::new();
    for number in 0..3 {
        handles.push(batcher.submit(job(number)));
        settle().await;
    }
    // A few that stay between many that leave, in no particular order.
    for round in 1..6 {
        let mut waiting = submit(&batcher, (0..2_000).map(job));
        assert!(
            waiting
                .iter_mut()
                .all(|handle| poll_once(handle).is_pending())
        );
        let mut patient = batcher.submit(job(100 + round));
        assert!(poll_once(&mut patient).is_pending());
        let mut handles_left: Vec<_> = waiting.into_iter().map(Some).collect();
        for turn in 0..2_000 {
            handles_left[turn * 7 % 2_000] = None;
        }
        handles.push(patient);
    }
    assert_eq!(batcher.stats().waiting, 5);
    assert_eq!(
        Arc::strong_count(&held),
        1 + 2 + 5,
        "two accepted and not yet processed"
    );
    gate.pass(99);
    results(handles).await;
    assert_eq!(gate.batches().concat(), [0, 1, 2, 101, 102, 103, 104, 105]);
    assert_eq!(Arc::strong_count(&held), 1);
}

/// A waiter is woken when the result is there, and not for the room in between.
#[tokio::test(start_paused = true)]
async fn waiting_for_room_costs_a_caller_no_wake_up_of_its_own() {
    let batcher = run(MicroBatch::builder(Gate::open())
        .max_batch_size(10)
        .queue_capacity(10)
        .interval(Duration::MAX));
    let tasks: Vec<_> = submit(&batcher, 0..1_000)
        .into_iter()
        .map(|handle| {
            let (handle, polls) = Counted::new(handle);
            (tokio::spawn(handle), polls)
        })
        .collect();
    for (task, polls) in tasks {
        soon(task).await.expect("no panic").expect("succeeds");
        assert!(polls.get() <= 2);
    }
}

/// Polls it in one task, of which nothing is left but the waker, and then in
/// another.
fn poll_twice<F: Future>(future: F, first: Waker) {
    let mut future = pin!(future);
    for waker in [first, Waker::noop().clone()] {
        assert!(
            future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
    }
}

/// A waker that was replaced was dropped under the lock of the queue, and dropping
/// what it was the last of took the same lock.
#[test]
fn a_waiter_may_be_polled_by_another_task() {
    let watch = Watch::start();
    watch.at("a waker dropped under the lock of the queue".to_owned());
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(1));
    let _queued = batcher.submit(0);
    let owning_a_waiter = || {
        let mut handle = batcher.submit(1);
        assert!(poll_once(&mut handle).is_pending());
        owning(handle)
    };
    poll_twice(batcher.submit(2).accepted(), owning_a_waiter());
    poll_twice(batcher.reserve(), owning_a_waiter());
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let _guard = runtime.enter();
    let batcher = idle(
        MicroBatch::builder(Gate::open())
            .queue_capacity(1)
            .interval(Duration::MAX),
    );
    let permit = pin!(batcher.reserve()).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Ok(_permit)) = permit else {
        panic!("there is room");
    };
    let mut handle = batcher.submit(1);
    assert!(poll_once(&mut handle).is_pending());
    poll_twice(batcher.start(CancellationToken::new()), owning(handle));
    assert_eq!(batcher.stats().waiting, 0);
}
