use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::ThreadId;
use std::time::Duration;

use microbatch::{BatchProcessorExt, BlockingProcessor, JobError};

use super::batcher;
use crate::support::settle;

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
    assert_eq!(error.to_string(), "the processor panicked: no device");
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
    // The batch is given up while the thread has it in hand, and one more is
    // given up before the thread comes to it.
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
