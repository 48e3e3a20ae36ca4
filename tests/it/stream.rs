//! Streams of jobs: both adaptors keep the same promises, so most tests run
//! through each.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures::channel::mpsc;
use futures::stream::{self, FusedStream, Stream, StreamExt, TryStreamExt};
use microbatch::{CancellationToken, JobError, MicroBatch};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::support::{Wakes, echo, gated_echo, idle_echo, owning, settle, start};
use crate::watch::Watch;

type Results = Pin<Box<dyn FusedStream<Item = Result<u64, JobError>> + Send>>;
/// One of the two adaptors.
type Adaptor = fn(&MicroBatch<u64, u64>, Source, usize) -> Results;
type Source = stream::BoxStream<'static, u64>;

const ADAPTORS: [Adaptor; 2] = [
    |jobs, source, concurrency| Box::pin(jobs.submit_stream(source, concurrency)),
    |jobs, source, concurrency| Box::pin(jobs.submit_stream_unordered(source, concurrency)),
];

/// A source that counts what is pulled.
fn counted(source: impl Stream<Item = u64> + Send + 'static) -> (Source, Arc<AtomicUsize>) {
    let pulled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pulled);
    let source = source.inspect(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (source.boxed(), pulled)
}

fn poll(results: &mut (impl Stream<Item = Result<u64, JobError>> + Unpin)) -> Poll<Option<Said>> {
    let polled = results.poll_next_unpin(&mut Context::from_waker(Waker::noop()));
    polled.map(|result| result.map(said))
}

/// A result that can be compared.
type Said = Result<u64, String>;

fn said(result: Result<u64, JobError>) -> Said {
    result.map_err(|error| match error {
        JobError::Failed(cause) => cause.to_string(),
        error => format!("{error:?}"),
    })
}

async fn all(results: impl Stream<Item = Result<u64, JobError>>) -> Vec<Said> {
    results.map(said).collect().await
}

#[tokio::test(start_paused = true)]
async fn every_item_yields_its_own_result_in_order() {
    // The later the job, the sooner its batch is done.
    let backwards = |jobs: Vec<u64>| async move {
        sleep(Duration::from_millis(100 - jobs[0])).await;
        Ok::<_, String>(jobs.iter().map(|job| job * 10).collect::<Vec<_>>())
    };
    let jobs = MicroBatch::builder(backwards)
        .max_batch_size(4)
        .max_in_flight(5)
        .queue_capacity(7)
        .build_running(CancellationToken::new())
        .expect("valid");
    let results = jobs.submit_stream(stream::iter(0..100), 20);
    let expected: Vec<_> = (0..100).map(|job| Ok(job * 10)).collect();
    assert_eq!(all(results).await, expected);
}

#[tokio::test(start_paused = true)]
async fn unordered_yields_what_is_done_first() {
    let naps = |jobs: Vec<u64>| async move {
        sleep(Duration::from_millis(jobs[0])).await;
        Ok::<_, String>(jobs)
    };
    let jobs = MicroBatch::builder(naps)
        .max_batch_size(1)
        .max_in_flight(3)
        .build_running(CancellationToken::new())
        .expect("valid");
    let started = Instant::now();
    let mut results = jobs.submit_stream_unordered(stream::iter([60, 40, 20, 30]), 3);
    // The fourth starts when the third is done.
    for (job, after) in [(20, 20), (40, 40), (30, 50), (60, 60)] {
        assert_eq!(results.next().await.map(said), Some(Ok(job)));
        assert_eq!(started.elapsed().as_millis(), after);
    }
    assert!(results.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn unordered_loses_and_doubles_nothing() {
    let naps = |jobs: Vec<u64>| async move {
        sleep(Duration::from_millis(jobs[0] * 7919 % 101)).await;
        Ok::<_, String>(jobs)
    };
    let jobs = MicroBatch::builder(naps)
        .max_batch_size(5)
        .max_in_flight(4)
        .queue_capacity(11)
        .build_running(CancellationToken::new())
        .expect("valid");
    let results = jobs.submit_stream_unordered(stream::iter(0..5000), 64);
    let mut results: Vec<u64> = results.try_collect().await.expect("processed");
    assert!(!results.is_sorted());
    results.sort_unstable();
    assert!(results.into_iter().eq(0..5000));
}

#[test]
fn threads_lose_no_wake_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    // In `block_on` of this runtime, and in tasks, where what Tokio does when a
    // task has run for long enough is different.
    for adaptor in ADAPTORS {
        for spawned in [false, true] {
            let run = async move {
                let jobs = MicroBatch::builder(echo)
                    .max_batch_size(16)
                    .max_in_flight(3)
                    .queue_capacity(50)
                    .flush_when_idle(true)
                    .build_running(CancellationToken::new())
                    .expect("valid");
                let results = adaptor(&jobs, stream::iter(0..5_000).boxed(), 300);
                let mut results: Vec<u64> = results.try_collect().await.expect("processed");
                results.sort_unstable();
                assert!(results.into_iter().eq(0..5_000));
            };
            if spawned {
                let run = runtime.spawn(run);
                runtime.block_on(run).expect("no panic");
            } else {
                runtime.block_on(run);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pulled_before_there_is_room() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(2);
        let (source, pulled) = counted(stream::iter(0..10));
        let mut results = adaptor(&jobs, source, 100);
        assert!(poll(&mut results).is_pending());
        assert!(poll(&mut results).is_pending());
        assert_eq!(pulled.load(Ordering::Relaxed), 2);
        assert_eq!(jobs.stats().waiting, 1); // polled twice, one waiter

        start(&jobs);
        assert_eq!(all(results).await.len(), 10);
        assert_eq!(pulled.load(Ordering::Relaxed), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_concurrency_is_on_its_way() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(100);
        let (source, pulled) = counted(stream::iter(0..10));
        let mut results = adaptor(&jobs, source, 3);
        assert!(poll(&mut results).is_pending());
        assert_eq!(pulled.load(Ordering::Relaxed), 3);
        assert_eq!(jobs.stats().waiting, 0);

        start(&jobs);
        for yielded in 1..=10 {
            assert!(results.next().await.is_some());
            let pulled = pulled.load(Ordering::Relaxed);
            assert!(pulled <= yielded + 3, "{pulled} pulled, {yielded} yielded");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_makes_way_for_the_next_item_at_once() {
    for adaptor in ADAPTORS {
        let gate = Arc::new(Semaphore::new(0));
        let jobs = MicroBatch::builder(gated_echo(&gate))
            .max_batch_size(1)
            .build_running(CancellationToken::new())
            .expect("valid");
        let (source, pulled) = counted(stream::iter(0..10));
        let mut results = adaptor(&jobs, source, 2);
        assert!(poll(&mut results).is_pending());
        gate.add_permits(1);
        assert!(results.next().await.is_some());
        // Before the consumer asks again, which may take it long.
        assert_eq!(pulled.load(Ordering::Relaxed), 3);
    }
}

#[tokio::test]
async fn a_slow_source_holds_no_room() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(1);
        let mut results = adaptor(&jobs, stream::pending().boxed(), 5);
        assert!(poll(&mut results).is_pending());
        let _accepted = jobs.try_submit(1).expect("there is room");
        assert!(poll(&mut results).is_pending());
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_consumer_holds_no_room_and_is_no_waiter() {
    for adaptor in ADAPTORS {
        let gate = Arc::new(Semaphore::new(0));
        let jobs = MicroBatch::builder(gated_echo(&gate))
            .max_batch_size(1)
            .queue_capacity(1)
            .build_running(CancellationToken::new())
            .expect("valid");
        let mut results = adaptor(&jobs, stream::iter(0..10).boxed(), 10);
        // One is processed, one pending, one queued, and the next waits.
        for _ in 0..4 {
            assert!(poll(&mut results).is_pending());
            settle().await;
        }
        assert_eq!(jobs.stats().waiting, 1);
        gate.add_permits(1);
        assert_eq!(results.next().await.map(said), Some(Ok(0)));
        assert_eq!(jobs.stats().waiting, 0);
        // So its consumer may submit, and await that, while it polls nothing.
        gate.add_permits(9);
        assert_eq!(jobs.submit(99).await.map_err(|_| ()), Ok(99));
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_stream_keeps_its_turn() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(1);
        let first = jobs.submit(100);
        let (source, pulled) = counted(stream::iter(0..1));
        let mut results = adaptor(&jobs, source, 1);
        assert!(poll(&mut results).is_pending());
        let mut behind = jobs.submit(101);
        let waiting = behind.accepted();
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(poll(&mut results).is_pending());
        assert_eq!(pulled.load(Ordering::Relaxed), 0);

        start(&jobs);
        drop(first);
        // The loop takes up the first, and the stream is next.
        settle().await;
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(poll(&mut results).is_pending());
        assert_eq!(pulled.load(Ordering::Relaxed), 1);
        let (yielded, accepted) = tokio::join!(all(results), waiting);
        assert_eq!(yielded, [Ok(0)]);
        assert!(accepted.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_announced_waits_for_no_room() {
    for adaptor in ADAPTORS {
        let gate = Arc::new(Semaphore::new(1));
        let jobs = MicroBatch::builder(gated_echo(&gate))
            .max_batch_size(1)
            .queue_capacity(1)
            .build_running(CancellationToken::new())
            .expect("valid");
        let mut results = adaptor(&jobs, stream::iter(0..1).boxed(), 1);
        assert!(poll(&mut results).is_pending());
        settle().await;
        // Others get it stuck, with its queue full.
        let mut others = Vec::new();
        while let Ok(handle) = jobs.try_submit(9) {
            others.push(handle);
            settle().await;
        }
        assert_eq!(results.next().await.map(said), Some(Ok(0)));
        assert!(results.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_source_and_its_results() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(10);
        let mut empty = adaptor(&jobs, stream::empty().boxed(), 1);
        assert!(!empty.is_terminated());
        assert_eq!(poll(&mut empty), Poll::Ready(None));
        assert!(empty.is_terminated());

        let mut ends = 0;
        let mut items = 0..3;
        let once = stream::poll_fn(move |_| {
            let item = items.next();
            ends += usize::from(item.is_none());
            assert!(ends < 2, "polled after its end");
            Poll::Ready(item)
        });
        let mut results = adaptor(&jobs, once.boxed(), 10);
        assert!(poll(&mut results).is_pending());
        assert!(!results.is_terminated()); // the source has ended, the results are due
        start(&jobs);
        assert_eq!(all(results.by_ref()).await, [Ok(0), Ok(1), Ok(2)]);
        assert!(results.is_terminated());
        assert_eq!(poll(&mut results), Poll::Ready(None));
    }
}

#[tokio::test(start_paused = true)]
async fn size_hint_counts_what_is_on_its_way() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(3);
        let mut results = adaptor(&jobs, stream::iter(0..10).boxed(), 100);
        assert_eq!(results.size_hint(), (10, Some(10)));
        assert!(poll(&mut results).is_pending());
        assert_eq!(results.size_hint(), (10, Some(10)));
        start(&jobs);
        for left in (0..10).rev() {
            assert!(results.next().await.is_some());
            assert_eq!(results.size_hint(), (left, Some(left)));
        }

        let jobs = idle_echo(3);
        let endless = adaptor(&jobs, stream::repeat(1).boxed(), 100);
        assert_eq!(endless.size_hint(), (usize::MAX, None));
        let (sender, receiver) = mpsc::unbounded();
        let mut unknown = adaptor(&jobs, receiver.boxed(), 100);
        sender.unbounded_send(1).expect("sent");
        drop(sender);
        assert!(poll(&mut unknown).is_pending());
        assert_eq!(unknown.size_hint(), (1, Some(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_fails_its_own_items_only() {
    for adaptor in ADAPTORS {
        let moody = |jobs: Vec<u64>| async move {
            match jobs[0] {
                2 => Err("no".to_owned()),
                4 => panic!("ouch"),
                6 => Ok(vec![]),
                _ => Ok(jobs),
            }
        };
        let jobs = MicroBatch::builder(moody)
            .max_batch_size(2)
            .build_running(CancellationToken::new())
            .expect("valid");
        let results = adaptor(&jobs, stream::iter(0..10).boxed(), 4);
        let no = Err("no".to_owned());
        let panicked = Err("Panicked(\"ouch\")".to_owned());
        let count = Err("ResultCount { expected: 2, actual: 0 }".to_owned());
        assert_eq!(
            all(results).await,
            [
                Ok(0),
                Ok(1),
                no.clone(),
                no,
                panicked.clone(),
                panicked,
                count.clone(),
                count,
                Ok(8),
                Ok(9)
            ]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_too_heavy_gives_its_room_back() {
    for adaptor in ADAPTORS {
        let jobs = MicroBatch::builder(echo)
            .max_batch_weight(10, |job: &u64| match job {
                3 => panic!("unknown weight"),
                job => *job as usize,
            })
            .queue_capacity(1)
            .build_running(CancellationToken::new())
            .expect("valid");
        let mut results = adaptor(&jobs, stream::iter([11, 1, 12, 3, 2]).boxed(), 1);
        let mut errors = Vec::new();
        while let Some(result) = results.next().await {
            errors.push(said(result));
        }
        let heavy = |weight| Err(format!("TooHeavy {{ weight: {weight}, limit: 10 }}"));
        let panicked = Err("Panicked(\"unknown weight\")".to_owned());
        assert_eq!(errors, [heavy(11), Ok(1), heavy(12), panicked, Ok(2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn once_closed_each_item_left_says_so() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(2);
        let (source, pulled) = counted(stream::iter(0..7));
        let results = adaptor(&jobs, source, 3);
        let results = tokio::spawn(all(results));
        settle().await;
        assert_eq!(jobs.stats().waiting, 1);
        // It waits for room, and is refused. The two that
        // were accepted are processed.
        start(&jobs);
        jobs.shutdown().await.expect("drained");
        let results = results.await.expect("no panic");
        assert_eq!(results.len(), 7);
        assert_eq!(pulled.load(Ordering::Relaxed), 7);
        let (done, closed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(done, [Ok(0), Ok(1)]);
        assert_eq!(closed, vec![Err("Closed".to_owned()); 5]);
    }
}

#[tokio::test]
async fn a_stop_before_the_start_abandons_what_was_accepted() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(2);
        let mut results = adaptor(&jobs, stream::iter(0..3).boxed(), 10);
        assert!(poll(&mut results).is_pending());
        jobs.shutdown().await.expect("nothing to drain");
        let abandoned = Err("Abandoned".to_owned());
        let closed = Err("Closed".to_owned());
        let mut results = all(results).await;
        results.sort_unstable();
        assert_eq!(results, [abandoned.clone(), abandoned, closed]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_aborted_loop_leaves_no_item_unanswered() {
    for adaptor in ADAPTORS {
        let gate = Arc::new(Semaphore::new(2));
        let jobs = MicroBatch::builder(gated_echo(&gate))
            .max_batch_size(1)
            .queue_capacity(1)
            .build()
            .expect("valid");
        let run = tokio::spawn(jobs.start(CancellationToken::new()));
        let results = tokio::spawn(all(adaptor(&jobs, stream::iter(0..9).boxed(), 9)));
        settle().await;
        run.abort();
        let results = results.await.expect("no panic");
        // Two done; one in the processor, one pending and one queued.
        assert_eq!(results[..2], [Ok(0), Ok(1)]);
        assert_eq!(results[2..5], vec![Err("Abandoned".to_owned()); 3]);
        assert_eq!(results[5..], vec![Err("Closed".to_owned()); 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_at_the_first_error_leaves_the_source_alone() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(2);
        let (source, pulled) = counted(stream::iter(0..100));
        let mut results = adaptor(&jobs, source, 50);
        assert!(poll(&mut results).is_pending());
        start(&jobs);
        jobs.shutdown().await.expect("drained");
        let mut done = Vec::new();
        let stopped = results.try_for_each(|result| {
            done.push(result);
            std::future::ready(Ok(()))
        });
        assert!(matches!(stopped.await, Err(JobError::Closed)));
        assert_eq!(done, [0, 1]);
        assert_eq!(pulled.load(Ordering::Relaxed), 3); // the third said so
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_it_leaves_the_waiters_and_what_was_accepted_is_processed() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(2);
        let mut results = adaptor(&jobs, stream::iter(0..10).boxed(), 10);
        assert!(poll(&mut results).is_pending());
        drop(results);
        assert_eq!(jobs.stats().waiting, 0);
        start(&jobs);
        jobs.shutdown().await.expect("drained");
        assert_eq!(jobs.stats().completed, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_with_room_granted_it_gives_the_room_back() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(1);
        let first = jobs.submit(1);
        let mut results = adaptor(&jobs, stream::iter(0..10).boxed(), 10);
        assert!(poll(&mut results).is_pending());
        start(&jobs);
        settle().await; // the loop takes the first up
        assert!(jobs.try_submit(2).is_err());
        drop(results);
        assert!(jobs.try_submit(2).is_ok());
        drop(first);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_last_of_all_it_withdraws_under_cancel_on_drop() {
    for adaptor in ADAPTORS {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let jobs = MicroBatch::builder(move |jobs: Vec<u64>| {
            count.fetch_add(jobs.len(), Ordering::Relaxed);
            echo(jobs)
        })
        .max_batch_size(10)
        .cancel_on_drop(true)
        .build()
        .expect("valid");
        let run = tokio::spawn(jobs.start(CancellationToken::new()));
        let mut results = adaptor(&jobs, stream::iter(0..3).boxed(), 5);
        assert!(poll(&mut results).is_pending());
        settle().await;
        // The stream is the last to hold the micro-batcher, which it ends.
        drop(jobs);
        drop(results);
        run.await.expect("no panic").expect("drained");
        assert_eq!(seen.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn it_keeps_the_loop_alive_until_it_is_dropped() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(1);
        start(&jobs);
        let results = adaptor(&jobs, stream::iter(0..20).boxed(), 3);
        drop(jobs);
        assert!(all(results).await.iter().all(Result::is_ok));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_source_spares_the_results_and_the_room() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(4);
        let source = stream::iter(0..9).inspect(|item| assert!(*item < 2, "no item {item}"));
        let mut results = adaptor(&jobs, source.boxed(), 100);
        let panic = catch_unwind(AssertUnwindSafe(|| poll(&mut results)));
        let panic = panic.expect_err("it reaches the task that polls");
        assert_eq!(
            panic.downcast_ref::<String>().map(String::as_str),
            Some("no item 2")
        );
        assert_eq!(results.size_hint(), (2, Some(2)));
        let _two_more: Vec<_> = (0..2)
            .map(|job| jobs.try_submit(job).expect("room"))
            .collect();
        start(&jobs);
        assert_eq!(all(results).await, [Ok(0), Ok(1)]);
    }
}

/// The result was taken before the source was asked for the next item, and was
/// lost with the stack when that panicked.
#[tokio::test(start_paused = true)]
async fn a_panicking_source_spares_the_result_that_was_due_in_the_same_poll() {
    for adaptor in ADAPTORS {
        let jobs = idle_echo(4);
        start(&jobs);
        let source = stream::iter(0..9).inspect(|item| assert!(*item < 1, "no item {item}"));
        let mut results = adaptor(&jobs, source.boxed(), 1);
        assert!(poll(&mut results).is_pending());
        jobs.flush().await;
        assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut results))).is_err());
        assert!(!results.is_terminated());
        assert_eq!(results.size_hint(), (1, Some(1)));
        assert_eq!(all(results).await, [Ok(0)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_without_end_lets_others_run() {
    for adaptor in ADAPTORS {
        settle().await; // with all that Tokio allows a task in one go
        // No limit of any kind ends the pulling.
        let jobs = MicroBatch::builder(echo)
            .max_batch_size(1000)
            .queue_capacity(usize::MAX)
            .build()
            .expect("valid");
        let (source, pulled) = counted(stream::repeat(1));
        let mut results = adaptor(&jobs, source, usize::MAX);
        assert!(poll(&mut results).is_pending());
        let once = pulled.load(Ordering::Relaxed);
        assert!((1..1000).contains(&once), "{once} at once");

        // And its results are seen, although it always has more.
        start(&jobs);
        for _ in 0..200 {
            assert_eq!(results.next().await.map(said), Some(Ok(1)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_polled_last_is_woken() {
    for adaptor in ADAPTORS {
        let gate = Arc::new(Semaphore::new(0));
        let jobs = MicroBatch::builder(gated_echo(&gate))
            .max_batch_size(1)
            .build_running(CancellationToken::new())
            .expect("valid");
        let mut results = adaptor(&jobs, stream::iter(0..2).boxed(), 2);
        let (first, last) = (Arc::<Wakes>::default(), Arc::<Wakes>::default());
        for wakes in [&first, &last] {
            let waker = Waker::from(Arc::clone(wakes));
            assert!(
                results
                    .poll_next_unpin(&mut Context::from_waker(&waker))
                    .is_pending()
            );
        }
        gate.add_permits(1);
        settle().await;
        assert_eq!(first.get(), 0);
        assert_eq!(last.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn it_needs_neither_send_nor_a_consumer_that_is_quick() {
    // A source that stays on its thread, and borrows.
    let pulled = Rc::new(Cell::new(0));
    let source = stream::iter(0..30).inspect(|_| pulled.set(pulled.get() + 1));
    let jobs = MicroBatch::new_running(CancellationToken::new(), echo);
    let mut results = std::pin::pin!(jobs.submit_stream(source, 5));
    let mut yielded = 0;
    while let Some(result) = results.next().await {
        assert_eq!(said(result), Ok(yielded));
        yielded += 1;
        sleep(Duration::from_secs(10)).await;
        assert!(pulled.get() <= yielded + 5);
    }
    assert_eq!(yielded, 30);
}

#[test]
fn a_concurrency_of_zero_is_refused_where_it_is_given() {
    let jobs = idle_echo(1);
    for adaptor in ADAPTORS {
        let refused = catch_unwind(AssertUnwindSafe(|| {
            adaptor(&jobs, stream::empty().boxed(), 0)
        }));
        let panic = refused.err().expect("refused");
        assert_eq!(
            panic.downcast_ref::<&str>(),
            Some(&"`concurrency` must be greater than zero")
        );
    }
}

#[test]
fn debug_says_how_it_stands() {
    let jobs = idle_echo(10);
    let mut results = jobs.submit_stream(stream::iter(0..3), 2);
    assert!(poll(&mut results).is_pending());
    assert_eq!(
        format!("{results:?}"),
        "SubmitStream { concurrency: 2, due: 2, exhausted: false, .. }"
    );
}

/// The waker that the unordered adaptor replaced was dropped under the lock under
/// which results ring, and what it was the last of may be what answers them.
#[test]
fn the_stream_may_move_to_another_task() {
    let watch = Watch::start();
    for adaptor in ADAPTORS {
        watch.at("a waker dropped under the lock of a stream".to_owned());
        let jobs = idle_echo(2);
        let first = owning(Box::pin(jobs.start(CancellationToken::new())));
        let mut results = adaptor(&jobs, stream::iter(0..1).boxed(), 1);
        let polled = results.poll_next_unpin(&mut Context::from_waker(&first));
        assert!(polled.is_pending());
        drop(first);
        // The first of these drops the loop, the other sees its answer.
        let result = (0..2).find_map(|_| results.next().now_or_never().flatten());
        assert!(
            matches!(result, Some(Err(JobError::Abandoned))),
            "{result:?}"
        );
    }
}
