//! Settings, pauses and counters of all keys.

use std::time::Duration;

use microbatch::{BuildError, CancellationToken, Keyed, ReconfigureError};
use tokio::time::sleep;

use crate::support::{assert_balanced, secs, settle, soon};

fn echo() -> Keyed<u32, u32, u32> {
    Keyed::builder(|_key, jobs: Vec<u32>| async move { Ok::<_, String>(jobs) })
        .options(|options| options.interval(Duration::MAX).max_batch_size(10))
        .build_running(CancellationToken::new())
        .expect("valid")
}

#[tokio::test(start_paused = true)]
async fn a_change_holds_for_all_keys_and_those_to_come() {
    let keyed = echo();
    assert_eq!(keyed.settings().max_batch_size, 10);
    let (one, two) = (keyed.submit(1, 1), keyed.submit(2, 2));
    settle().await;
    let now = keyed
        .reconfigure(|settings| settings.interval = secs(1))
        .expect("valid");
    assert_eq!((now.interval, now.max_batch_size), (secs(1), 10));
    assert_eq!(keyed.settings(), now);
    let three = keyed.submit(3, 3);
    for handle in [one, two, three] {
        soon(handle).await.expect("its interval ends");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_refused_by_the_errors_of_the_builder() {
    let keyed = echo();
    let before = keyed.settings();
    let refused = keyed.reconfigure(|settings| settings.max_batch_size = 0);
    assert_eq!(
        refused,
        Err(ReconfigureError::Invalid(BuildError::Zero(
            "max_batch_size"
        )))
    );
    assert_eq!(keyed.settings(), before);
    let without_weights = keyed.reconfigure(|settings| settings.max_batch_weight = 1);
    assert_eq!(
        without_weights.map(|now| now.max_batch_weight),
        Ok(usize::MAX)
    );
    soon(keyed.shutdown()).await.expect("nothing to drain");
    let refused = keyed.reconfigure(|settings| settings.max_batch_size = 1);
    assert_eq!(refused, Err(ReconfigureError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_all_keys_and_those_to_come() {
    let keyed = echo();
    keyed
        .reconfigure(|settings| settings.flush_when_idle = true)
        .expect("valid");
    let first = keyed.submit(1, 1);
    keyed.pause();
    assert!(keyed.is_paused());
    let second = keyed.submit(2, 2);
    sleep(secs(10)).await;
    assert!(!first.is_finished() && !second.is_finished());
    keyed.resume();
    assert!(!keyed.is_paused());
    soon(first).await.expect("it goes");
    soon(second).await.expect("it goes");
    keyed.pause();
    let third = keyed.submit(3, 3);
    soon(keyed.shutdown()).await.expect("a stop ends a pause");
    soon(third).await.expect("it is drained");
    assert!(!keyed.is_paused());
}

#[tokio::test(start_paused = true)]
async fn the_counters_are_those_of_all_keys_that_are_or_were() {
    let keyed = echo();
    let first: Vec<_> = (0..6).map(|job| keyed.submit(job % 2, job)).collect();
    keyed.flush().await;
    for handle in first {
        handle.await.expect("it is flushed");
    }
    settle().await;
    assert_eq!(keyed.live_keys(), 0);
    let _second: Vec<_> = (0..3).map(|job| keyed.submit(7, job)).collect();
    settle().await;
    let stats = keyed.stats();
    assert_eq!((stats.accepted, stats.completed, stats.batches), (9, 6, 2));
    assert_eq!(stats.queued + stats.pending, 3);
    assert_balanced(stats);
    soon(keyed.shutdown()).await.expect("it drains");
    settle().await;
    let stats = keyed.stats();
    assert_eq!((stats.completed, stats.batches, stats.in_flight), (9, 3, 0));
    assert!(keyed.try_submit(1, 1).is_err());
    assert_eq!(keyed.stats().refused, 1);
}
