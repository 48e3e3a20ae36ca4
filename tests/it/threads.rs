//! Threads: callers outside any runtime, callers on another one, runtimes that
//! are dropped, and processors that block. The clock is real here, so these
//! tests wait for events only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use microbatch::{
    BatchProcessor, CancellationToken, JobError, MicroBatch, MicroBatchBuilder, ShutdownTimeout,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::channel;

use crate::support::{Gate, Reports, assert_balanced, bare_runtime, idle, lock, run, submit};

/// A runtime that runs by itself.
fn pool() -> Runtime {
    let builder = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build();
    builder.expect("a runtime")
}

/// A runtime that runs while it is waited for, and has no clock.
/// Waits until it holds, and fails where it never does.
fn until(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "never comes true"
        );
        thread::yield_now();
    }
}

#[test]
fn a_thread_outside_any_runtime_may_wait_for_its_result() {
    let pool = pool();
    let batcher = pool.block_on(async { run(MicroBatch::builder(Gate::open())) });
    let threads: Vec<_> = (0..6)
        .map(|job| {
            let batcher = batcher.clone();
            thread::spawn(move || batcher.submit(job).blocking_wait())
        })
        .collect();
    for (job, thread) in (0..).zip(threads) {
        let result = thread.join().expect("no panic");
        assert_eq!(result.expect("succeeds"), job);
    }
}

#[test]
fn a_thread_waits_for_room_like_a_task() {
    let pool = pool();
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(1));
    let first = batcher.submit(0);
    let waiting = batcher.submit(1);
    let thread = thread::spawn(move || waiting.blocking_wait());
    until(|| batcher.stats().waiting == 1);
    pool.spawn(batcher.start(CancellationToken::new()));
    pool.spawn(batcher.flush());
    assert_eq!(thread.join().expect("no panic").expect("succeeds"), 1);
    assert_eq!(first.blocking_wait().expect("succeeds"), 0);
}

#[test]
fn a_blocked_thread_gets_every_kind_of_error() {
    let batcher = idle(
        MicroBatch::builder(Gate::open())
            .queue_capacity(1)
            .max_batch_weight(10, |job| *job as usize),
    );
    let heavy = batcher.submit(11).blocking_wait();
    assert!(matches!(heavy, Err(JobError::TooHeavy { .. })));
    let (queued, waiting) = (batcher.submit(0), batcher.submit(1));
    let queued = thread::spawn(move || queued.blocking_wait());
    let waiting = thread::spawn(move || waiting.blocking_wait());
    until(|| batcher.stats().waiting == 1);
    bare_runtime()
        .block_on(batcher.shutdown())
        .expect("nothing runs");
    let queued = queued.join().expect("no panic");
    assert!(matches!(queued, Err(JobError::Abandoned)));
    let waiting = waiting.join().expect("no panic");
    assert!(matches!(waiting, Err(JobError::Closed)));
    let late = batcher.submit(2).blocking_wait();
    assert!(matches!(late, Err(JobError::Closed)));
}

#[test]
fn blocking_within_a_runtime_is_a_panic_and_no_deadlock() {
    let pool = pool();
    pool.block_on(async {
        let batcher = run(MicroBatch::builder(Gate::open()));
        let handle = batcher.submit(0);
        assert!(catch_unwind(AssertUnwindSafe(|| handle.blocking_wait())).is_err());
        assert!(batcher.is_running());
    });
}

#[test]
fn callers_may_be_on_another_runtime_without_a_clock() {
    let pool = pool();
    let batcher = pool.block_on(async { run(MicroBatch::builder(Gate::open()).queue_capacity(1)) });
    bare_runtime().block_on(async {
        assert_eq!(batcher.submit(1).await.expect("succeeds"), 1);
        let permit = batcher.reserve().await.expect("room");
        assert_eq!(permit.submit(2).await.expect("succeeds"), 2);
        let all = batcher.submit_all(0..10).await;
        assert!(
            all.into_iter()
                .map(|answer| answer.expect("succeeds"))
                .eq(0..10)
        );
        let handle = batcher.submit(3);
        batcher.flush().await;
        assert!(handle.is_finished());
        batcher.shutdown().await.expect("drains");
    });
}

/// Each loop has a runtime of its own; its jobs are submitted on the next, and
/// their results awaited on a third.
#[test]
fn many_runtimes_in_one_process_keep_their_results_apart() {
    const RUNTIMES: usize = 16;
    const JOBS: u32 = 8_000;
    let runtimes: Vec<_> = (0..RUNTIMES).map(|_| pool()).collect();
    let batchers = runtimes.iter().enumerate().map(|(own, runtime)| {
        let builder = MicroBatch::builder(move |jobs: Vec<u32>| async move {
            Ok::<_, String>(jobs.into_iter().map(|job| (own, job)).collect())
        });
        runtime.block_on(async { run(builder.max_batch_size(50).flush_when_idle(true)) })
    });
    let batchers: Vec<_> = batchers.collect();
    let waiting = batchers.iter().enumerate().map(|(own, batcher)| {
        let (batcher, (sender, mut handles)) = (batcher.clone(), channel(100));
        runtimes[(own + 1) % RUNTIMES].spawn(async move {
            for job in 0..JOBS {
                let mut handle = batcher.submit(job);
                handle.accepted().await.expect("open");
                sender.send((job, handle)).await.expect("received");
            }
        });
        thread::spawn(move || {
            bare_runtime().block_on(async {
                for job in 0..JOBS {
                    let (submitted, handle) = handles.recv().await.expect("one a job");
                    assert_eq!(submitted, job);
                    assert_eq!(handle.await.expect("succeeds"), (own, job));
                }
            });
        })
    });
    for thread in waiting.collect::<Vec<_>>() {
        thread.join().expect("each gets its own result");
    }
    for batcher in batchers {
        bare_runtime().block_on(batcher.shutdown()).expect("drains");
        assert_eq!(batcher.stats().completed, u64::from(JOBS));
        assert_balanced(batcher.stats());
    }
}

#[test]
fn a_runtime_that_is_not_driven_holds_things_up_and_loses_nothing() {
    let driven = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let batcher = driven.block_on(async { run(MicroBatch::builder(Gate::open())) });
    let handles = submit(&batcher, 0..3);
    assert!(handles.iter().all(|handle| !handle.is_finished()));
    for (job, handle) in (0..).zip(handles) {
        assert_eq!(driven.block_on(handle).expect("succeeds"), job);
    }
}

#[test]
fn a_dropped_runtime_leaves_no_caller_waiting() {
    for make in [pool, || {
        Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("one")
    }] {
        let runtime = make();
        let gate = Gate::closed();
        let batcher = runtime.block_on(async {
            let batcher = run(MicroBatch::builder(gate.clone()).queue_capacity(5));
            let running = submit(&batcher, 0..3);
            while gate.inside() == 0 {
                tokio::task::yield_now().await;
            }
            drop(running);
            batcher
        });
        let handles = submit(&batcher, 3..8);
        let waiters = [batcher.submit(20), batcher.submit(21)];
        let waiters = waiters.map(|handle| thread::spawn(move || handle.blocking_wait()));
        let flush = thread::spawn({
            let flush = batcher.flush();
            move || bare_runtime().block_on(flush)
        });
        drop(runtime);
        let mut abandoned = 0;
        let waited = waiters.map(|waiter| waiter.join().expect("no panic"));
        for answer in waited
            .into_iter()
            .chain(handles.into_iter().map(|it| it.blocking_wait()))
        {
            match answer {
                Err(JobError::Abandoned) => abandoned += 1,
                Err(JobError::Closed) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(abandoned >= 5);
        flush.join().expect("no panic");
        assert_eq!(gate.inside(), 0);
        assert!(batcher.is_closed() && !batcher.is_running());
        assert!(matches!(
            batcher.submit(9).blocking_wait(),
            Err(JobError::Closed)
        ));
        let _ = bare_runtime().block_on(batcher.shutdown());
        assert_eq!(batcher.stats().abandoned, batcher.stats().accepted);
        assert_balanced(batcher.stats());
    }
}

#[test]
fn a_runtime_dropped_before_the_loop_was_polled_leaves_no_caller_waiting() {
    let runtime = bare_runtime();
    let batcher = idle(MicroBatch::builder(Gate::open()));
    let handle = batcher.submit(0);
    drop(runtime.spawn(batcher.start(CancellationToken::new())));
    drop(runtime);
    assert!(matches!(handle.blocking_wait(), Err(JobError::Abandoned)));
    bare_runtime()
        .block_on(batcher.shutdown())
        .expect("nothing runs");
}

#[test]
#[should_panic(expected = "runtime")]
fn starting_outside_a_runtime_is_a_panic() {
    let _ = MicroBatch::new_running(CancellationToken::new(), Gate::open());
}

/// A processor that blocks its thread on the batch with job 0, in the way of a
/// driver that knows no async, until the sender is dropped.
fn blocking_on_zero(
    blocked: mpsc::Receiver<()>,
) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32>> {
    let blocked = Mutex::new(blocked);
    MicroBatch::builder(move |jobs: Vec<u32>| {
        if jobs.contains(&0) {
            let _ = lock(&blocked).recv();
        }
        async move { Ok::<_, String>(jobs) }
    })
    .shutdown_timeout(Duration::from_millis(20))
}

/// An abort reaches a task where it awaits, and a batch that blocks its thread
/// does not.
#[test]
fn a_batch_that_blocks_its_thread_does_not_hold_up_a_stop() {
    let (pool, reports) = (pool(), Reports::default());
    // Dropped first, if an assertion fails, so that the pool can be dropped.
    let (release, blocked) = mpsc::channel();
    let batcher = idle(blocking_on_zero(blocked).on_batch(reports.hook()));
    pool.spawn(batcher.start(CancellationToken::new()));
    let handles = submit(&batcher, 0..5);
    until(|| batcher.stats().in_flight == 1);
    let stopped = bare_runtime().block_on(batcher.shutdown());
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 5 }));
    for handle in handles {
        assert!(matches!(handle.blocking_wait(), Err(JobError::Abandoned)));
    }
    drop(release);
    drop(pool);
    // The batch has ended by now, and no caller is told twice.
    assert!(reports.all().is_empty());
    assert_eq!(batcher.stats().abandoned, 5);
    assert_balanced(batcher.stats());
}

/// The pool has one thread left, which the batch beside must not take as well.
#[test]
fn a_batch_that_blocks_its_thread_does_not_block_another() {
    let pool = pool();
    let (release, blocked) = mpsc::channel();
    let batcher = idle(blocking_on_zero(blocked).max_in_flight(2));
    pool.spawn(batcher.start(CancellationToken::new()));
    let _handles = submit(&batcher, 0..6);
    until(|| batcher.stats().in_flight > 0);
    let stop = batcher.shutdown();
    let stop = thread::spawn(move || bare_runtime().block_on(stop));
    until(|| stop.is_finished());
    let stopped = stop.join().expect("no panic");
    assert!(stopped.expect_err("one batch is blocked").abandoned >= 3);
    drop(release);
}

/// The task that called the processor is told of the end and holds it until
/// then, so a stop has to wait for that task as well.
#[test]
fn a_processor_is_gone_when_its_stop_is_done() {
    let pool = pool();
    for job in 0..200 {
        let held = Arc::new(());
        let processor = {
            let held = Arc::clone(&held);
            move |jobs: Vec<u32>| {
                let _held = &held;
                async move { Ok::<_, String>(jobs) }
            }
        };
        pool.block_on(async {
            let batcher = MicroBatch::new_running(CancellationToken::new(), processor);
            let handle = batcher.submit(job);
            batcher.shutdown().await.expect("in time");
            assert_eq!(Arc::strong_count(&held), 1);
            assert_eq!(handle.await.expect("succeeds"), job);
        });
    }
}

/// The loop ran on this thread and did not notice that the runtime was gone, and
/// its tasks with it: it kept accepting, and what it accepted hung.
#[test]
fn a_loop_that_outlives_its_runtime_leaves_no_caller_waiting() {
    let pool = pool();
    let batcher = MicroBatch::builder(Gate::open()).interval(Duration::MAX);
    let batcher = idle(batcher.max_batch_size(2).max_in_flight(3));
    let (start, handle) = (
        batcher.start(CancellationToken::new()),
        pool.handle().clone(),
    );
    let driver = thread::spawn(move || handle.block_on(start));
    for handle in submit(&batcher, 0..6) {
        handle.blocking_wait().expect("succeeds");
    }
    drop(pool);
    for _ in 0..3 {
        for handle in submit(&batcher, 0..6) {
            let answer = handle.blocking_wait();
            assert!(matches!(answer, Err(JobError::Abandoned)), "{answer:?}");
        }
        let odd = batcher.submit(6);
        bare_runtime().block_on(batcher.flush());
        assert!(matches!(odd.blocking_wait(), Err(JobError::Abandoned)));
    }
    bare_runtime()
        .block_on(batcher.shutdown())
        .expect("nothing to drain");
    assert_eq!(driver.join().expect("no panic"), Ok(()));
    assert_eq!(batcher.stats().abandoned, 21);
    assert_balanced(batcher.stats());
}
