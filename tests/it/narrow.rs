//! Streams that are narrower than a batch: they never fill one, and so must not
//! wait for the interval.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use microbatch::{CancellationToken, JobError, MicroBatch};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{AGES, Gate, Stack, millis, poll_once, run, secs, settle, soon, submit};

/// A multiple of the streams' width, so that no rest is left.
const ITEMS: u32 = 32 * 1_600;

fn wide(interval: Duration) -> (MicroBatch<u32, u32>, Arc<AtomicU32>) {
    let batches = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&batches);
    let builder = MicroBatch::builder(move |jobs: Vec<u32>| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(millis(20)).await;
            Ok::<_, Infallible>(jobs)
        }
    });
    let batcher = run(builder
        .max_batch_size(500)
        .max_in_flight(4)
        .interval(interval));
    (batcher, batches)
}

/// Collects, and returns how many there were and how long it took.
async fn collect(results: impl Stream<Item = Result<u32, JobError>>) -> (u32, Duration) {
    let began = Instant::now();
    let mut results = Box::pin(results);
    let mut count = 0;
    let all = async {
        while let Some(result) = results.next().await {
            result.expect("succeeds");
            count += 1;
        }
    };
    timeout(AGES, all).await.expect("ends");
    (count, began.elapsed())
}

/// A stream of 32 before batches of 500 waited the interval out at each batch,
/// and so took six times as long as the processor.
#[tokio::test(start_paused = true)]
async fn a_narrow_stream_takes_what_its_batches_take() {
    for interval in [millis(100), secs(3_600)] {
        for unordered in [false, true] {
            let (batcher, batches) = wide(interval);
            let source = stream::iter(0..ITEMS);
            let (count, took) = if unordered {
                collect(batcher.submit_stream_unordered(source, 32)).await
            } else {
                collect(batcher.submit_stream(source, 32)).await
            };
            assert_eq!(count, ITEMS);
            let ideal = millis(20) * ITEMS.div_ceil(32);
            assert!(took <= ideal * 11 / 10, "{took:?}");
            assert!(batches.load(Ordering::SeqCst) <= ITEMS.div_ceil(32) + 10);
        }
    }
}

/// The narrowest of all makes batches of one, without waiting.
#[tokio::test(start_paused = true)]
async fn a_stream_of_one_takes_what_its_batches_take() {
    for unordered in [false, true] {
        let (batcher, _) = wide(secs(1));
        let source = stream::iter(0..1_000);
        let (count, took) = if unordered {
            collect(batcher.submit_stream_unordered(source, 1)).await
        } else {
            collect(batcher.submit_stream(source, 1)).await
        };
        assert_eq!(count, 1_000);
        assert!(took <= millis(21) * 1_000, "{took:?}");
    }
}

/// Where nothing but size and flushes sets a batch off, a stream whose length is a
/// multiple of its width still ends.
#[tokio::test(start_paused = true)]
async fn a_narrow_stream_gets_on_without_an_interval() {
    for width in [1, 10, 32] {
        for unordered in [false, true] {
            let (batcher, _) = wide(Duration::MAX);
            let source = stream::iter(0..320 * width);
            let concurrency = width as usize;
            let mut results = if unordered {
                batcher.submit_stream_unordered(source, concurrency).boxed()
            } else {
                batcher.submit_stream(source, concurrency).boxed()
            };
            for _ in 0..320 * width {
                soon(results.next()).await.expect("more").expect("succeeds");
            }
            assert!(soon(results.next()).await.is_none());
        }
    }
}

/// Where others submit as well, a stream still gets on, and does not flush what
/// they have for each of its results.
#[tokio::test(start_paused = true)]
async fn a_narrow_stream_among_others_gets_on() {
    let (batcher, batches) = wide(millis(100));
    let others = batcher.clone();
    let others = tokio::spawn(async move {
        for _ in 0..1_000 {
            drop(submit(&others, 0..20));
            sleep(millis(5)).await;
        }
    });
    let streams: Vec<_> = (0..4)
        .map(|_| {
            let stream = batcher.submit_stream(stream::iter(0..5_000), 32);
            tokio::spawn(collect(stream))
        })
        .collect();
    let ideal = millis(20) * 5_000_u32.div_ceil(32);
    for stream in streams {
        let (count, took) = soon(stream).await.expect("no panic");
        assert_eq!(count, 5_000);
        assert!(took <= ideal * 12 / 10 + millis(100), "{took:?} {ideal:?}");
    }
    soon(others).await.expect("no panic");
    assert!(batches.load(Ordering::SeqCst) <= 1_500, "{batches:?}");
}

/// From a thread of its own a stream sees its results come one by one, and must
/// not take the first of them for all there is.
#[test]
fn on_threads_a_narrow_stream_makes_no_swarm_of_small_batches() {
    for unordered in [false, true] {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let batches = runtime.block_on(async {
            let batches = Arc::new(AtomicU32::new(0));
            let count = Arc::clone(&batches);
            let batcher = MicroBatch::builder(move |jobs: Vec<u32>| {
                count.fetch_add(1, Ordering::SeqCst);
                async move {
                    tokio::task::yield_now().await;
                    Ok::<_, Infallible>(jobs)
                }
            })
            .max_batch_size(500)
            .max_in_flight(4)
            .interval(millis(100))
            .build_running(CancellationToken::new())
            .expect("valid");
            let source = stream::iter(0..ITEMS);
            let all = if unordered {
                tokio::spawn(collect(batcher.submit_stream_unordered(source, 32)))
            } else {
                tokio::spawn(collect(batcher.submit_stream(source, 32)))
            };
            let (count, _) = all.await.expect("no panic");
            assert_eq!(count, ITEMS);
            batches.load(Ordering::SeqCst)
        });
        let ideal = ITEMS.div_ceil(32);
        assert!(batches <= ideal * 4, "{batches} for {ideal}");
    }
}

/// A stream in order waits for its first job alone. In a storage with an order of
/// its own another may be in a batch while the first waits, and the stream, which
/// held that its result would come by itself, waited for ever.
#[tokio::test(start_paused = true)]
async fn a_stream_whose_first_job_is_passed_over_gets_on() {
    for unordered in [false, true] {
        let gate = Gate::closed();
        let batcher = run(MicroBatch::builder(gate.clone())
            .storage(Stack::of_at_most(usize::MAX))
            .interval(Duration::MAX));
        let (items, mut source) = mpsc::unbounded_channel();
        let source = stream::poll_fn(move |cx| source.poll_recv(cx));
        let mut results = if unordered {
            batcher.submit_stream_unordered(source, 3).boxed()
        } else {
            batcher.submit_stream(source, 3).boxed()
        };
        // The second job is in a batch with those of others, the first is not.
        items.send(1).expect("read");
        items.send(2).expect("read");
        let mut next = results.next();
        assert!(poll_once(&mut next).is_pending());
        let _others = submit(&batcher, [10, 11]);
        settle().await;
        assert_eq!(gate.batches(), [[11, 10, 2]]);
        items.send(3).expect("read");
        let next = tokio::spawn(async move { results.next().await.map(drop) });
        settle().await;
        gate.pass(99);
        timeout(AGES, next)
            .await
            .expect("gets on")
            .expect("no panic")
            .expect("more");
    }
}
