use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::ThreadId;
use std::time::Duration;

use microbatch::{BatchProcessorExt, BlockingProcessor, Elapsed, JobError};

use super::batcher;
use crate::support::{Bomb, LIVE, lock, settle};

#[tokio::test]
async fn runs_every_batch_on_one_thread_of_its_own() {
    let processor = BlockingProcessor::spawn(
        || Ok::<_, String>(Rc::new(std::thread::current().id())),
        |home: &mut Rc<ThreadId>, jobs: Vec<u8>| {
            let here = std::thread::current().id();
            assert_eq!(**home, here);
            Ok(jobs.iter().map(|_| here).collect())
        },
    );
    let batcher = batcher(2, processor.await.expect("started"));
    let mut threads = Vec::new();
    for result in batcher.submit_all(0..10).await {
        threads.push(result.expect("processed"));
    }
    threads.dedup();
    assert_eq!(threads.len(), 1);
    assert_ne!(threads[0], std::thread::current().id());
}

#[tokio::test]
async fn a_failing_init_is_reported_by_spawn() {
    let failing = BlockingProcessor::<u8, u8>::spawn(
        || Err::<(), _>(std::io::Error::other("no such file")),
        |(), jobs| Ok(jobs),
    );
    let error = failing.await.expect_err("init fails");
    assert!(error.is::<std::io::Error>());

    let panicking = BlockingProcessor::<u8, u8>::spawn(
        || -> Result<(), String> { panic!("no device") },
        |(), jobs| Ok(jobs),
    );
    let error = panicking.await.expect_err("init panics");
    assert_eq!(
        error.to_string(),
        "the processor or a callback panicked: no device"
    );
}

#[tokio::test]
async fn a_panic_fails_its_batch_and_rebuilds_the_state() {
    let built = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&built);
    let processor = BlockingProcessor::spawn(
        move || match count.fetch_add(1, Ordering::SeqCst) {
            1 => Err("still down"),
            _ => Ok(0_u32),
        },
        |calls: &mut u32, jobs: Vec<u32>| {
            *calls += 1;
            assert!(jobs[0] != 0, "zero on call {calls}");
            Ok(jobs.iter().map(|_| *calls).collect())
        },
    );
    let batcher = batcher(1, processor.await.expect("started"));
    assert_eq!(batcher.submit(1).await.expect("call 1"), 1);
    let panicked = batcher.submit(0).await.expect_err("panics");
    assert!(matches!(panicked, JobError::Panicked(message) if &*message == "zero on call 2"));
    // The first attempt to rebuild fails, and with it the batch that it hits.
    let failed = batcher.submit(1).await.expect_err("init fails");
    assert!(matches!(failed, JobError::Failed(cause) if cause.to_string() == "still down"));
    assert_eq!(batcher.submit(1).await.expect("a new state"), 1);
    assert_eq!(built.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_error_fails_its_batch_and_keeps_the_state() {
    let processor = BlockingProcessor::spawn(
        || Ok::<_, String>(0_u32),
        |calls: &mut u32, jobs: Vec<u32>| {
            *calls += 1;
            match *calls {
                1 => Err("busy".to_owned()),
                _ => Ok(jobs.iter().map(|_| *calls).collect()),
            }
        },
    );
    let batcher = batcher(1, processor.await.expect("started"));
    let failed = batcher.submit(1).await.expect_err("busy");
    assert!(matches!(failed, JobError::Failed(cause) if cause.to_string() == "busy"));
    assert_eq!(batcher.submit(1).await.expect("the same state"), 2);
}

#[tokio::test(start_paused = true)]
async fn dropping_it_finishes_the_batch_in_hand_and_ends_the_thread() {
    let (started, has_started) = mpsc::channel();
    let (go_on, gate) = mpsc::channel::<()>();
    let (done, is_done) = mpsc::channel();
    struct LogsDrop(mpsc::Sender<&'static str>);
    impl Drop for LogsDrop {
        fn drop(&mut self) {
            let _ = self.0.send("state dropped");
        }
    }
    let log = done.clone();
    let gate = std::sync::Mutex::new(Some(gate));
    let processor = BlockingProcessor::spawn(
        move || Ok::<_, String>(LogsDrop(log.clone())),
        move |state: &mut LogsDrop, jobs: Vec<u8>| {
            let gate = gate.lock().expect("unpoisoned").take().expect("one batch");
            let _ = started.send(());
            let _ = gate.recv();
            let _ = state.0.send("batch finished");
            Ok(jobs)
        },
    );
    let batcher = batcher(
        1,
        processor
            .await
            .expect("started")
            .timeout(Duration::from_millis(10)),
    );
    let handle = batcher.submit(1);
    settle().await;
    has_started.recv().expect("the thread has it");
    // The first batch times out while the thread processes it, and the second
    // before the thread has taken it.
    let error = handle.await.expect_err("too slow");
    assert!(matches!(error, JobError::Failed(_)));
    batcher.submit(2).await.expect_err("too slow, too");
    batcher.shutdown().await.expect("drained");
    drop(batcher);
    go_on.send(()).expect("the thread is there");
    drop(done);
    let log: Vec<_> = tokio::task::spawn_blocking(move || is_done.iter().collect())
        .await
        .expect("joined");
    assert_eq!(log, ["batch finished", "state dropped"]);
}

/// Beyond what any test takes. A paused clock runs there at once, because nothing
/// on it can run while the thread has the batch.
const HOUR: Duration = Duration::from_secs(3600);

/// A thread that handles each batch when the sender says so, or is dropped. A
/// batch times out after an hour.
async fn held<J: Send + 'static, R: Send + 'static>(
    size: usize,
    run: impl Fn(Vec<J>) -> Result<Vec<R>, String> + Send + 'static,
) -> (
    microbatch::MicroBatch<J, R>,
    mpsc::Sender<()>,
    mpsc::Receiver<()>,
) {
    let (release, gate) = mpsc::channel::<()>();
    let (started, has_started) = mpsc::channel();
    let processor = BlockingProcessor::spawn(
        || Ok::<_, String>(()),
        move |(), jobs: Vec<J>| {
            let _ = started.send(());
            let _ = gate.recv();
            run(jobs)
        },
    );
    let processor = processor.await.expect("started");
    let batcher = batcher(size, processor.timeout(HOUR));
    (batcher, release, has_started)
}

async fn submit_to_time_out<J: Send + 'static, R: Send + std::fmt::Debug + 'static>(
    batcher: &microbatch::MicroBatch<J, R>,
    jobs: impl IntoIterator<Item = J>,
) {
    for result in batcher.submit_all(jobs).await {
        match result {
            Err(JobError::Failed(cause)) => assert!(cause.is::<Elapsed>()),
            other => panic!("{other:?}"),
        }
    }
}

/// A thousand batches lay in the channel of a thread that hung, with their jobs.
#[tokio::test(start_paused = true)]
async fn no_more_batches_wait_for_a_thread_that_hangs_than_are_in_flight() {
    let token = Arc::new(());
    let (batcher, release, started) = held(1, |jobs: Vec<Arc<()>>| Ok(jobs)).await;
    let hung = batcher.submit(Arc::clone(&token));
    settle().await;
    started.recv().expect("the thread has it");
    assert!(hung.await.is_err());
    for _ in 0..1000 {
        submit_to_time_out(&batcher, [Arc::clone(&token)]).await;
        // The test's own, and the one in the thread's hand.
        assert_eq!(Arc::strong_count(&token), 2);
    }
    // The thread goes on with the next batch, and none of those.
    drop(release);
    tokio::time::resume();
    batcher
        .submit(Arc::clone(&token))
        .await
        .expect("it is back");
    assert_eq!(started.try_iter().count(), 1);
}

/// The thread dropped the jobs of a batch that had timed out, and died of one
/// whose drop panics: every later batch was abandoned.
#[tokio::test(start_paused = true)]
async fn jobs_of_a_timed_out_batch_may_panic_when_dropped() {
    let run = |jobs: Vec<Bomb>| Ok(jobs.iter().map(|job| job.0).collect());
    let (batcher, release, started) = held(2, run).await;
    let hung = tokio::spawn({
        let batcher = batcher.clone();
        async move { submit_to_time_out(&batcher, [1, 2].map(Bomb)).await }
    });
    settle().await;
    started.recv().expect("the thread has it");
    submit_to_time_out(&batcher, [LIVE, LIVE].map(Bomb)).await;
    hung.await.expect("timed out");
    drop(release);
    tokio::time::resume();
    for (job, result) in (1..).zip(batcher.submit_all([1, 2].map(Bomb)).await) {
        assert_eq!(result.expect("the thread is there"), job);
    }
}

/// The thread drops results, errors and states, all of which may panic.
#[tokio::test(start_paused = true)]
async fn results_and_errors_of_a_timed_out_batch_may_panic_when_dropped() {
    #[derive(Debug)]
    struct Broken(#[allow(dead_code)] Bomb);
    impl std::fmt::Display for Broken {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("broken")
        }
    }
    impl std::error::Error for Broken {}

    let (go_on, gate) = mpsc::channel::<()>();
    let (started, has_started) = mpsc::channel();
    let processor = BlockingProcessor::spawn(
        || Ok::<_, Broken>(()),
        move |(), jobs: Vec<u32>| {
            let _ = started.send(());
            let _ = gate.recv();
            match jobs[0] {
                0 => Err(Broken(Bomb(LIVE))),
                _ => Ok(jobs.into_iter().map(Bomb).collect()),
            }
        },
    );
    let processor = processor.await.expect("started");
    let batcher = batcher(2, processor.timeout(HOUR));
    for jobs in [[LIVE, LIVE], [0, 0]] {
        let batch = tokio::spawn({
            let batcher = batcher.clone();
            async move { submit_to_time_out(&batcher, jobs).await }
        });
        settle().await;
        has_started.recv().expect("the thread has it");
        batch.await.expect("timed out");
        go_on.send(()).expect("the thread is there");
    }
    drop(go_on);
    tokio::time::resume();
    for result in batcher.submit_all([1, 2]).await {
        result.expect("the thread is there");
    }
}

#[tokio::test]
async fn a_state_that_panics_when_dropped_does_not_hide_why_nor_end_the_thread() {
    let built = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&built);
    let processor = BlockingProcessor::spawn(
        move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok::<_, String>(Bomb(LIVE))
        },
        |_: &mut Bomb, jobs: Vec<u32>| {
            assert!(jobs[0] != 0, "zero");
            Ok(jobs)
        },
    );
    let batcher = batcher(1, processor.await.expect("started"));
    for round in 2..4 {
        let panicked = batcher.submit(0).await.expect_err("panics");
        assert!(matches!(panicked, JobError::Panicked(message) if &*message == "zero"));
        assert_eq!(batcher.submit(1).await.expect("a new state"), 1);
        assert_eq!(built.load(Ordering::SeqCst), round);
    }
}

#[tokio::test]
async fn an_error_that_panics_when_boxed_fails_its_batch_and_keeps_the_state() {
    struct Touchy;
    impl From<Touchy> for Box<dyn std::error::Error + Send + Sync> {
        fn from(_: Touchy) -> Self {
            panic!("conversion")
        }
    }
    let built = Arc::new(std::sync::Mutex::new(0));
    let count = Arc::clone(&built);
    let processor = BlockingProcessor::spawn(
        move || {
            *lock(&count) += 1;
            Ok::<_, Touchy>(())
        },
        |(), jobs: Vec<u32>| if jobs[0] == 0 { Err(Touchy) } else { Ok(jobs) },
    );
    let batcher = batcher(1, processor.await.expect("started"));
    let panicked = batcher.submit(0).await.expect_err("panics");
    assert!(matches!(panicked, JobError::Panicked(message) if &*message == "conversion"));
    assert_eq!(batcher.submit(1).await.expect("the same state"), 1);
    assert_eq!(*lock(&built), 1);
    // And at the start.
    let failing = BlockingProcessor::<u8, u8>::spawn(|| Err::<(), _>(Touchy), |(), jobs| Ok(jobs));
    let error = failing.await.expect_err("init fails");
    assert_eq!(
        error.to_string(),
        "the processor or a callback panicked: conversion"
    );
}

/// What `init` and `run` own is dropped by the thread as it ends.
#[tokio::test]
async fn closures_that_panic_when_dropped_abort_nothing() {
    let (dropped, is_dropped) = mpsc::channel::<()>();
    let (one, two) = (Bomb(LIVE), Bomb(LIVE));
    let processor = BlockingProcessor::spawn(
        move || {
            let _kept = &one;
            Ok::<_, String>(Bomb(LIVE))
        },
        move |_: &mut Bomb, jobs: Vec<u32>| {
            let _kept = (&two, &dropped);
            Ok(jobs)
        },
    );
    let batcher = batcher(1, processor.await.expect("started"));
    assert_eq!(batcher.submit(1).await.expect("succeeds"), 1);
    batcher.shutdown().await.expect("drained");
    drop(batcher);
    let gone = tokio::task::spawn_blocking(move || is_dropped.recv().is_err());
    assert!(gone.await.expect("joined"));
}
