//! Results by the caller's own id.

mod bombs;
mod live;
mod order;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use microbatch::{
    BatchProcessor, BatchStorage, BuildError, CancellationToken, JobError, JobStatus, PendingJob,
    ShutdownTimeout, StartError, Tracked, TrackedBuilder, TrackedJob, TrySubmitError,
};
use tokio::task::yield_now;
use tokio::time::Instant;

/// How a job stands, in a form that compares.
#[derive(Debug, PartialEq)]
enum Seen<R> {
    Unknown,
    Submitted,
    Processing,
    Done(R),
    Failed(String),
}

use Seen::{Done, Failed, Processing, Submitted, Unknown};

use crate::support::{Gate, settle_now};

fn seen<R>(status: Option<JobStatus<R>>) -> Seen<R> {
    match status {
        None => Unknown,
        Some(JobStatus::Submitted) => Submitted,
        Some(JobStatus::Processing) => Processing,
        Some(JobStatus::Completed(Ok(result))) => Done(result),
        Some(JobStatus::Completed(Err(error))) => Failed(format!("{error:?}")),
    }
}

fn abandoned<R>() -> Seen<R> {
    Failed("Abandoned".to_owned())
}

fn gated(gate: &Gate) -> TrackedBuilder<&'static str, u32, u32, Gate> {
    Tracked::builder(gate.clone())
}

fn running<P, S>(
    builder: TrackedBuilder<&'static str, u32, u32, P, S>,
) -> Tracked<&'static str, u32, u32>
where
    P: BatchProcessor<u32, u32>,
    S: BatchStorage<TrackedJob<&'static str, u32, u32>, u32>,
{
    builder.build_running(CancellationToken::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_status_goes_forward_from_submitted_to_completed() {
    let gate = Gate::closed();
    let tracked = running(gated(&gate));
    let status = || seen(tracked.status("a"));
    assert_eq!(status(), Unknown);
    let handle = tracked.submit("a", 7);
    assert_eq!(status(), Submitted);
    settle_now().await;
    assert_eq!(status(), Submitted);
    let flush = tokio::spawn(tracked.flush());
    settle_now().await;
    assert_eq!(status(), Processing);
    gate.pass(1);
    assert_eq!(handle.await.unwrap(), 7);
    assert_eq!(status(), Done(7));
    flush.await.unwrap();
    assert_eq!(status(), Done(7));
    assert_eq!(seen(tracked.status("b")), Unknown);
}

#[tokio::test(start_paused = true)]
async fn errors_are_found_as_the_handle_says_them() {
    let tracked = Tracked::builder(|mut jobs: Vec<u32>| async move {
        match jobs[0] {
            1 => {
                return Err(JobError::TooHeavy {
                    weight: 3,
                    limit: 2,
                }
                .into());
            }
            2 => return Err::<_, Box<dyn std::error::Error + Send + Sync>>("no disk".into()),
            3 => panic!("job {}", jobs[0]),
            4 => drop(jobs.pop()),
            _ => {}
        }
        Ok(jobs)
    });
    let tracked = running(tracked.options(|options| options.max_batch_size(1)));
    let ids = ["a", "b", "c", "d", "e"];
    let mut messages = Vec::new();
    for (id, job) in ids.into_iter().zip(1..) {
        let result = tracked.submit(id, job).await;
        let Some(JobStatus::Completed(found)) = tracked.status(id) else {
            panic!("{id} is not found");
        };
        assert_eq!(format!("{found:?}"), format!("{result:?}"));
        messages.push(format!("{result:?}"));
    }
    let expected = [
        "Err(Failed(TooHeavy { weight: 3, limit: 2 }))",
        "Err(Failed(\"no disk\"))",
        "Err(Panicked(\"job 3\"))",
        "Err(ResultCount { expected: 1, actual: 0 })",
        "Ok(5)",
    ];
    assert_eq!(messages, expected);
    let stats = tracked.stats();
    assert_eq!((stats.completed, stats.failed), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_future_is_found() {
    let panics = AtomicBool::new(true);
    let tracked = running(Tracked::builder(move |jobs: Vec<u32>| {
        assert!(!panics.swap(false, Ordering::SeqCst), "before");
        async move { Ok::<_, String>(jobs) }
    }));
    tracked.submit("a", 1).await.unwrap_err();
    assert_eq!(
        seen(tracked.status("a")),
        Failed("Panicked(\"before\")".to_owned())
    );
    assert_eq!(tracked.submit("b", 1).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_job_of_a_batch_is_found() {
    let tracked = Tracked::builder(|jobs: Vec<u32>| async move {
        Ok::<_, String>(jobs.iter().map(|job| job * 2).collect())
    });
    let tracked = tracked
        .options(|options| options.max_batch_size(50))
        .build_running(CancellationToken::new())
        .unwrap();
    join_all((0..200).map(|id| tracked.submit(id, id))).await;
    for id in 0..200 {
        assert_eq!(seen(tracked.status(&id)), Done(id * 2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_is_one_job_while_it_is_on_its_way() {
    let gate = Gate::closed();
    let tracked = running(gated(&gate));
    let first = tracked.submit("a", 1);
    let second = tracked.submit("a", 2);
    let flush = tokio::spawn(tracked.flush());
    settle_now().await;
    let third = tracked.try_submit("a", 3).unwrap();
    assert_eq!(seen(tracked.status("a")), Processing);
    gate.pass(1);
    let results = join_all([first, second, third]).await;
    for result in results {
        assert_eq!(result.unwrap(), 1);
    }
    flush.await.unwrap();
    assert_eq!(gate.batches(), [[1]]);
    assert_eq!(tracked.stats().accepted, 1);
}

#[tokio::test(start_paused = true)]
async fn an_id_is_one_job_while_it_is_retained() {
    let gate = Gate::open();
    let tracked = running(gated(&gate));
    assert_eq!(tracked.submit("a", 1).await.unwrap(), 1);
    let again = tracked.submit("a", 2);
    assert!(again.is_finished());
    assert_eq!(seen(tracked.status("a")), Done(1));
    assert_eq!(again.await.unwrap(), 1);
    assert_eq!(tracked.try_submit("a", 3).unwrap().await.unwrap(), 1);
    tracked.shutdown().await.unwrap();
    // Known, so nothing is submitted that a stop could refuse.
    assert_eq!(tracked.submit("a", 4).await.unwrap(), 1);
    assert_eq!(gate.batches(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn the_others_get_errors_too() {
    let tracked = running(Tracked::builder(
        |_: Vec<u32>| async move { Err("no disk") },
    ));
    let handles = [tracked.submit("a", 1), tracked.submit("a", 2)];
    for result in join_all(handles).await {
        assert!(matches!(result, Err(JobError::Failed(_))));
    }
    assert!(matches!(
        tracked.submit("a", 3).await,
        Err(JobError::Failed(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_handle_changes_nothing() {
    let gate = Gate::open();
    let tracked = running(gated(&gate));
    drop(tracked.submit("a", 1));
    let other = tracked.submit("a", 2);
    drop(tracked.submit("a", 3));
    assert_eq!(other.await.unwrap(), 1);
    assert_eq!(seen(tracked.status("a")), Done(1));
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_job_is_found_abandoned() {
    let gate = Gate::open();
    let tracked = running(gated(&gate).options(|options| options.cancel_on_drop(true)));
    let first = tracked.submit("a", 1);
    let other = tracked.submit("a", 2);
    assert_eq!(seen(tracked.status("a")), Submitted);
    drop(first);
    assert_eq!(seen(tracked.status("a")), abandoned());
    assert!(matches!(other.await, Err(JobError::Abandoned)));
    assert!(gate.batches().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_room_is_submitted_until_it_is_withdrawn() {
    let gate = Gate::open();
    let tracked = gated(&gate).options(|options| options.queue_capacity(1));
    let tracked = tracked.build().unwrap();
    let _first = tracked.submit("a", 1);
    let mut waiting = tracked.submit("b", 2);
    assert_eq!(seen(tracked.status("b")), Submitted);
    assert!(waiting.accepted().now_or_never().is_none());
    assert_eq!(tracked.stats().waiting, 1);
    drop(waiting);
    assert_eq!(tracked.stats().waiting, 0);
    assert_eq!(seen(tracked.status("b")), abandoned());
}

#[tokio::test(start_paused = true)]
async fn a_job_gets_room_where_it_waits_for_it() {
    let gate = Gate::open();
    let tracked = running(gated(&gate).options(|options| options.queue_capacity(1)));
    let handles = ["a", "b", "c", "d", "e"].map(|id| tracked.submit(id, 1));
    for result in join_all(handles).await {
        assert_eq!(result.unwrap(), 1);
    }
    assert_eq!(seen(tracked.status("e")), Done(1));
}

/// A job becomes a waiter in `submit`, before its handle is polled.
#[tokio::test(start_paused = true)]
async fn submit_makes_the_job_a_waiter() {
    let gate = Gate::open();
    let tracked = gated(&gate).options(|options| options.queue_capacity(1));
    let tracked = tracked.build().unwrap();
    let _first = tracked.submit("a", 1);
    let _second = tracked.submit("b", 2);
    assert_eq!(tracked.stats().waiting, 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_room_is_abandoned_by_a_stop() {
    let gate = Gate::open();
    let tracked = gated(&gate).options(|options| options.queue_capacity(1));
    let tracked = tracked.build().unwrap();
    let first = tracked.submit("a", 1);
    let mut waiting = tracked.submit("b", 2);
    assert!(waiting.accepted().now_or_never().is_none());
    tracked.shutdown().await.unwrap();
    assert!(matches!(first.await, Err(JobError::Abandoned)));
    assert!(matches!(waiting.await, Err(JobError::Closed)));
    assert_eq!(seen(tracked.status("a")), abandoned());
    assert_eq!(seen(tracked.status("b")), abandoned());
}

#[tokio::test(start_paused = true)]
async fn a_refused_job_leaves_no_trace() {
    let gate = Gate::open();
    let tracked = gated(&gate).options(|options| {
        options.queue_capacity(1).max_batch_weight(10, |entry| {
            assert_ne!(*entry.job(), 13, "unlucky");
            assert_ne!(*entry.id(), "bad id");
            *entry.job() as usize
        })
    });
    let tracked = tracked.build().unwrap();
    let error = tracked.submit("a", 11).await.unwrap_err();
    assert!(matches!(
        error,
        JobError::TooHeavy {
            weight: 11,
            limit: 10
        }
    ));
    assert_eq!(seen(tracked.status("a")), Unknown);
    assert_eq!(
        tracked.try_submit("a", 12).unwrap_err(),
        TrySubmitError::TooHeavy(12)
    );
    assert_eq!(seen(tracked.status("a")), Unknown);
    let error = tracked.submit("a", 13).await.unwrap_err();
    assert!(matches!(error, JobError::Panicked(_)));
    assert_eq!(seen(tracked.status("a")), Unknown);
    let error = tracked.try_submit("bad id", 1).unwrap().await.unwrap_err();
    assert!(matches!(error, JobError::Panicked(_)));
    assert_eq!(seen(tracked.status("bad id")), Unknown);

    let handle = tracked.submit("a", 1); // the id is free
    assert_eq!(
        tracked.try_submit("b", 2).unwrap_err(),
        TrySubmitError::Full(2)
    );
    assert_eq!(seen(tracked.status("b")), Unknown);

    tokio::spawn(tracked.start(CancellationToken::new()));
    tracked.shutdown().await.unwrap();
    assert_eq!(handle.await.unwrap(), 1);
    assert!(matches!(
        tracked.submit("b", 3).await,
        Err(JobError::Closed)
    ));
    assert_eq!(seen(tracked.status("b")), Unknown);
    assert_eq!(
        tracked.try_submit("b", 4).unwrap_err(),
        TrySubmitError::Closed(4)
    );
    assert_eq!(seen(tracked.status("b")), Unknown);
    assert_eq!(seen(tracked.status("a")), Done(1));
}

/// The weight function may ask for the status, or submit: it runs within a
/// submission, whose id is reserved and not yet to be seen.
#[tokio::test(start_paused = true)]
async fn a_reserved_id_is_not_seen_and_can_be_joined() {
    type Shared = Arc<Mutex<Option<Tracked<&'static str, u32, u32>>>>;
    let shared = Shared::default();
    let inside = Arc::clone(&shared);
    let joined = Arc::new(Mutex::new(Vec::new()));
    let handles = Arc::clone(&joined);
    let tracked = gated(&Gate::open()).options(move |options| {
        options.max_batch_weight(10, move |entry| {
            let tracked = inside.lock().unwrap().clone().unwrap();
            assert_eq!(seen(tracked.status(entry.id())), Unknown);
            assert!(!tracked.forget(entry.id()));
            handles.lock().unwrap().push(tracked.submit(*entry.id(), 5));
            *entry.job() as usize
        })
    });
    let tracked = running(tracked);
    *shared.lock().unwrap() = Some(tracked.clone());
    let joined = || joined.lock().unwrap().pop().unwrap();

    assert_eq!(tracked.submit("good", 1).await.unwrap(), 1);
    assert_eq!(joined().await.unwrap(), 1);
    // One refusal goes for all who came with the id.
    assert!(matches!(
        tracked.submit("bad", 11).await,
        Err(JobError::TooHeavy { .. })
    ));
    assert!(matches!(joined().await, Err(JobError::TooHeavy { .. })));
    assert_eq!(seen(tracked.status("bad")), Unknown);
    tracked.try_submit("bad", 11).unwrap_err();
    assert!(matches!(joined().await, Err(JobError::Closed)));
    *shared.lock().unwrap() = None;
}

/// A job whose drop panics once panicked in its submission, where it was refused.
#[tokio::test(start_paused = true)]
async fn a_refused_job_whose_drop_panics_gives_its_id_back() {
    struct Bomb(bool);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.0, "boom");
        }
    }
    let tracked = Tracked::builder(|jobs: Vec<Bomb>| async move {
        Ok::<_, String>(jobs.iter().map(|_| 1).collect())
    })
    .options(|options| options.max_batch_weight(1, |entry| if entry.job().0 { 2 } else { 1 }))
    .build_running(CancellationToken::new())
    .unwrap();
    let refused = tracked.submit("a", Bomb(true)).await;
    assert!(matches!(refused, Err(JobError::TooHeavy { .. })));
    assert!(tracked.status("a").is_none());
    assert_eq!(tracked.submit("a", Bomb(false)).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_id_is_free() {
    let gate = Gate::closed();
    let tracked = running(gated(&gate).options(|options| options.flush_when_idle(true)));
    assert!(!tracked.forget("a"));
    let handle = tracked.submit("a", 1);
    assert!(!tracked.forget("a"));
    settle_now().await;
    assert!(!tracked.forget("a"));
    assert_eq!(seen(tracked.status("a")), Processing);
    gate.pass(2);
    handle.await.unwrap();
    assert!(tracked.forget("a"));
    assert!(!tracked.forget("a"));
    assert_eq!(seen(tracked.status("a")), Unknown);
    assert_eq!(tracked.submit("a", 2).await.unwrap(), 2);
    assert_eq!(gate.batches(), [[1], [2]]);
    assert_eq!(seen(tracked.status("a")), Done(2));
}

#[tokio::test(start_paused = true)]
async fn retention_ends_by_count_with_the_one_not_asked_for_longest() {
    let tracked = running(gated(&Gate::open()).retain_jobs(3));
    for (id, job) in ["a", "b", "c"].into_iter().zip(1..) {
        tracked.submit(id, job).await.unwrap();
    }
    assert_eq!(seen(tracked.status("a")), Done(1));
    tracked.submit("d", 4).await.unwrap();
    let all = ["a", "b", "c", "d"].map(|id| seen(tracked.status(id)));
    assert_eq!(all, [Done(1), Unknown, Done(3), Done(4)]);
    // Its id is free.
    assert_eq!(tracked.submit("b", 5).await.unwrap(), 5);
}

/// The default policy of the cache refuses what is new where the old is in
/// demand.
#[tokio::test(start_paused = true)]
async fn what_has_just_finished_is_found_however_often_others_are_asked_for() {
    let tracked = Tracked::builder(Gate::open())
        .retain_jobs(10)
        .build_running(CancellationToken::new())
        .unwrap();
    for id in 0..100 {
        tracked.submit(id, id).await.unwrap();
        assert_eq!(seen(tracked.status(&id)), Done(id));
        for _ in 0..10 {
            for id in 0..10 {
                let _ = tracked.status(&id);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn retention_ends_by_age() {
    let gate = Gate::open();
    let tracked = running(gated(&gate).retain_for(Duration::from_nanos(1)));
    assert_eq!(tracked.submit("a", 1).await.unwrap(), 1);
    while tracked.status("a").is_some() {} // a clock may be coarse
    assert_eq!(tracked.submit("a", 2).await.unwrap(), 2);
    assert_eq!(gate.batches(), [[1], [2]]);
}

/// Its memory may still be held, but it is not found.
#[tokio::test(start_paused = true)]
async fn what_is_too_old_cannot_be_forgotten() {
    let tracked = running(gated(&Gate::open()).retain_for(Duration::from_millis(1)));
    tracked.submit("a", 1).await.unwrap();
    while tracked.status("a").is_some() {}
    assert!(!tracked.forget("a"));
}

#[tokio::test(start_paused = true)]
async fn a_live_job_is_found_whatever_the_retention() {
    let gate = Gate::closed();
    let tracked = gated(&gate)
        .retain_jobs(1)
        .retain_for(Duration::from_nanos(1));
    let tracked = running(tracked.options(|options| options.max_batch_size(1)));
    let handles = ["a", "b", "c"].map(|id| tracked.submit(id, 1));
    settle_now().await;
    let all = ["a", "b", "c"].map(|id| seen(tracked.status(id)));
    assert_eq!(all, [Processing, Submitted, Submitted]);
    gate.pass(3);
    join_all(handles).await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_are_retained_for_an_hour_by_default() {
    let shown = format!("{:?}", gated(&Gate::open()));
    assert!(shown.contains("retain_jobs: 10000,"), "{shown}");
    assert!(shown.contains("retain_for: 3600s"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn values_at_the_edge_are_defined() {
    let builder = || gated(&Gate::open());
    let error = builder().retain_jobs(0).build().unwrap_err();
    assert_eq!(error, BuildError::Zero("retain_jobs"));
    let error = builder().retain_for(Duration::ZERO).build().unwrap_err();
    assert_eq!(error, BuildError::Zero("retain_for"));
    let error = builder()
        .options(|options| options.queue_capacity(0))
        .build();
    assert_eq!(error.unwrap_err(), BuildError::Zero("queue_capacity"));
    let huge = builder().retain_jobs(usize::MAX).retain_for(Duration::MAX);
    let tracked = running(huge);
    tracked.submit("a", 1).await.unwrap();
    assert_eq!(seen(tracked.status("a")), Done(1));
}

#[tokio::test(start_paused = true)]
async fn a_status_survives_the_stop() {
    let tracked = running(gated(&Gate::open()));
    let handle = tracked.submit("a", 1);
    assert!(tracked.is_running() && !tracked.is_closed());
    tracked.shutdown().await.unwrap();
    tracked.shutdown().await.unwrap();
    assert!(!tracked.is_running() && tracked.is_closed());
    assert_eq!(seen(tracked.status("a")), Done(1));
    assert_eq!(handle.await.unwrap(), 1);
    assert_eq!(seen(tracked.clone().status("a")), Done(1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_past_its_deadline_is_found_abandoned() {
    let gate = Gate::closed();
    let tracked = running(gated(&gate).options(|options| options.max_batch_size(1)));
    let handles = ["a", "b", "c"].map(|id| tracked.submit(id, 1));
    let other = tracked.submit("a", 1);
    let start = Instant::now();
    let timeout = tracked.shutdown().await;
    assert_eq!(timeout, Err(ShutdownTimeout { abandoned: 3 }));
    assert!(start.elapsed() >= Duration::from_secs(5));
    for id in ["a", "b", "c"] {
        assert_eq!(seen(tracked.status(id)), abandoned());
    }
    for result in join_all(handles.into_iter().chain([other])).await {
        assert!(matches!(result, Err(JobError::Abandoned)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_start_is_found_abandoned() {
    let tracked = gated(&Gate::closed()).options(|options| options.max_batch_size(1));
    let tracked = tracked.build().unwrap();
    let handles = ["a", "b"].map(|id| tracked.submit(id, 1));
    let run = tokio::spawn(tracked.start(CancellationToken::new()));
    let again = tracked.start(CancellationToken::new()).await;
    assert_eq!(again, Err(StartError::AlreadyStarted));
    settle_now().await;
    run.abort();
    settle_now().await;
    for (id, handle) in ["a", "b"].into_iter().zip(handles) {
        assert!(matches!(handle.await, Err(JobError::Abandoned)));
        assert_eq!(seen(tracked.status(id)), abandoned());
    }
}

/// The storage drops every other job, before its submission has returned or
/// after.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_job_that_the_storage_drops_is_found_abandoned() {
    struct Picky(Vec<PendingJob<TrackedJob<u32, u32, u32>, u32>>);

    impl BatchStorage<TrackedJob<u32, u32, u32>, u32> for Picky {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn append(&mut self, job: PendingJob<TrackedJob<u32, u32, u32>, u32>) {
            if job.job().job() % 2 == 0 {
                self.0.push(job);
            }
        }
        fn take(
            &mut self,
            max_jobs: usize,
            _: usize,
        ) -> Vec<PendingJob<TrackedJob<u32, u32, u32>, u32>> {
            self.0.drain(..max_jobs.min(self.0.len())).collect()
        }
    }

    let tracked = Tracked::builder(|jobs: Vec<u32>| async move { Ok::<_, String>(jobs) })
        .options(|options| options.flush_when_idle(true).storage(Picky(Vec::new())))
        .build_running(CancellationToken::new())
        .unwrap();
    for id in 0..2000 {
        let handle = tracked.submit(id, id);
        match handle.await {
            Ok(result) => assert_eq!(result, id),
            Err(error) => assert!(id % 2 == 1 && matches!(error, JobError::Abandoned)),
        }
        let expected = if id % 2 == 0 { Done(id) } else { abandoned() };
        assert_eq!(seen(tracked.status(&id)), expected);
    }
}

/// A result with its position in the order of all, counted while it exists.
#[derive(Clone)]
struct Counted {
    job: usize,
    position: usize,
    _token: Arc<()>,
}

/// No update may be lost with readers and writers at the same time, and what
/// is held must stay within the retention.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_and_readers_at_once_lose_nothing_and_pile_up_nothing() {
    const WRITERS: usize = 64;
    const JOBS: usize = 200;
    const RETAINED: usize = 500;

    let token = Arc::new(());
    let finished = Arc::new(AtomicUsize::new(0));
    let (made, places) = (Arc::clone(&token), Arc::clone(&finished));
    let tracked = Tracked::builder(move |jobs: Vec<usize>| {
        let results = jobs.into_iter().map(|job| Counted {
            job,
            position: places.fetch_add(1, Ordering::SeqCst),
            _token: Arc::clone(&made),
        });
        let results = results.collect();
        async move {
            yield_now().await;
            Ok::<_, String>(results)
        }
    })
    .options(|options| {
        let options = options.max_batch_size(20).max_in_flight(4);
        options.flush_when_idle(true)
    })
    .retain_jobs(RETAINED)
    .build_running(CancellationToken::new())
    .unwrap();

    // A thread may be held up for as long as it takes to finish hundreds of
    // jobs. So what is not found must have been pushed out by others: by about
    // as many as are retained, for readers move what they read to the front.
    let may_be_gone = {
        let finished = Arc::clone(&finished);
        move |place| finished.load(Ordering::SeqCst) - place >= RETAINED / 2
    };
    let newest: Arc<[AtomicUsize; WRITERS]> = Arc::new([const { AtomicUsize::new(0) }; WRITERS]);
    let done = CancellationToken::new();
    let readers: Vec<_> = (0..64)
        .map(|reader| {
            let (tracked, newest, done) = (tracked.clone(), Arc::clone(&newest), done.clone());
            let (finished, may_be_gone) = (Arc::clone(&finished), may_be_gone.clone());
            tokio::spawn(async move {
                let (mut id, mut rank, mut since) = (0, 0, None);
                while !done.is_cancelled() {
                    let next = newest[reader % WRITERS].load(Ordering::SeqCst);
                    let before = finished.load(Ordering::SeqCst);
                    if next != id {
                        (id, rank, since) = (next, 0, None);
                    }
                    let now = match tracked.status(&id) {
                        None => 0,
                        Some(JobStatus::Submitted) => {
                            since = Some(before);
                            1
                        }
                        Some(JobStatus::Processing) => 2,
                        Some(JobStatus::Completed(result)) => {
                            let result = result.unwrap();
                            assert_eq!(result.job, id);
                            since = Some(result.position);
                            3
                        }
                    };
                    if now < rank {
                        let gone = now == 0 && since.is_none_or(&may_be_gone);
                        assert!(gone, "{id} went from {rank} to {now}");
                    }
                    rank = now;
                    yield_now().await;
                }
            })
        })
        .collect();
    let writers = (0..WRITERS).map(|writer| {
        let (tracked, newest) = (tracked.clone(), Arc::clone(&newest));
        let may_be_gone = may_be_gone.clone();
        tokio::spawn(async move {
            for id in (writer * JOBS..).take(JOBS) {
                newest[writer].store(id, Ordering::SeqCst);
                let result = tracked.submit(id, id).await.unwrap();
                assert_eq!(result.job, id);
                match tracked.status(&id) {
                    Some(JobStatus::Completed(Ok(found))) => {
                        assert_eq!(found.position, result.position)
                    }
                    None => assert!(may_be_gone(result.position), "{id} was lost"),
                    other => panic!("{:?}", seen(other.map(|_| JobStatus::Completed(Ok(()))))),
                }
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    done.cancel();
    for reader in readers {
        reader.await.unwrap();
    }
    tracked.shutdown().await.unwrap();
    assert_eq!(tracked.stats().completed, (WRITERS * JOBS) as u64);
    let found = (0..WRITERS * JOBS).filter(|id| tracked.status(id).is_some());
    assert_eq!(found.count(), RETAINED);
    // The cache frees its memory a little later.
    assert!(Arc::strong_count(&token) < 2 * RETAINED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_id_that_many_submit_at_once_is_processed_once() {
    let processed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&processed);
    let tracked = Tracked::builder(move |jobs: Vec<usize>| {
        count.fetch_add(jobs.len(), Ordering::SeqCst);
        async move { Ok::<_, String>(jobs) }
    })
    .options(|options| options.flush_when_idle(true))
    .build_running(CancellationToken::new())
    .unwrap();
    let barrier = Arc::new(tokio::sync::Barrier::new(8));
    let callers = (0..8).map(|caller| {
        let (tracked, barrier) = (tracked.clone(), Arc::clone(&barrier));
        tokio::spawn(async move {
            let mut results = Vec::new();
            for id in 0..300 {
                barrier.wait().await;
                results.push(tracked.submit(id, caller).await.unwrap());
            }
            results
        })
    });
    let results: Vec<_> = join_all(callers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(results.iter().all(|result| *result == results[0]));
    assert_eq!(processed.load(Ordering::SeqCst), 300);
}

/// Asking for a live job again and again, and dropping the handle, must not pile up.
#[tokio::test(start_paused = true)]
async fn dropped_handles_of_a_live_job_cost_nothing() {
    let gate = Gate::closed();
    let tracked = running(gated(&gate));
    let handle = tracked.submit("a", 1);
    let kept: Vec<_> = (0..100)
        .flat_map(|_| {
            for _ in 0..100 {
                drop(tracked.submit("a", 2));
            }
            [tracked.submit("a", 3)]
        })
        .collect();
    gate.pass(1);
    assert_eq!(handle.await.unwrap(), 1);
    for result in join_all(kept).await {
        assert_eq!(result.unwrap(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_whose_clone_panics_is_lost_to_all_but_its_own_caller() {
    #[derive(Debug)]
    struct Single(Arc<AtomicBool>);
    impl Clone for Single {
        fn clone(&self) -> Self {
            assert!(!self.0.load(Ordering::SeqCst), "one of a kind");
            Self(Arc::clone(&self.0))
        }
    }
    let single = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&single);
    let tracked = Tracked::builder(move |jobs: Vec<u32>| {
        let results = jobs.iter().map(|_| Single(Arc::clone(&flag))).collect();
        async move { Ok::<Vec<_>, String>(results) }
    })
    .build_running(CancellationToken::new())
    .unwrap();
    let own = [tracked.submit("a", 1), tracked.submit("b", 3)];
    let joined = tracked.submit("a", 2).await;
    assert!(matches!(joined, Err(JobError::Panicked(message)) if &*message == "one of a kind"));
    for result in join_all(own).await {
        result.unwrap();
    }
    assert_eq!(tracked.stats().completed, 2);
    let status = tracked.status("b");
    assert!(matches!(
        status,
        Some(JobStatus::Completed(Err(JobError::Panicked(_))))
    ));

    single.store(false, Ordering::SeqCst);
    tracked.submit("c", 4).await.unwrap();
    single.store(true, Ordering::SeqCst);
    // It is the clone for this caller that panics now.
    let again = tracked.submit("c", 4).await;
    assert!(matches!(again, Err(JobError::Panicked(_))));
    let status = tracked.status("c");
    assert!(matches!(
        status,
        Some(JobStatus::Completed(Err(JobError::Panicked(_))))
    ));
}

#[tokio::test(start_paused = true)]
async fn ids_may_be_borrowed() {
    let tracked = Tracked::<String, u32, u32>::new_running(CancellationToken::new(), Gate::open());
    tracked.submit("a".to_owned(), 1).await.unwrap();
    assert_eq!(seen(tracked.status("a")), Done(1));
    assert_eq!(seen(tracked.status(&"a".to_owned())), Done(1));
    assert!(tracked.forget("a"));
}

#[tokio::test(start_paused = true)]
async fn a_tracked_one_that_was_not_started_answers_at_its_stop() {
    let tracked = Tracked::<&str, u32, u32>::new(Gate::open());
    let handle = tracked.submit("a", 1);
    assert_eq!(seen(tracked.status("a")), Submitted);
    tracked.shutdown().await.unwrap();
    assert!(matches!(handle.await, Err(JobError::Abandoned)));
    assert_eq!(seen(tracked.status("a")), abandoned());
    assert_eq!(tracked.start(CancellationToken::new()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_last_one_dropped_stops_and_answers() {
    let gate = Gate::open();
    let tracked = running(gated(&gate));
    let handle = tracked.submit("a", 1);
    let start = Instant::now();
    drop(tracked);
    assert_eq!(handle.await.unwrap(), 1);
    assert_eq!(start.elapsed(), Duration::ZERO);
}
