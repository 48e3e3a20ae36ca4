//! A flush waits for what is owed, and not only for what waits.

use std::pin::pin;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use microbatch::{CancellationToken, Keyed};
use tokio::sync::Notify;

use crate::support::{lock, poll_once, soon};

/// A key leaves as its last batch has been processed, before its callers have
/// their results. A flush in between once found nothing to wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_waits_for_the_results_of_a_key_that_has_left() {
    let entered = Arc::new(Notify::new());
    let (release, released) = mpsc::channel::<()>();
    let (enter, released) = (Arc::clone(&entered), Arc::new(Mutex::new(released)));
    let keyed = Keyed::builder(|_key: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
        .options(move |options| {
            let (enter, released) = (Arc::clone(&enter), Arc::clone(&released));
            options.flush_when_idle(true).on_batch(move |_| {
                enter.notify_one();
                lock(&released).recv().expect("the test goes on");
            })
        })
        .build_running(CancellationToken::new())
        .expect("valid");
    for round in 0..20 {
        let handle = keyed.submit(round, round);
        soon(entered.notified()).await;
        assert_eq!(keyed.live_keys(), 0);
        assert!(!handle.is_finished());
        let mut flush = pin!(keyed.flush());
        assert!(poll_once(&mut flush).is_pending());
        release.send(()).expect("the hook waits");
        soon(flush).await;
        assert!(handle.is_finished());
        assert_eq!(soon(handle).await.expect("processed"), round);
    }
    soon(keyed.shutdown()).await.expect("drains");
    soon(keyed.flush()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flush_among_keys_that_come_and_go_waits_for_all_results() {
    let keyed = Keyed::builder(|_key: u8, jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
        .options(|options| options.flush_when_idle(true))
        .build_running(CancellationToken::new())
        .expect("valid");
    for round in 0..500_u32 {
        let handles: Vec<_> = (0..3).map(|key| keyed.submit(key, key)).collect();
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        soon(keyed.flush()).await;
        assert!(handles.iter().all(microbatch::JobHandle::is_finished));
    }
}
