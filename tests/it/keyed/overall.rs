//! The limit on accepted jobs of all keys.

use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use microbatch::{BuildError, CancellationToken, JobError, JobHandle, Keyed, TrySubmitError};
use tokio::time::sleep;

use crate::support::{assert_balanced, millis, settle, soon};

/// Nothing is flushed but on request, so every job stays where it is.
fn shut(capacity: usize) -> Keyed<u32, u32, u32> {
    Keyed::builder(|_key, jobs: Vec<u32>| async move { Ok::<_, String>(jobs) })
        .queue_capacity_overall(capacity)
        .options(|options| options.interval(Duration::MAX).max_batch_size(100))
        .build_running(CancellationToken::new())
        .expect("valid")
}

fn submit(keyed: &Keyed<u32, u32, u32>, jobs: std::ops::Range<u32>) -> Vec<JobHandle<u32>> {
    jobs.map(|job| keyed.submit(job, job)).collect()
}

#[tokio::test(start_paused = true)]
async fn beyond_it_submit_waits_and_try_submit_says_full() {
    let keyed = shut(5);
    let mut handles = submit(&keyed, 0..8);
    settle().await;
    let stats = keyed.stats();
    assert_eq!((stats.waiting, stats.queued + stats.pending), (3, 5));
    assert_eq!(keyed.live_keys(), 5, "a key that waits has no loop");
    assert_eq!(
        keyed.try_submit(9, 9).map(drop),
        Err(TrySubmitError::Full(9))
    );
    assert_eq!(
        keyed.try_submit(0, 9).map(drop),
        Err(TrySubmitError::Full(9)),
        "known key"
    );
    assert_eq!(keyed.stats().refused, 2);
    for round in 0..3 {
        keyed.flush().await;
        settle().await;
        if round == 0 {
            assert!(handles[..5].iter().all(JobHandle::is_finished));
            assert!(!handles[5].is_finished());
        }
    }
    let answers = join_all(handles.drain(..)).await;
    assert!(
        answers
            .into_iter()
            .zip(0..)
            .all(|(answer, job)| answer.unwrap() == job)
    );
    let stats = keyed.stats();
    assert_eq!((stats.completed, stats.waiting), (8, 0));
    assert_balanced(stats);
}

#[tokio::test(start_paused = true)]
async fn room_is_given_first_come_first_served_over_all_keys() {
    let keyed = shut(2);
    let _first = submit(&keyed, 0..2);
    settle().await;
    // Of a known key, of a new one, of the known one again.
    let mut waiting = [
        keyed.submit(0, 10),
        keyed.submit(7, 11),
        keyed.submit(0, 12),
    ];
    settle().await;
    for handle in &mut waiting {
        assert!(handle.accepted().now_or_never().is_none());
    }
    keyed.flush().await;
    settle().await;
    let accepted: Vec<_> = waiting
        .iter_mut()
        .map(|handle| handle.accepted().now_or_never().is_some())
        .collect();
    assert_eq!(accepted, [true, true, false]);
    keyed.flush().await;
    settle().await;
    assert!(waiting[2].accepted().now_or_never().is_some());
}

/// A key kept the place of a waiter that had left for its next one, which so overtook
/// the waiters of other keys.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_gives_its_place_to_none_of_its_key() {
    let keyed = shut(2);
    let _first = submit(&keyed, 0..2);
    settle().await;
    let leaves = keyed.submit(0, 10);
    let mut waiting = [
        keyed.submit(1, 11),
        keyed.submit(1, 12),
        keyed.submit(0, 13),
    ];
    settle().await;
    drop(leaves);
    keyed.flush().await;
    settle().await;
    let accepted: Vec<_> = waiting
        .iter_mut()
        .map(|handle| handle.accepted().now_or_never().is_some())
        .collect();
    assert_eq!(accepted, [true, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_own_queue_is_full_leaves_room_for_others() {
    let keyed = Keyed::builder(|_key, jobs: Vec<u32>| async move {
        sleep(millis(100)).await;
        Ok::<_, String>(jobs)
    })
    .queue_capacity_overall(20)
    .options(|options| options.queue_capacity(5).flush_when_idle(true))
    .build_running(CancellationToken::new())
    .expect("valid");
    let flood: Vec<_> = (0..1000).map(|job| keyed.submit(1, job)).collect();
    settle().await;
    let mut other = keyed.submit(2, 0);
    assert_eq!(
        other
            .accepted()
            .now_or_never()
            .map(|accepted| accepted.is_ok()),
        Some(true)
    );
    soon(other).await.expect("it is processed");
    assert!(flood.iter().filter(|handle| handle.is_finished()).count() < 20);
    assert_eq!(soon(join_all(flood)).await.len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_is_dropped_while_it_waits_leaves() {
    let keyed = shut(1);
    let first = submit(&keyed, 0..1);
    settle().await;
    let (second, mut third) = (keyed.submit(2, 2), keyed.submit(3, 3));
    drop(second);
    assert_eq!(keyed.stats().withdrawn_waiting, 1);
    keyed.flush().await;
    settle().await;
    assert!(third.accepted().now_or_never().is_some());
    assert_eq!(keyed.live_keys(), 1);
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_waited_is_withdrawn_like_any_other() {
    let keyed = Keyed::builder(|_key, jobs: Vec<u32>| async move { Ok::<_, String>(jobs) })
        .queue_capacity_overall(1)
        .options(|options| options.interval(Duration::MAX).cancel_on_drop(true))
        .build_running(CancellationToken::new())
        .expect("valid");
    let first = keyed.submit(1, 1);
    settle().await;
    let mut second = keyed.submit(2, 2);
    drop(first);
    settle().await;
    second.accepted().await.expect("there is room");
    drop(second);
    settle().await;
    let stats = keyed.stats();
    assert_eq!((stats.withdrawn, stats.pending + stats.queued), (2, 0));
    assert_balanced(stats);
    settle().await;
    assert_eq!(keyed.live_keys(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_refuses_what_waits() {
    for by_token in [false, true] {
        let cancel = CancellationToken::new();
        let keyed = Keyed::builder(|_key, jobs: Vec<u32>| async move { Ok::<_, String>(jobs) })
            .queue_capacity_overall(1)
            .options(|options| options.interval(Duration::MAX))
            .build_running(cancel.clone())
            .expect("valid");
        let first = keyed.submit(1, 1);
        settle().await;
        let (second, mut third) = (keyed.submit(2, 2), keyed.submit(3, 3));
        if by_token {
            cancel.cancel();
        } else {
            soon(keyed.shutdown()).await.expect("it drains");
        }
        assert_eq!(soon(first).await.expect("it was accepted"), 1);
        assert!(matches!(soon(second).await, Err(JobError::Closed)));
        assert!(matches!(
            soon(third.accepted()).await,
            Err(JobError::Closed)
        ));
        soon(keyed.shutdown()).await.expect("it has drained");
        assert_balanced(keyed.stats());
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_new_keys_has_no_more_loops_than_there_is_room() {
    let keyed = shut(10_000);
    let mut handles = submit(&keyed, 0..100_000);
    settle().await;
    assert_eq!(keyed.live_keys(), 10_000);
    assert_eq!(keyed.stats().waiting, 90_000);
    let refused = (100_000..200_000).filter(|job| keyed.try_submit(*job, *job).is_err());
    assert_eq!(refused.count(), 100_000);
    assert_eq!(keyed.live_keys(), 10_000);
    handles.truncate(10_000);
    keyed.flush().await;
    for handle in handles {
        soon(handle).await.expect("it is processed");
    }
    assert_eq!(keyed.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn keys_come_and_go_under_the_limit_and_nothing_is_lost() {
    let keyed = Keyed::builder(|_key, jobs: Vec<u32>| async move {
        sleep(millis(3)).await;
        Ok::<_, String>(jobs)
    })
    .queue_capacity_overall(7)
    .options(|options| options.interval(millis(2)).queue_capacity(2))
    .build_running(CancellationToken::new())
    .expect("valid");
    let handles: Vec<_> = (0..5000)
        .map(|job| keyed.submit(job * 7 % 31, job))
        .collect();
    let answers = soon(join_all(handles)).await;
    assert!(
        answers
            .into_iter()
            .zip(0..)
            .all(|(answer, job)| answer.unwrap() == job)
    );
    settle().await;
    let stats = keyed.stats();
    assert_eq!((stats.completed, stats.waiting), (5000, 0));
    assert_balanced(stats);
    assert_eq!(keyed.live_keys(), 0);
}

#[test]
fn zero_is_refused_by_name() {
    let runtime = crate::support::bare_runtime();
    let _guard = runtime.enter();
    let built = Keyed::builder(|_: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
        .queue_capacity_overall(0)
        .build_running(CancellationToken::new());
    assert_eq!(
        built.map(drop),
        Err(BuildError::Zero("queue_capacity_overall"))
    );
}
