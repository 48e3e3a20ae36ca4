//! The loops in which one task collects many handles.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use microbatch::{CancellationToken, JobHandle, MicroBatch};
use tokio::task::coop;
use tokio::time::{Instant, timeout};

use crate::support::{Gate, millis, run, secs, settle, submit};

const MANY: u32 = 20_000;

fn full_batches(gate: &Gate) -> MicroBatch<u32, u32> {
    run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .interval(secs(3600)))
}

/// Counts how often a future is polled.
struct Counted<F>(F, Arc<AtomicUsize>);

impl<F: Future + Unpin> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Each handle that was ready was put off by Tokio's budget once 128 results had
/// been taken, and all of them were polled again for every 128: 155 to 250 µs a job
/// at 300 000.
#[tokio::test(start_paused = true)]
async fn a_collection_polls_no_handle_more_than_a_few_times() {
    let gate = Gate::open();
    let batcher = full_batches(&gate);
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = |handle| Counted(handle, Arc::clone(&polls));
    let results = join_all(submit(&batcher, 0..MANY).into_iter().map(counted)).await;
    assert!(results.into_iter().map(Result::unwrap).eq(0..MANY));
    let mut handles: FuturesUnordered<_> =
        submit(&batcher, 0..MANY).into_iter().map(counted).collect();
    let mut sum = 0;
    while let Some(result) = handles.next().await {
        sum += u64::from(result.unwrap());
    }
    assert_eq!(sum, (0..u64::from(MANY)).sum());
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls <= 6 * MANY as usize, "{polls} polls");
}

/// A handle whose answer is there resolves, however much the task has done.
#[tokio::test(start_paused = true)]
async fn a_handle_asks_no_budget() {
    let batcher = full_batches(&Gate::open());
    let mut handles = submit(&batcher, 0..200);
    settle().await;
    // Within one poll of the task, whose budget is 128.
    poll_fn(|cx| {
        for (job, handle) in handles.iter_mut().enumerate() {
            match Pin::new(handle).poll(cx) {
                Poll::Ready(Ok(result)) => assert_eq!(result as usize, job),
                other => panic!("{job}: {other:?}"),
            }
        }
        assert!(coop::has_budget_remaining());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_again_and_again_loses_nothing() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(10));
    let mut handles = submit(&batcher, 0..1000);
    for handle in &mut handles {
        assert!(timeout(millis(1), handle).await.is_err());
    }
    gate.pass(100);
    for (job, handle) in handles.iter_mut().enumerate() {
        let mut tries = 0;
        let result = loop {
            tokio::select! {
                biased;
                result = &mut *handle => break result,
                () = tokio::time::sleep(millis(1)) => tries += 1,
            }
            assert!(tries < 10);
        };
        assert_eq!(result.unwrap() as usize, job);
    }
    assert!(gate.batches().into_iter().flatten().eq(0..1000));
}

/// A pool of uploads of 20 ms each.
fn uploads(interval: Duration) -> (MicroBatch<u32, u32>, Arc<AtomicUsize>) {
    let batches = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&batches);
    let upload = move |lines: Vec<u32>| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(millis(20)).await;
            Ok::<_, String>(lines)
        }
    };
    let batcher = MicroBatch::builder(upload)
        .max_batch_size(500)
        .max_in_flight(4)
        .interval(interval)
        .build_running(CancellationToken::new())
        .expect("good options");
    (batcher, batches)
}

/// Fewer jobs on their way than fill a batch: each wave of 32 waited out the
/// interval, 150 s for 50 000 lines.
#[tokio::test(start_paused = true)]
async fn a_stream_with_less_than_a_batch_on_its_way_does_not_wait_for_company() {
    for interval in [millis(100), Duration::MAX] {
        let (batcher, batches) = uploads(interval);
        let start = Instant::now();
        let lines = batcher.submit_stream(stream::iter(0..3200), 32);
        let lines: Vec<_> = lines.try_collect().await.unwrap();
        assert!(lines.into_iter().eq(0..3200));
        assert_eq!(batches.load(Ordering::Relaxed), 100);
        let took = start.elapsed();
        assert!(took <= secs(2) + millis(200), "{took:?}");

        let lines = batcher.submit_stream_unordered(stream::iter(0..3200), 32);
        let lines: Vec<_> = lines.try_collect().await.unwrap();
        assert_eq!(lines.len(), 3200);
        assert_eq!(batches.load(Ordering::Relaxed), 200);
    }
}

/// While others' jobs are there as well it takes them along, and its batches are
/// never smaller than what it has on its way.
#[tokio::test(start_paused = true)]
async fn a_stream_flushes_no_less_than_all_it_has_on_its_way() {
    let (batcher, batches) = uploads(secs(3600));
    let others: Vec<JobHandle<u32>> = submit(&batcher, 0..100);
    let lines = batcher.submit_stream_unordered(stream::iter(0..3200), 64);
    let lines: Vec<_> = lines.try_collect().await.unwrap();
    assert_eq!(lines.len(), 3200);
    assert!(others.iter().all(JobHandle::is_finished));
    let batches = batches.load(Ordering::Relaxed);
    assert!(batches <= 51, "{batches} batches");
}
