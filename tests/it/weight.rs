//! The weight limit (promise 4).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use microbatch::{
    BatchProcessor, FlushReason, JobError, MicroBatch, MicroBatchBuilder, TrySubmitError,
};

use crate::support::{Gate, Reports, idle, results, run, secs, settle, soon, submit};

/// Batches of up to ten, in number and weight; every job weighs what it says.
fn weighed(
    gate: &Gate,
    reports: &Reports,
) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone())
        .max_batch_size(10)
        .max_batch_weight(10, |job| *job as usize)
        .on_batch(reports.hook())
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_full_weight_is_flushed_at_once() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports));
    results(submit(&batcher, [4, 6])).await;
    assert_eq!(gate.batches(), [[4, 6]]);
    assert_eq!(gate.times(), [Duration::ZERO]);
    assert_eq!(reports.reasons(), [FlushReason::Weight]);
    assert_eq!(reports.weights(), [10]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_does_not_fit_flushes_those_before_it() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports));
    let handles = submit(&batcher, [3, 4]);
    settle().await;
    assert!(gate.batches().is_empty());
    let last = submit(&batcher, [5]);
    results(handles).await;
    assert_eq!(gate.batches(), [[3, 4]]);
    assert_eq!(reports.reasons(), [FlushReason::Weight]);
    results(last).await;
    assert_eq!(gate.batches()[1], [5]);
    assert_eq!(reports.weights(), [7, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_job_of_the_whole_limit_fits_alone() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports));
    results(submit(&batcher, [1, 10, 1, 10])).await;
    assert_eq!(gate.batches(), [[1], [10], [1], [10]]);
    assert_eq!(gate.times(), [Duration::ZERO; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_light_job_does_not_overtake_a_heavy_one() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports));
    results(submit(&batcher, [6, 7, 1, 4])).await;
    assert_eq!(gate.batches(), [vec![6], vec![7, 1], vec![4]]);
}

#[tokio::test(start_paused = true)]
async fn size_counts_beside_weight() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports).max_batch_size(2));
    results(submit(&batcher, [1, 1, 9, 9])).await;
    assert_eq!(gate.batches(), [vec![1, 1], vec![9], vec![9]]);
    use FlushReason::{Interval, Size, Weight};
    assert_eq!(reports.reasons(), [Size, Weight, Interval]);
}

#[tokio::test(start_paused = true)]
async fn weightless_jobs_are_flushed_by_size_and_interval() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports));
    results(submit(&batcher, [0; 12])).await;
    assert_eq!(gate.batches(), [vec![0; 10], vec![0; 2]]);
    assert_eq!(gate.times(), [Duration::ZERO, secs(1)]);
    use FlushReason::{Interval, Size};
    assert_eq!(reports.reasons(), [Size, Interval]);
}

#[tokio::test(start_paused = true)]
async fn weightless_jobs_fit_beside_a_full_weight() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports));
    results(submit(&batcher, [0, 10, 0])).await;
    assert_eq!(gate.batches()[0][..2], [0, 10]);
    assert!(reports.weights().iter().all(|weight| *weight <= 10));
}

#[tokio::test(start_paused = true)]
async fn no_batch_exceeds_the_weight_whatever_the_way_in() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(weighed(&gate, &reports).queue_capacity(5).max_in_flight(2));
    let weights = || (0..60).map(|turn| turn * 7 % 11);
    let bulk = batcher.submit_all(weights());
    let single = results(submit(&batcher, weights()));
    let permits = async {
        for job in weights() {
            let permit = batcher.reserve().await.expect("open");
            permit.submit(job).await.expect("succeeds");
        }
    };
    let tries = async {
        for job in weights() {
            while batcher.try_submit(job).is_err() {
                settle().await;
            }
        }
    };
    soon(async { tokio::join!(bulk, single, permits, tries) }).await;
    soon(batcher.flush()).await;
    assert_eq!(gate.batches().concat().len(), 240);
    assert!(reports.weights().iter().all(|weight| *weight <= 10));
    let sums = gate.batches().into_iter().map(|batch| batch.iter().sum());
    assert!(
        sums.zip(reports.weights())
            .all(|(sum, weight): (u32, _)| sum as usize == weight)
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_heavier_than_a_batch_is_refused_whatever_the_way_in() {
    let batcher = run(weighed(&Gate::open(), &Reports::default()).queue_capacity(1));
    let too_heavy = |error| {
        matches!(
            error,
            JobError::TooHeavy {
                weight: 11,
                limit: 10
            }
        )
    };

    let mut handle = batcher.submit(11);
    assert!(handle.is_finished());
    assert!(too_heavy(handle.accepted().await.expect_err("too heavy")));
    assert!(too_heavy(handle.await.expect_err("too heavy")));

    let refused = batcher.try_submit(11).expect_err("too heavy");
    assert_eq!(refused, TrySubmitError::TooHeavy(11));

    let permit = batcher.reserve().await.expect("open");
    assert!(too_heavy(permit.submit(11).await.expect_err("too heavy")));

    let mut all = soon(batcher.submit_all([1, 11, 2])).await;
    assert!(too_heavy(all.remove(1).expect_err("too heavy")));
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(batcher.stats().accepted, 2);
}

#[tokio::test(start_paused = true)]
async fn a_job_is_weighed_once_and_by_its_caller() {
    let weighings = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&weighings);
    let batcher = idle(
        MicroBatch::builder(Gate::open()).max_batch_weight(10, move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            1
        }),
    );
    let handles = submit(&batcher, 0..5);
    assert_eq!(weighings.load(Ordering::SeqCst), 5);
    tokio::spawn(batcher.start(Default::default()));
    results(handles).await;
    assert_eq!(weighings.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn a_weigher_that_panics_refuses_its_job_alone() {
    let batcher = run(MicroBatch::builder(Gate::open())
        .queue_capacity(1)
        .max_batch_weight(10, |job| {
            assert!(*job != 13, "unlucky");
            1
        }));
    let panicked = |error| matches!(error, JobError::Panicked(message) if &*message == "unlucky");
    assert!(panicked(batcher.submit(13).await.expect_err("panics")));
    let tried = batcher.try_submit(13).expect("a handle that knows why");
    assert!(panicked(tried.await.expect_err("panics")));
    let permit = batcher.reserve().await.expect("open");
    assert!(panicked(permit.submit(13).await.expect_err("panics")));
    // Neither the lock nor the room is lost.
    assert_eq!(results(submit(&batcher, 0..3)).await, [0, 1, 2]);
    assert_eq!(batcher.stats().accepted, 3);
}

#[tokio::test(start_paused = true)]
async fn weights_that_overflow_when_summed_still_fill_a_batch() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .max_batch_weight(usize::MAX, |_| usize::MAX)
        .on_batch(reports.hook()));
    results(submit(&batcher, 0..5)).await;
    assert_eq!(gate.batches(), [[0], [1], [2], [3], [4]]);
    assert_eq!(gate.times(), [Duration::ZERO; 5], "each is full by weight");
    assert_eq!(reports.weights(), [usize::MAX; 5]);
}

#[tokio::test(start_paused = true)]
async fn halves_that_overflow_when_summed_keep_the_limit() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let half = usize::MAX / 2 + 1;
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .max_batch_weight(usize::MAX, move |_| half)
        .on_batch(reports.hook()));
    results(submit(&batcher, 0..4)).await;
    assert_eq!(gate.batches(), [[0], [1], [2], [3]]);
    assert_eq!(reports.weights(), [half; 4]);
}
