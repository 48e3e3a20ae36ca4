//! Keys whose code panics, in every place and at every time. The job at hand may
//! fail of it, and no other; no key is lost and no caller panics.
//!
//! Once a key whose hash panicked while its processor panicked aborted the
//! process: it was hashed in a drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use microbatch::{CancellationToken, JobError, Keyed, KeyedProcessor};
use tokio::runtime::Handle;

use super::{Fuse, Key, Place};
use crate::support::{Bomb, LIVE, panic_message, settle, soon};

/// What its processor does with a batch.
#[derive(Clone, Copy)]
enum Then {
    Answers,
    Panics,
}

/// Arms the places that a job names while it is processed.
fn arming(fuse: &Fuse, then: Then) -> impl KeyedProcessor<Key, Option<Place>, ()> + use<> {
    let fuse = fuse.clone();
    move |_key: Key, jobs: Vec<Option<Place>>| {
        let fuse = fuse.clone();
        async move {
            tokio::task::yield_now().await;
            let armed: Vec<_> = jobs.iter().flatten().collect();
            armed.iter().for_each(|place| fuse.arm(**place));
            if let (Then::Panics, false) = (then, armed.is_empty()) {
                panic!("the processor");
            }
            Ok::<_, String>(jobs.iter().map(|_| ()).collect())
        }
    }
}

fn keyed(fuse: &Fuse, then: Then) -> Keyed<Key, Option<Place>, ()> {
    Keyed::new_running(CancellationToken::new(), arming(fuse, then))
}

async fn assert_over(keyed: &Keyed<Key, Option<Place>, ()>) {
    settle().await;
    assert_eq!(keyed.live_keys(), 0);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    soon(keyed.shutdown()).await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn one_at_submit_fails_that_submit() {
    for place in [Place::Hash, Place::Eq] {
        let fuse = Fuse::default();
        let keyed = keyed(&fuse, Then::Answers);
        let before = keyed.submit(fuse.key(1), None);
        fuse.arm(place);
        let failed = [
            keyed.submit(fuse.key(1), None),
            keyed.try_submit(fuse.key(1), None).expect("a handle"),
        ];
        fuse.disarm();
        let after = keyed.submit(fuse.key(1), None);
        assert_eq!(keyed.live_keys(), 1, "{place:?}");
        for handle in failed {
            assert_eq!(panic_message(soon(handle).await), format!("{place:?}"));
        }
        soon(before).await.expect("was there before");
        soon(after).await.expect("came after");
        assert_over(&keyed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_at_the_end_of_a_batch_changes_nothing() {
    for place in [Place::Hash, Place::Eq, Place::Clone, Place::Drop] {
        let fuse = Fuse::default();
        let keyed = keyed(&fuse, Then::Answers);
        for _ in 0..3 {
            let handle = keyed.submit(fuse.key(1), Some(place));
            soon(handle).await.expect("processed");
            settle().await;
            assert_eq!(keyed.live_keys(), 0, "{place:?}");
            fuse.disarm();
        }
        assert_over(&keyed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_while_the_processor_panics_does_not_abort() {
    for place in [Place::Hash, Place::Eq, Place::Clone, Place::Drop] {
        let fuse = Fuse::default();
        let keyed = keyed(&fuse, Then::Panics);
        for _ in 0..3 {
            let handle = keyed.submit(fuse.key(1), Some(place));
            assert_eq!(panic_message(soon(handle).await), "the processor");
            settle().await;
            assert_eq!(keyed.live_keys(), 0, "{place:?}");
            fuse.disarm();
        }
        soon(keyed.submit(fuse.key(1), None)).await.expect("free");
        assert_over(&keyed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_fails_its_batch_alone() {
    let fuse = Fuse::default();
    let keyed = keyed(&fuse, Then::Answers);
    fuse.arm(Place::Clone);
    let failed = keyed.submit(fuse.key(1), None);
    assert_eq!(panic_message(soon(failed).await), "Clone");
    fuse.disarm();
    soon(keyed.submit(fuse.key(1), None)).await.expect("free");
    assert_over(&keyed).await;
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_gives_the_turn_back() {
    let fuse = Fuse::default();
    let keyed = Keyed::builder(arming(&fuse, Then::Answers))
        .max_in_flight_overall(1)
        .options(|options| options.max_batch_size(1).max_in_flight(8))
        .build_running(CancellationToken::new())
        .expect("valid");
    fuse.arm(Place::Clone);
    let failed: Vec<_> = (0..20)
        .map(|n| keyed.submit(fuse.key(n % 2), None))
        .collect();
    for handle in failed {
        assert_eq!(panic_message(soon(handle).await), "Clone");
    }
    fuse.disarm();
    soon(keyed.submit(fuse.key(1), None)).await.expect("free");
    assert_over(&keyed).await;
}

#[tokio::test(start_paused = true)]
async fn a_drop_that_panics_fails_no_other_job() {
    let fuse = Fuse::default();
    let keyed = keyed(&fuse, Then::Answers);
    fuse.arm(Place::Drop);
    let handles: Vec<_> = (0..20)
        .map(|n| keyed.submit(fuse.key(n % 4), None))
        .collect();
    for handle in handles {
        soon(handle).await.expect("processed");
    }
    // With a key that cannot be hashed, and with one that is refused.
    fuse.arm(Place::Hash);
    let failed = keyed.submit(fuse.key(1), None);
    assert_eq!(panic_message(soon(failed).await), "Hash");
    soon(keyed.shutdown()).await.expect("drains");
    let refused = soon(keyed.submit(fuse.key(1), None)).await;
    assert!(matches!(refused, Err(JobError::Closed)));
    keyed.try_submit(fuse.key(1), None).expect_err("closed");
    assert_over(&keyed).await;
}

/// A job is dropped by the submit that fails, and its drop may panic, too.
#[tokio::test(start_paused = true)]
async fn a_job_whose_drop_panics_does_not_hurt_who_submits_it() {
    let fuse = Fuse::default();
    let processed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&processed);
    let keyed = Keyed::builder(move |_key: Key, jobs: Vec<Bomb>| {
        count.fetch_add(jobs.len(), Ordering::SeqCst);
        let results = jobs.iter().map(|_| ()).collect();
        async move { Ok::<_, String>(results) }
    })
    .options(|options| options.max_batch_weight(20, |entry| entry.job().0 as usize * 2))
    .build_running(CancellationToken::new())
    .expect("valid");
    fuse.arm(Place::Hash);
    let failed = keyed.submit(fuse.key(1), Bomb(LIVE));
    assert_eq!(panic_message(soon(failed).await), "Hash");
    let failed = keyed.try_submit(fuse.key(1), Bomb(LIVE)).expect("a handle");
    assert_eq!(panic_message(soon(failed).await), "Hash");
    fuse.disarm();
    let heavy = soon(keyed.submit(fuse.key(1), Bomb(LIVE))).await;
    assert!(matches!(heavy, Err(JobError::TooHeavy { .. })), "{heavy:?}");
    soon(keyed.shutdown()).await.expect("drains");
    let closed = soon(keyed.submit(fuse.key(1), Bomb(LIVE))).await;
    assert!(matches!(closed, Err(JobError::Closed)), "{closed:?}");
    assert_eq!(processed.load(Ordering::SeqCst), 0);
    assert_eq!(keyed.live_keys(), 0);
}

/// Its jobs wait for a turn that does not come before the stop runs out of time.
#[tokio::test(start_paused = true)]
async fn jobs_that_are_dropped_while_they_wait_for_a_turn_do_not_abort() {
    let keyed = Keyed::builder(|_key: u8, jobs: Vec<Bomb>| async move {
        std::future::pending::<()>().await;
        Ok::<_, String>(jobs.iter().map(|_| ()).collect::<Vec<_>>())
    })
    .max_in_flight_overall(1)
    .build_running(CancellationToken::new())
    .expect("valid");
    let _first = keyed.submit(0, Bomb(0));
    keyed.flush_soon().await;
    let handles: Vec<_> = (0..3).map(|_| keyed.submit(1, Bomb(LIVE))).collect();
    settle().await;
    soon(keyed.shutdown()).await.expect_err("hangs");
    for handle in handles {
        let answer = soon(handle).await;
        assert!(matches!(answer, Err(JobError::Abandoned)), "{answer:?}");
    }
    assert_eq!(keyed.live_keys(), 0);
}

trait FlushSoon {
    async fn flush_soon(&self);
}

impl FlushSoon for Keyed<u8, Bomb, ()> {
    /// Cuts what is pending without waiting for its end.
    async fn flush_soon(&self) {
        let mut flush = Box::pin(self.flush());
        assert!(crate::support::poll_once(&mut flush).is_pending());
        settle().await;
    }
}
