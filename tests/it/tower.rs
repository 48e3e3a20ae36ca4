//! A micro-batcher as a tower service, and a tower service as its processor.

use std::convert::Infallible;
use std::future::{self, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use microbatch::{
    BatchProcessor, BatchProcessorExt, CancellationToken, JobError, MicroBatch, ServiceProcessor,
    TrySubmitError,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower::util::BoxCloneService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::support::{
    Bomb, Explosive, LIVE, StartLog, Wakes, echo, gated_echo, idle_echo, large, on_a_small_stack,
    settle, start,
};

fn running() -> MicroBatch<u64, u64> {
    MicroBatch::new_running(CancellationToken::new(), echo)
}

fn poll_ready<S: Service<u64>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

fn is_ready(service: &mut MicroBatch<u64, u64>) -> bool {
    matches!(poll_ready(service), Poll::Ready(Ok(())))
}

// The micro-batcher as a service.

#[tokio::test(start_paused = true)]
async fn ready_then_call_and_oneshot() {
    let mut jobs = running();
    let ready = jobs.ready().await.expect("open");
    let handle = ready.call(1);
    let (called, oneshot) = tokio::join!(handle, jobs.clone().oneshot(2));
    assert_eq!((called.expect("done"), oneshot.expect("done")), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn call_all_gets_every_answer() {
    let gate = Arc::new(Semaphore::new(100));
    let jobs = MicroBatch::builder(gated_echo(&gate))
        .max_batch_size(3)
        .queue_capacity(2)
        .build_running(CancellationToken::new())
        .expect("valid");
    let answers = jobs.call_all(stream::iter(0..100));
    let answers: Vec<_> = answers.try_collect().await.expect("processed");
    assert!(answers.into_iter().eq(0..100));
}

#[test]
fn readiness_is_room_in_the_queue() {
    let mut jobs = idle_echo(2);
    let _first = jobs.submit(1);
    assert!(is_ready(&mut jobs));
    assert!(is_ready(&mut jobs)); // the same room
    let full = jobs.try_submit(2).expect_err("the last room is reserved");
    assert_eq!(full, TrySubmitError::Full(2));
    let called = jobs.call(3);
    assert_eq!(jobs.stats().accepted, 2);
    assert!(jobs.try_submit(4).is_err());
    drop(called);
}

#[tokio::test(start_paused = true)]
async fn polling_again_keeps_the_turn() {
    let jobs = idle_echo(1);
    let first = jobs.submit(1);
    let (mut one, mut two) = (jobs.clone(), jobs.clone());
    assert!(poll_ready(&mut one).is_pending());
    assert!(poll_ready(&mut two).is_pending());
    for _ in 0..10 {
        assert!(poll_ready(&mut one).is_pending());
    }
    assert_eq!(jobs.stats().waiting, 2);

    start(&jobs);
    settle().await; // the loop takes the first up
    assert!(!is_ready(&mut two));
    assert!(is_ready(&mut one));
    let called = one.call(2);
    assert!(!is_ready(&mut two));
    let (first, called, two) = tokio::join!(first, called, two.oneshot(3));
    assert_eq!(first.expect("done") + called.expect("done"), 3);
    assert_eq!(two.expect("done"), 3);
}

#[tokio::test(start_paused = true)]
async fn submitters_and_services_are_served_in_one_order() {
    let jobs = idle_echo(1);
    let _first = jobs.submit(1);
    let mut before = jobs.submit(2);
    assert!((&mut before).now_or_never().is_none());
    let mut service = jobs.clone();
    assert!(poll_ready(&mut service).is_pending());
    let mut behind = jobs.submit(3);
    assert!((&mut behind).now_or_never().is_none());

    start(&jobs);
    let ready = service.ready().await.expect("open");
    assert!(before.accepted().now_or_never().is_some());
    assert!(behind.accepted().now_or_never().is_none());
    assert_eq!(ready.call(4).await.expect("done"), 4);
    assert_eq!(behind.await.expect("done"), 3);
}

#[tokio::test(start_paused = true)]
async fn who_polled_last_is_woken_when_there_is_room() {
    let jobs = idle_echo(1);
    let _first = jobs.submit(1);
    let mut service = jobs.clone();
    let (first, last) = (Arc::<Wakes>::default(), Arc::<Wakes>::default());
    for wakes in [&first, &last] {
        let waker = Waker::from(Arc::clone(wakes));
        let ready = service.poll_ready(&mut Context::from_waker(&waker));
        assert!(ready.is_pending());
    }
    start(&jobs);
    settle().await;
    assert_eq!(first.get(), 0);
    assert_eq!(last.get(), 1);
    assert!(is_ready(&mut service));
}

#[test]
fn a_clone_is_not_ready_because_the_original_is() {
    let mut jobs = idle_echo(2);
    assert!(is_ready(&mut jobs));
    let clone = jobs.clone();
    assert!(jobs.try_submit(1).is_ok()); // the clone holds no room
    drop((jobs, clone));

    let mut jobs = idle_echo(1);
    assert!(is_ready(&mut jobs));
    let mut clone = jobs.clone();
    assert!(!is_ready(&mut clone));
    assert!(is_ready(&mut jobs));
    let _called = jobs.call(1);
    assert_eq!(jobs.stats().accepted, 1);
    assert_eq!(jobs.stats().waiting, 1); // the clone
}

#[test]
fn a_dropped_service_gives_back_its_room_or_leaves() {
    let jobs = idle_echo(1);
    let (mut ready, mut waiting, mut behind) = (jobs.clone(), jobs.clone(), jobs.clone());
    assert!(is_ready(&mut ready));
    assert!(!is_ready(&mut waiting));
    assert!(!is_ready(&mut behind));
    drop(waiting);
    assert_eq!(jobs.stats().waiting, 1);
    drop(ready);
    assert!(is_ready(&mut behind));
    drop(behind);
    assert!(jobs.try_submit(1).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_last_service_dropped_ends_the_loop_although_it_was_ready() {
    let mut jobs = idle_echo(1);
    let run = tokio::spawn(jobs.start(CancellationToken::new()));
    assert!(is_ready(&mut jobs));
    let mut waiting = jobs.submit(7);
    assert!((&mut waiting).now_or_never().is_none());
    drop(jobs);
    // Its room went to the next waiter, which was drained.
    run.await.expect("no panic").expect("drained");
    assert_eq!(waiting.await.expect("done"), 7);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_ready_submits() {
    let jobs = idle_echo(1);
    let mut never_asked = jobs.clone();
    let accepted = never_asked.call(1);
    assert_eq!(jobs.stats().accepted, 1);

    let mut waiting_service = jobs.clone();
    assert!(!is_ready(&mut waiting_service));
    let waiting = waiting_service.call(2);
    assert_eq!(
        jobs.stats().waiting,
        1,
        "the job, and no longer a reservation"
    );
    start(&jobs);
    let (accepted, waiting) = tokio::join!(accepted, waiting);
    assert_eq!((accepted.expect("done"), waiting.expect("done")), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_call_uses_room_that_was_granted_since_the_last_poll() {
    let jobs = idle_echo(1);
    let _first = jobs.submit(1);
    let mut service = jobs.clone();
    assert!(!is_ready(&mut service));
    start(&jobs);
    settle().await;
    let mut called = service.call(2);
    assert!(called.accepted().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn readiness_counts_once() {
    let mut jobs = idle_echo(2);
    assert!(is_ready(&mut jobs));
    let _called = jobs.call(1);
    let _not_ready = jobs.call(2); // takes the second room by itself
    assert!(!is_ready(&mut jobs));
}

#[tokio::test(start_paused = true)]
async fn closed_is_the_services_error() {
    // Before it is asked, while it waits, and while it is ready.
    let jobs = idle_echo(1);
    let (mut ready, mut waiting, mut fresh) = (jobs.clone(), jobs.clone(), jobs.clone());
    assert!(is_ready(&mut ready));
    let waiting = tokio::spawn(async move {
        let ready = waiting.ready().await;
        ready.map(|_| ()).expect_err("closed")
    });
    settle().await;
    jobs.shutdown().await.expect("nothing to drain");
    assert!(matches!(waiting.await, Ok(JobError::Closed)));
    for service in [&mut ready, &mut fresh] {
        for _ in 0..2 {
            let closed = poll_ready(service);
            assert!(matches!(closed, Poll::Ready(Err(JobError::Closed))));
        }
        assert!(matches!(service.call(1).await, Err(JobError::Closed)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_between_ready_and_call_is_not_held_up() {
    let mut jobs = idle_echo(1);
    start(&jobs);
    assert!(is_ready(&mut jobs));
    jobs.shutdown().await.expect("drained");
    assert!(matches!(jobs.call(1).await, Err(JobError::Closed)));
    assert_eq!(jobs.stats().accepted, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_job_gives_its_room_back() {
    let mut jobs = MicroBatch::builder(echo)
        .max_batch_weight(10, |job: &u64| *job as usize)
        .queue_capacity(1)
        .build()
        .expect("valid");
    assert!(is_ready(&mut jobs));
    let refused = jobs.call(11).await;
    assert!(matches!(
        refused,
        Err(JobError::TooHeavy {
            weight: 11,
            limit: 10
        })
    ));
    assert!(jobs.try_submit(1).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_is_its_callers_error_and_leaves_the_service_ready() {
    let moody = |jobs: Vec<u64>| async move { if jobs[0] == 0 { Err("no") } else { Ok(jobs) } };
    let mut jobs = MicroBatch::new_running(CancellationToken::new(), moody);
    for (job, done) in [(0, false), (1, true)] {
        let ready = jobs.ready().await.expect("open");
        assert_eq!(ready.call(job).await.is_ok(), done);
    }
}

#[test]
fn a_job_may_hold_the_micro_batcher_it_goes_to() {
    // A reservation by value would make this type infinite.
    struct Job {
        _again: Option<MicroBatch<Job, ()>>,
    }
    let jobs: MicroBatch<Job, ()> =
        MicroBatch::new(|jobs: Vec<Job>| async move { Ok::<_, Infallible>(vec![(); jobs.len()]) });
    assert_eq!(size_of_val(&jobs), 2 * size_of::<usize>());
}

// Under layers.

#[tokio::test(start_paused = true)]
async fn concurrency_limit_limits_what_is_on_its_way() {
    let gate = Arc::new(Semaphore::new(0));
    let jobs = MicroBatch::builder(gated_echo(&gate))
        .max_batch_size(1)
        .build_running(CancellationToken::new())
        .expect("valid");
    let service = ServiceBuilder::new()
        .concurrency_limit(3)
        .service(jobs.clone());
    let answers: Vec<_> = (0..10)
        .map(|job| tokio::spawn(service.clone().oneshot(job)))
        .collect();
    for accepted in 3..=10 {
        settle().await;
        assert_eq!(jobs.stats().accepted, accepted);
        gate.add_permits(1);
    }
    gate.add_permits(10);
    for (job, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.await.expect("no panic").expect("done"), job as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn timeout_loses_the_answer_and_nothing_else() {
    let gate = Arc::new(Semaphore::new(0));
    let jobs = MicroBatch::builder(gated_echo(&gate))
        .build_running(CancellationToken::new())
        .expect("valid");
    let service = ServiceBuilder::new()
        .timeout(Duration::from_secs(3))
        .service(jobs.clone());
    let started = Instant::now();
    let error = service.oneshot(1).await.expect_err("the gate is shut");
    assert!(error.is::<Elapsed>());
    assert_eq!(started.elapsed().as_secs(), 3);
    gate.add_permits(1);
    jobs.flush().await;
    assert_eq!(jobs.stats().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn load_shed_sheds_while_the_queue_is_full() {
    let jobs = idle_echo(1);
    let service = ServiceBuilder::new().load_shed().service(jobs.clone());
    let first = tokio::spawn(service.clone().oneshot(1));
    settle().await;
    for _ in 0..3 {
        let shed = service.clone().oneshot(2).await.expect_err("no room");
        assert!(shed.is::<Overloaded>());
    }
    // Those that were shed hold nothing.
    assert_eq!(jobs.stats().waiting, 0);
    start(&jobs);
    assert_eq!(first.await.expect("no panic").expect("done"), 1);
    assert_eq!(service.oneshot(3).await.expect("room again"), 3);
}

#[tokio::test(start_paused = true)]
async fn all_layers_together() {
    let jobs = MicroBatch::builder(|words: Vec<String>| async move {
        Ok::<_, Infallible>(words.iter().map(String::len).collect())
    })
    .queue_capacity(4)
    .max_in_flight(2)
    .build_running(CancellationToken::new())
    .expect("valid");
    let service = ServiceBuilder::new()
        .boxed_clone()
        .load_shed()
        .timeout(Duration::from_secs(5))
        .concurrency_limit(8)
        .map_request(|text: &str| text.trim().to_owned())
        .map_response(|length| length as u64)
        .map_err(BoxError::from)
        .service(jobs);
    let texts = [" a", "bb ", " ccc "];
    let answers = texts.map(|text| service.clone().oneshot(text));
    let answers = futures::future::try_join_all(answers).await;
    assert_eq!(answers.expect("done"), [1, 2, 3]);
}

// A service as the processor.

/// A bulk service that is ready when it gets a permit, checks that it is used
/// as tower prescribes, and is not `Sync`.
struct Bulk {
    permits: Arc<Semaphore>,
    calls: Arc<AtomicUsize>,
    getting_ready: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ready: bool,
}

impl Bulk {
    fn new(permits: &Arc<Semaphore>) -> Self {
        Self {
            permits: Arc::clone(permits),
            calls: Arc::default(),
            getting_ready: None,
            ready: false,
        }
    }
}

impl Clone for Bulk {
    fn clone(&self) -> Self {
        Self {
            permits: Arc::clone(&self.permits),
            calls: Arc::clone(&self.calls),
            getting_ready: None,
            ready: false,
        }
    }
}

impl Service<Vec<u64>> for Bulk {
    type Response = Vec<u64>;
    type Error = Infallible;
    type Future = Ready<Result<Vec<u64>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        let permits = Arc::clone(&self.permits);
        let getting_ready = self.getting_ready.get_or_insert_with(|| {
            Box::pin(async move { permits.acquire().await.expect("open").forget() })
        });
        ready!(getting_ready.as_mut().poll(cx));
        self.getting_ready = None;
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, jobs: Vec<u64>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called and not ready");
        self.calls.fetch_add(1, Ordering::Relaxed);
        future::ready(Ok(jobs.iter().map(|job| job + 1).collect()))
    }
}

#[tokio::test(start_paused = true)]
async fn each_batch_is_one_call_of_a_ready_service() {
    let bulk = Bulk::new(&Arc::new(Semaphore::new(100)));
    let calls = Arc::clone(&bulk.calls);
    let jobs = MicroBatch::builder(ServiceProcessor::new(bulk))
        .max_batch_size(4)
        .max_in_flight(3)
        .build_running(CancellationToken::new())
        .expect("valid");
    let results = jobs.submit_all(0..10).await;
    let results: Vec<_> = results
        .into_iter()
        .map(|result| result.expect("done"))
        .collect();
    assert!(results.into_iter().eq(1..11));
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_until_its_service_is_ready() {
    let permits = Arc::new(Semaphore::new(0));
    let jobs = MicroBatch::builder(ServiceProcessor::new(Bulk::new(&permits)))
        .max_batch_size(1)
        .build_running(CancellationToken::new())
        .expect("valid");
    let handle = jobs.submit(1);
    settle().await;
    assert_eq!(jobs.stats().in_flight, 1);
    assert!(!handle.is_finished());
    permits.add_permits(1);
    assert_eq!(handle.await.expect("done"), 2);
}

/// A service that finds out what is left of its clones.
#[derive(Clone)]
struct Kept(Arc<()>);

impl Service<Vec<u64>> for Kept {
    type Response = Vec<usize>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Vec<usize>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, jobs: Vec<u64>) -> Self::Future {
        let kept = Arc::downgrade(&self.0);
        Box::pin(async move { Ok(vec![kept.strong_count(); jobs.len()]) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_was_called_is_not_kept() {
    let service = ServiceProcessor::new(Kept(Arc::new(())));
    let jobs: MicroBatch<u64, usize> = MicroBatch::new_running(CancellationToken::new(), service);
    assert_eq!(jobs.submit(1).await.expect("done"), 1);
}

/// A service whose first poll, call or clone goes wrong.
#[derive(Debug)]
struct Broken {
    left: Arc<AtomicUsize>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    NotReady,
    PanicReady,
    PanicCall,
    PanicClone,
}

impl Broken {
    fn fails(&self, kind: Kind) -> bool {
        self.kind == kind && self.left.swap(0, Ordering::Relaxed) > 0
    }
}

impl Clone for Broken {
    fn clone(&self) -> Self {
        assert!(!self.fails(Kind::PanicClone), "ouch");
        Self {
            left: Arc::clone(&self.left),
            kind: self.kind,
        }
    }
}

impl Service<Vec<u64>> for Broken {
    type Response = Vec<u64>;
    type Error = std::io::Error;
    type Future = Ready<std::io::Result<Vec<u64>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        assert!(!self.fails(Kind::PanicReady), "ouch");
        Poll::Ready(if self.fails(Kind::NotReady) {
            Err(std::io::ErrorKind::ConnectionRefused.into())
        } else {
            Ok(())
        })
    }

    fn call(&mut self, jobs: Vec<u64>) -> Self::Future {
        assert!(!self.fails(Kind::PanicCall), "ouch");
        future::ready(Ok(jobs))
    }
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_in_a_service_fails_its_batch_alone() {
    for kind in [
        Kind::NotReady,
        Kind::PanicReady,
        Kind::PanicCall,
        Kind::PanicClone,
    ] {
        let left = Arc::new(AtomicUsize::new(1));
        let broken = ServiceProcessor::new(Broken { left, kind });
        let jobs = MicroBatch::new_running(CancellationToken::new(), broken);
        match jobs.submit(1).await {
            Err(JobError::Failed(cause)) if kind == Kind::NotReady => {
                let cause = cause.downcast_ref::<std::io::Error>().expect("its own");
                assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            Err(JobError::Panicked(message)) if kind != Kind::NotReady => {
                assert_eq!(&*message, "ouch");
            }
            other => panic!("{kind:?}: {other:?}"),
        }
        assert_eq!(jobs.submit(2).await.expect("the next batch"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_of_results_is_noticed() {
    let bulk = service_fn(|_: Vec<u64>| async { Ok::<_, Infallible>(vec![1, 2]) });
    let jobs: MicroBatch<u64, u64> =
        MicroBatch::new_running(CancellationToken::new(), ServiceProcessor::new(bulk));
    let result = jobs.submit(1).await;
    assert!(matches!(
        result,
        Err(JobError::ResultCount {
            expected: 1,
            actual: 2
        })
    ));
}

#[tokio::test(start_paused = true)]
async fn layers_around_the_bulk_service_hold() {
    // Boxed, so `Send` and not `Sync`; its error is a `BoxError`.
    let running = Arc::new(AtomicUsize::new(0));
    let slow = service_fn(move |jobs: Vec<u64>| {
        let running = Arc::clone(&running);
        async move {
            assert!(running.fetch_add(1, Ordering::Relaxed) < 2, "two at once");
            sleep(Duration::from_millis(jobs[0])).await;
            running.fetch_sub(1, Ordering::Relaxed);
            Ok::<_, Infallible>(jobs)
        }
    });
    let bulk: BoxCloneService<Vec<u64>, Vec<u64>, BoxError> = ServiceBuilder::new()
        .boxed_clone()
        .concurrency_limit(2)
        .timeout(Duration::from_millis(500))
        .service(slow);
    let jobs = MicroBatch::builder(ServiceProcessor::new(bulk))
        .max_batch_size(1)
        .max_in_flight(5)
        .build_running(CancellationToken::new())
        .expect("valid");
    let results = jobs.submit_all([10, 20, 30, 40, 50]).await;
    assert!(results.iter().all(Result::is_ok));
    let Err(JobError::Failed(cause)) = jobs.submit(501).await else {
        panic!("it takes too long");
    };
    assert!(cause.is::<Elapsed>());
}

#[tokio::test(start_paused = true)]
async fn a_micro_batcher_is_a_processors_service_too() {
    // Batches of two, each of which is one job of the outer.
    let outer = MicroBatch::new(|batches: Vec<Vec<u64>>| async move {
        if batches.iter().flatten().any(|job| *job == 0) {
            panic!("zero");
        }
        Ok::<_, Infallible>(batches)
    });
    drop(tokio::spawn(outer.start(CancellationToken::new())));
    let inner: MicroBatch<u64, u64> = MicroBatch::builder(ServiceProcessor::new(outer))
        .max_batch_size(2)
        .max_in_flight(3)
        .build_running(CancellationToken::new())
        .expect("valid");
    let results = inner.submit_all(1..7).await;
    assert!(results.iter().all(Result::is_ok));
    // The outer's error comes through as it is.
    let result = inner.submit(0).await;
    assert!(matches!(result, Err(JobError::Panicked(message)) if &*message == "zero"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_out_of_time_drops_the_call() {
    let dropped = Arc::new(());
    let alive = Arc::downgrade(&dropped);
    let stuck = service_fn(move |_: Vec<u64>| {
        let dropped = Arc::clone(&dropped);
        async move {
            future::pending::<()>().await;
            drop(dropped);
            Ok::<Vec<u64>, Infallible>(vec![])
        }
    });
    let jobs: MicroBatch<u64, u64> = MicroBatch::builder(ServiceProcessor::new(stuck))
        .max_batch_size(1)
        .build_running(CancellationToken::new())
        .expect("valid");
    let handle = jobs.submit(1);
    settle().await;
    let timeout = jobs.shutdown().await.expect_err("stuck");
    assert_eq!(timeout.abandoned, 1);
    assert!(matches!(handle.await, Err(JobError::Abandoned)));
    assert_eq!(alive.strong_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn streams_and_services_compose() {
    let bulk = Bulk::new(&Arc::new(Semaphore::new(100)));
    let jobs: MicroBatch<u64, u64> =
        MicroBatch::new_running(CancellationToken::new(), ServiceProcessor::new(bulk));
    let results = jobs.submit_stream(stream::iter(0..20), 5);
    let results: Vec<_> = results.map(|result| result.expect("done")).collect().await;
    assert!(results.into_iter().eq(1..21));
}

/// Clones became ready and were called in the order in which their tasks happened
/// to be polled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_are_called_in_order_while_several_are_in_flight() {
    for limit in [8, 2] {
        let log = StartLog::default();
        let noted = log.clone();
        let bulk = service_fn(move |jobs: Vec<u32>| {
            noted.note(&jobs);
            async move {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(jobs)
            }
        });
        let bulk = ServiceBuilder::new().concurrency_limit(limit).service(bulk);
        log.check(ServiceProcessor::new(bulk)).await;
    }
}

/// One that times out before its service is ready lets the next one through.
#[tokio::test(start_paused = true)]
async fn a_batch_that_times_out_passes_its_turn_on() {
    let permits = Arc::new(Semaphore::new(0));
    let bulk = ServiceProcessor::new(Bulk::new(&permits));
    let limited = BatchProcessorExt::<u64, u64>::timeout(bulk, Duration::from_secs(1));
    let jobs = MicroBatch::builder(limited)
        .max_batch_size(1)
        .max_in_flight(3)
        .build_running(CancellationToken::new())
        .expect("valid");
    let results = jobs.submit_all([1, 2, 3]).await;
    assert!(results.iter().all(Result::is_err));
    permits.add_permits(1);
    assert_eq!(jobs.submit(4).await.expect("done"), 5);
}

/// Answers at once with what it gets, or panics, and panics when it is dropped, as
/// do the jobs that it has not been called with and its futures.
struct Volatile {
    kind: Option<Kind>,
    live: bool,
}

impl Clone for Volatile {
    fn clone(&self) -> Self {
        assert!(self.kind != Some(Kind::PanicClone), "ouch");
        Self {
            kind: self.kind,
            live: true,
        }
    }
}

impl Drop for Volatile {
    fn drop(&mut self) {
        assert!(!self.live || std::thread::panicking(), "drop");
    }
}

impl Service<Vec<Bomb>> for Volatile {
    type Response = Vec<u32>;
    type Error = String;
    type Future = Explosive;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), String>> {
        assert!(self.kind != Some(Kind::PanicReady), "ouch");
        match self.kind {
            Some(Kind::NotReady) => Poll::Ready(Err("not ready".to_owned())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, jobs: Vec<Bomb>) -> Explosive {
        let numbers = jobs.iter().map(|job| job.0).collect();
        jobs.into_iter().for_each(std::mem::forget);
        assert!(self.kind != Some(Kind::PanicCall), "ouch");
        Explosive(Some(numbers))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_may_panic_wherever_it_is_dropped() {
    for kind in [
        None,
        Some(Kind::NotReady),
        Some(Kind::PanicReady),
        Some(Kind::PanicCall),
        Some(Kind::PanicClone),
    ] {
        let service = Volatile { kind, live: false };
        let jobs = MicroBatch::builder(ServiceProcessor::new(service))
            .max_batch_size(2)
            .build_running(CancellationToken::new())
            .expect("valid");
        // Two batches, so that the turn is seen to be passed on.
        for _ in 0..2 {
            for result in jobs.submit_all([LIVE, LIVE].map(Bomb)).await {
                match (kind, result) {
                    (None, Ok(result)) => assert_eq!(result, LIVE),
                    (Some(Kind::NotReady), Err(JobError::Failed(cause))) => {
                        assert_eq!(cause.to_string(), "not ready");
                    }
                    (Some(_), Err(JobError::Panicked(message))) => assert_eq!(&*message, "ouch"),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn the_future_of_a_service_is_on_the_heap() {
    on_a_small_stack(|| async {
        let processor = ServiceProcessor::new(service_fn(large));
        let size = size_of_val(&BatchProcessor::<u32, u32>::process(&processor, vec![1]));
        assert!(size < 1024, "{size}");
        let jobs = MicroBatch::new_running(CancellationToken::new(), processor);
        assert_eq!(jobs.submit(1).await.expect("done"), 1);
    });
}
