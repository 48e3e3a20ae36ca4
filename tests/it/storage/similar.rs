//! Jobs of like size together. A job is its own key.

use std::convert::Infallible;
use std::time::Duration;

use microbatch::{CancellationToken, Keyed, KeyedJob, MicroBatch, Similar};
use proptest::prelude::*;

use super::watched::{Event, any_script, fitting, kind, weight};
use crate::support::{Gate, Reports, idle, results, run, settle, soon, submit};

fn similar() -> Similar<u32, u32> {
    Similar::by(|job| u64::from(*job))
}

/// The batches that the storage makes of jobs that are all there at the start.
async fn batches(storage: Similar<u32, u32>, jobs: &[u32]) -> Vec<Vec<u32>> {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).storage(storage));
    let handles = submit(&batcher, jobs.iter().copied());
    tokio::spawn(batcher.start(CancellationToken::new()));
    assert_eq!(results(handles).await, jobs);
    gate.batches()
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_the_oldest_job_and_those_nearest_to_it() {
    let jobs = [50, 10, 90, 52, 11, 45, 91, 12, 95];
    let expected = [[50, 52, 45], [10, 11, 12], [90, 91, 95]];
    assert_eq!(batches(similar(), &jobs).await, expected);
}

#[tokio::test(start_paused = true)]
async fn the_older_of_two_jobs_goes_first_where_both_are_as_near() {
    // Above before below, and below before above.
    let expected = [vec![50, 53, 47], vec![10, 60]];
    assert_eq!(batches(similar(), &[50, 10, 53, 47, 60]).await, expected);
    let expected = [vec![50, 47, 53], vec![10, 60]];
    assert_eq!(batches(similar(), &[50, 10, 47, 53, 60]).await, expected);
    // Of equal keys, too.
    let tens = Similar::by(|job: &u32| u64::from(*job / 10));
    let expected = [vec![53, 51, 59], vec![10, 12, 11], vec![50]];
    let jobs = [53, 10, 51, 59, 12, 50, 11];
    assert_eq!(batches(tens, &jobs).await, expected);
}

#[tokio::test(start_paused = true)]
async fn keys_may_be_as_far_apart_as_they_can() {
    let far = Similar::by(|job: &u32| match job % 2 {
        0 => u64::from(*job),
        _ => u64::MAX - u64::from(*job),
    });
    let expected = [vec![0, 2, 4], vec![1, 3, 5], vec![6, 7]];
    assert_eq!(batches(far, &[0, 1, 2, 3, 4, 5, 6, 7]).await, expected);
}

#[tokio::test(start_paused = true)]
async fn an_outlier_does_not_wait_for_its_like() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).storage(similar()));
    let mut handles = submit(&batcher, [1, 2, 3]);
    settle().await;
    handles.extend(submit(&batcher, [1_000, 4, 5, 6, 7, 8]));
    settle().await;
    gate.pass(9);
    results(handles).await;
    assert_eq!(gate.batches()[1], [1_000, 8, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_ends_at_the_first_neighbour_that_does_not_fit() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = idle(
        MicroBatch::builder(gate.clone())
            .max_batch_weight(10, |job| *job as usize)
            .on_batch(reports.hook())
            .storage(similar()),
    );
    let handles = submit(&batcher, [5, 1, 6, 2, 10]);
    tokio::spawn(batcher.start(CancellationToken::new()));
    results(handles).await;
    assert_eq!(gate.batches(), [vec![5], vec![1, 2, 6], vec![10]]);
    assert_eq!(reports.weights(), [5, 9, 10]);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_key_panics_has_the_key_zero() {
    let storage = Similar::by(|job: &u32| {
        assert!(*job != 13, "key");
        u64::from(*job)
    });
    let expected = [vec![50, 51, 52], vec![13, 1, 2]];
    let jobs = [50, 51, 13, 1, 52, 2];
    assert_eq!(batches(storage, &jobs).await, expected);
}

#[tokio::test(start_paused = true)]
async fn jobs_are_kept_while_others_are_withdrawn() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .cancel_on_drop(true)
        .storage(similar()));
    let mut handles = submit(&batcher, [1, 2, 3]);
    settle().await;
    handles.extend(submit(&batcher, [90, 50]));
    drop(submit(&batcher, [91, 92, 51, 49]));
    handles.extend(submit(&batcher, [52, 93]));
    settle().await;
    gate.pass(9);
    results(handles).await;
    assert_eq!(gate.batches()[1..], [vec![90, 93, 52], vec![50]]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_empties_the_storage() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(4)
        .interval(Duration::MAX)
        .storage(similar()));
    let handles = submit(&batcher, [5, 90, 6, 91, 7, 92]);
    soon(batcher.shutdown()).await.expect("drains");
    results(handles).await;
    assert_eq!(gate.batches(), [vec![5, 6, 7, 90], vec![91, 92]]);
}

#[tokio::test(start_paused = true)]
async fn similar_jobs_go_under_keys() {
    let (log, mut batches) = tokio::sync::mpsc::unbounded_channel();
    let processor = move |_key: u8, jobs: Vec<u32>| {
        log.send(jobs.clone()).expect("received");
        async move { Ok::<_, Infallible>(jobs) }
    };
    let keyed = Keyed::builder(processor)
        .options(|options| {
            let key = |entry: &KeyedJob<u8, u32>| u64::from(*entry.job());
            options.storage(Similar::by(key)).max_batch_size(4)
        })
        .build_running(CancellationToken::new())
        .expect("valid options");
    let handles = [5, 90, 6].map(|job| keyed.submit(7, job)).into();
    results(handles).await;
    assert_eq!(batches.recv().await, Some(vec![5, 6, 90]));
}

#[cfg(feature = "tracked")]
#[tokio::test(start_paused = true)]
async fn similar_jobs_go_under_ids() {
    use microbatch::{Tracked, TrackedJob};

    let gate = Gate::open();
    let tracked = Tracked::builder(gate.clone())
        .options(|options| {
            let key = |entry: &TrackedJob<u32, u32, u32>| u64::from(*entry.job());
            options.storage(Similar::by(key)).max_batch_size(4)
        })
        .build_running(CancellationToken::new())
        .expect("valid options");
    let handles = [5, 90, 6].map(|job| tracked.submit(job, job)).into();
    results(handles).await;
    assert_eq!(gate.batches(), [[5, 6, 90]]);
}

#[test]
fn similar_shows_how_many_jobs_it_holds() {
    assert_eq!(format!("{:?}", similar()), "Similar { len: 0, .. }");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_oldest_job_is_in_every_batch_with_those_nearest_to_it(script in any_script(30)) {
        let storage = Similar::by(|job| u64::from(kind(*job)));
        // Each job with the number of batches that it may be in.
        let mut held: Vec<(u32, usize)> = Vec::new();
        for event in script.play(storage)? {
            match event {
                Event::Append(job, _) => held.push((job, held.len() + 1)),
                Event::Take { max_jobs, max_weight, batch, .. } => {
                    let Some(&(oldest, _)) = held.first() else {
                        prop_assert!(batch.is_empty());
                        continue;
                    };
                    let mut nearest: Vec<u32> = held.iter().map(|(job, _)| *job).collect();
                    // Stable, so the older go first.
                    nearest.sort_by_key(|job| kind(*job).abs_diff(kind(oldest)));
                    prop_assert_eq!(nearest[0], oldest);
                    prop_assert_eq!(&batch, &fitting(nearest, max_jobs, max_weight));
                    prop_assert!(weight(oldest) > max_weight || batch.contains(&oldest));
                    held.retain(|(job, _)| !batch.contains(job));
                    for (job, batches) in &mut held {
                        *batches -= 1;
                        prop_assert!(*batches > 0, "{} starves", job);
                    }
                }
            }
        }
        prop_assert!(held.is_empty());
    }
}
