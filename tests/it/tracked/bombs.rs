//! Ids, results and wakers whose code panics, in every place and at every time.
//! The job at hand may fail of it, and no other; no id is lost, no job is
//! processed twice, and no caller panics.
//!
//! Once an id whose hash panicked while its processor panicked aborted the
//! process: it was hashed in a drop.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use microbatch::{BatchProcessor, CancellationToken, JobError, JobStatus, Tracked};

use super::{gated, running};
use crate::keyed::{Fuse, Key, Place};
use crate::support::{Gate, assert_balanced, owning, panic_message, poll_once, settle, soon};

fn completed<R>(status: Option<JobStatus<R>>) -> Result<R, JobError> {
    match status {
        Some(JobStatus::Completed(outcome)) => outcome,
        Some(_) => panic!("it is on its way"),
        None => panic!("it is not known"),
    }
}

/// Arms the places that a job names while it is processed, and then panics if
/// told so; counts jobs.
fn arming(
    fuse: &Fuse,
    panics: bool,
    count: &Arc<AtomicUsize>,
) -> impl BatchProcessor<Option<Place>, u32> + use<> {
    let (fuse, count) = (fuse.clone(), Arc::clone(count));
    move |jobs: Vec<Option<Place>>| {
        let (fuse, count) = (fuse.clone(), Arc::clone(&count));
        async move {
            tokio::task::yield_now().await;
            count.fetch_add(jobs.len(), Ordering::SeqCst);
            let armed: Vec<_> = jobs.iter().flatten().collect();
            armed.iter().for_each(|place| fuse.arm(**place));
            assert!(!panics || armed.is_empty(), "the processor");
            Ok::<_, String>(jobs.iter().map(|_| 7).collect())
        }
    }
}

type Ids = Tracked<Key, Option<Place>, u32>;

fn tracked(fuse: &Fuse, panics: bool) -> (Ids, Arc<AtomicUsize>) {
    let count = Arc::default();
    let processor = arming(fuse, panics, &count);
    (
        Tracked::new_running(CancellationToken::new(), processor),
        count,
    )
}

const PLACES: [Place; 5] = [
    Place::Hash,
    Place::Eq,
    Place::Clone,
    Place::Borrow,
    Place::Drop,
];

#[tokio::test(start_paused = true)]
async fn one_at_submit_fails_that_submit() {
    for place in [Place::Hash, Place::Eq] {
        let fuse = Fuse::default();
        let (tracked, count) = tracked(&fuse, false);
        let first = tracked.submit(fuse.key(1), None);
        // While its job is on its way, and while its result is retained.
        for _ in 0..2 {
            fuse.arm(place);
            let failed = [
                tracked.submit(fuse.key(1), None),
                tracked.try_submit(fuse.key(1), None).expect("a handle"),
            ];
            fuse.disarm();
            for handle in failed {
                assert_eq!(panic_message(soon(handle).await), format!("{place:?}"));
            }
            let joined = soon(tracked.submit(fuse.key(1), None)).await;
            assert_eq!(joined.expect("known"), 7);
        }
        assert_eq!(soon(first).await.expect("processed"), 7);
        assert_eq!(count.load(Ordering::SeqCst), 1, "{place:?}");
        assert_eq!(tracked.stats().completed, 1);
        assert_balanced(tracked.stats());
    }
}

#[tokio::test(start_paused = true)]
async fn one_at_a_status_lookup_is_not_known() {
    for place in [Place::Hash, Place::Eq, Place::Borrow] {
        let fuse = Fuse::default();
        let (tracked, _) = tracked(&fuse, false);
        soon(tracked.submit(fuse.key(1), None))
            .await
            .expect("processed");
        let key = fuse.key(1);
        fuse.arm(place);
        if place == Place::Borrow {
            assert!(tracked.status::<u32>(&1).is_none());
            assert!(!tracked.forget::<u32>(&1));
        } else {
            assert!(tracked.status(&key).is_none());
            assert!(!tracked.forget(&key));
        }
        fuse.disarm();
        assert_eq!(completed(tracked.status(&key)).expect("processed"), 7);
        assert_eq!(completed(tracked.status(&1_u32)).expect("processed"), 7);
        assert!(tracked.forget::<u32>(&1));
        assert!(tracked.status(&key).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn one_at_the_end_of_a_batch_changes_nothing() {
    for place in PLACES {
        let fuse = Fuse::default();
        let (tracked, count) = tracked(&fuse, false);
        for id in 1..4 {
            let handle = tracked.submit(fuse.key(id), Some(place));
            assert_eq!(soon(handle).await.expect("processed"), 7);
            fuse.disarm();
            assert_eq!(completed(tracked.status(&id)).expect("processed"), 7);
            let again = soon(tracked.submit(fuse.key(id), None)).await;
            assert_eq!(again.expect("known"), 7);
        }
        assert_eq!(count.load(Ordering::SeqCst), 3);
        settle().await;
        let stats = tracked.stats();
        assert_eq!((stats.completed, stats.in_flight), (3, 0));
        soon(tracked.shutdown()).await.expect("drains");
    }
}

#[tokio::test(start_paused = true)]
async fn one_while_the_processor_panics_does_not_abort() {
    for place in PLACES {
        let fuse = Fuse::default();
        let (tracked, _) = tracked(&fuse, true);
        for id in 0..3 {
            let handle = tracked.submit(fuse.key(id), Some(place));
            assert_eq!(panic_message(soon(handle).await), "the processor");
            fuse.disarm();
            let found = completed(tracked.status(&id));
            assert_eq!(panic_message(found), "the processor");
            assert!(tracked.forget(&id));
            let again = tracked.submit(fuse.key(id), None);
            assert_eq!(soon(again).await.expect("free"), 7);
            assert_eq!(completed(tracked.status(&id)).expect("processed"), 7);
            assert!(tracked.forget(&id));
        }
        settle().await;
        let stats = tracked.stats();
        assert_eq!((stats.failed, stats.completed, stats.in_flight), (3, 3, 0));
        soon(tracked.shutdown()).await.expect("drains");
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_whose_clone_and_drop_panic_lives_and_leaves_as_any_other() {
    let fuse = Fuse::default();
    let count = Arc::default();
    let tracked = Tracked::builder(arming(&fuse, false, &count))
        .retain_jobs(2)
        .build_running(CancellationToken::new())
        .expect("valid");
    fuse.arm(Place::Clone);
    fuse.arm(Place::Drop);
    for id in 0..100 {
        // Known ids are dropped at once, and retained ones make room for new.
        let handles = [(); 3].map(|()| tracked.submit(fuse.key(id), None));
        for handle in handles {
            assert_eq!(soon(handle).await.expect("processed"), 7);
        }
    }
    assert_eq!(count.load(Ordering::SeqCst), 100);
    assert!(tracked.forget::<u32>(&99));
    soon(tracked.shutdown()).await.expect("drains");
    let refused = soon(tracked.submit(fuse.key(200), None)).await;
    assert!(matches!(refused, Err(JobError::Closed)));
    fuse.arm(Place::Hash);
    let failed = soon(tracked.submit(fuse.key(201), None)).await;
    assert_eq!(panic_message(failed), "Hash");
    assert_balanced(tracked.stats());
}

/// A result of which every copy panics as it is dropped.
#[derive(Debug)]
struct Copied {
    copy: bool,
    dropped: Arc<AtomicUsize>,
}

impl Clone for Copied {
    fn clone(&self) -> Self {
        Self {
            copy: true,
            dropped: Arc::clone(&self.dropped),
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
        assert!(!self.copy, "a copy");
    }
}

/// Results are dropped where retention ends, which is in the cache, and where
/// no caller waits for a copy.
#[tokio::test(start_paused = true)]
async fn a_retained_result_whose_drop_panics_hurts_no_other() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dropped);
    let tracked = Tracked::builder(move |jobs: Vec<u32>| {
        let result = |_| Copied {
            copy: false,
            dropped: Arc::clone(&count),
        };
        let results = jobs.into_iter().map(result).collect();
        async move { Ok::<Vec<_>, String>(results) }
    })
    .retain_jobs(1)
    .build_running(CancellationToken::new())
    .expect("valid");
    for id in 0..200 {
        let handle = tracked.submit(id, id);
        drop(tracked.submit(id, id));
        soon(handle).await.expect("processed");
    }
    assert!(dropped.load(Ordering::SeqCst) > 300);
    assert!(tracked.forget(&199));
    assert_eq!(tracked.stats().completed, 200);
    soon(tracked.shutdown()).await.expect("drains");
}

/// One clone of the whole batch once failed all of it, although it was
/// processed.
#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_costs_the_copy_of_its_own_result_alone() {
    #[derive(Debug, PartialEq)]
    struct Numbered(u32);
    impl Clone for Numbered {
        fn clone(&self) -> Self {
            assert_ne!(self.0, 1, "one");
            Self(self.0)
        }
    }
    let tracked = Tracked::new_running(CancellationToken::new(), |jobs: Vec<u32>| async move {
        Ok::<_, String>(jobs.into_iter().map(Numbered).collect())
    });
    let handles: Vec<_> = (0..3).map(|id| tracked.submit(id, id)).collect();
    for (handle, id) in handles.into_iter().zip(0..) {
        assert_eq!(soon(handle).await.expect("processed"), Numbered(id));
    }
    assert_eq!(completed(tracked.status(&0)).expect("kept"), Numbered(0));
    assert_eq!(completed(tracked.status(&2)).expect("kept"), Numbered(2));
    let lost = completed(tracked.status(&1));
    assert!(panic_message(lost).contains("one"));
    assert_eq!(tracked.stats().completed, 3);
}

/// Counts how often it is woken, and panics then.
#[derive(Default)]
struct Alarm(AtomicBool);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
        panic!("woken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_leaves_the_others_their_answers() {
    let gate = Gate::closed();
    let tracked = running(gated(&gate));
    let own = tracked.submit("a", 1);
    let mut first = tracked.submit("a", 2);
    let second = tracked.submit("a", 3);
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let polled = Pin::new(&mut first).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    gate.pass(1);
    assert_eq!(soon(own).await.expect("processed"), 1);
    assert_eq!(soon(second).await.expect("joined"), 1);
    assert!(alarm.0.load(Ordering::SeqCst), "it was not woken");
    assert!(matches!(poll_once(&mut first), Poll::Ready(Ok(1))));
    assert_eq!(tracked.stats().completed, 1);
}

/// Joining an id once dropped the replies of callers that had left under the
/// lock of the table, and with a reply may go the last of the task that waited,
/// which may ask the table in its own drop.
#[test]
fn a_task_that_asks_as_it_is_dropped_may_have_waited_for_a_known_id() {
    struct Asks(Tracked<&'static str, u32, u32>);
    impl Drop for Asks {
        fn drop(&mut self) {
            assert!(matches!(self.0.status("a"), Some(JobStatus::Submitted)));
        }
    }
    let (done, is_done) = mpsc::channel();
    let thread = thread::spawn(move || {
        let tracked = gated(&Gate::closed()).build().expect("valid");
        let _own = tracked.submit("a", 1);
        for _ in 0..20 {
            let mut joined = tracked.submit("a", 2);
            let waker = owning(Asks(tracked.clone()));
            let polled = Pin::new(&mut joined).poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            drop(waker);
            drop(joined);
        }
        done.send(()).expect("the test waits");
    });
    // A deadlock is not waited for.
    let done = is_done.recv_timeout(Duration::from_secs(20));
    done.expect("no deadlock and no panic");
    drop(thread);
}
