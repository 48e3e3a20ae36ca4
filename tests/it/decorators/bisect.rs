use std::collections::HashSet;
use std::ops::Range;

use microbatch::{BatchProcessor, BatchProcessorExt, JobError};

use super::{Calls, batcher, cause};

/// Fails or panics when a poison job is in the batch, and doubles otherwise.
fn all_or_nothing(
    poison: &[u32],
    panics: bool,
    calls: &Calls<u32>,
) -> impl BatchProcessor<u32, u32, Error = String> {
    let poison: HashSet<u32> = poison.iter().copied().collect();
    let calls = calls.clone();
    move |jobs: Vec<u32>| {
        calls.note(&jobs);
        let guilty = jobs.iter().find(|job| poison.contains(job)).copied();
        async move {
            match guilty {
                Some(job) if panics => panic!("poison {job}"),
                Some(job) => Err(format!("poison {job}")),
                None => Ok(jobs.iter().map(|job| job * 2).collect()),
            }
        }
    }
}

/// Runs jobs 0 to 1023 with this poison and returns the number of calls.
async fn isolate(poison: &[u32], panics: bool) -> usize {
    let calls = Calls::new();
    let batcher = batcher(1024, all_or_nothing(poison, panics, &calls).bisect());
    let results = batcher.submit_all(0..1024).await;
    for (job, result) in (0..).zip(results) {
        match result.expect("bisect never fails a batch") {
            Ok(double) => {
                assert_eq!(double, job * 2);
                assert!(!poison.contains(&job));
            }
            Err(JobError::Panicked(message)) if panics => {
                assert_eq!(*message, format!("poison {job}"));
            }
            Err(error) => assert_eq!(cause(&error), format!("poison {job}")),
        }
    }
    assert_eq!(batcher.stats().batches, 1);
    calls.count()
}

#[tokio::test(start_paused = true)]
async fn one_poison_job_in_1024_costs_at_most_21_calls() {
    for panics in [false, true] {
        for job in [0, 1, 511, 512, 700, 1023] {
            assert_eq!(isolate(&[job], panics).await, 21);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn seven_random_poison_jobs_in_1024_are_isolated() {
    // Drawn once at random, then close together, then as far apart as can be.
    for poison in [
        [17, 93, 240, 402, 633, 790, 1001],
        [5, 6, 7, 300, 301, 888, 1023],
        [128, 256, 384, 512, 640, 768, 896],
    ] {
        let calls = calls_of_a_search(0..1024, &poison);
        assert!(calls <= 7 * 2 * 10 + 1);
        for panics in [false, true] {
            assert_eq!(isolate(&poison, panics).await, calls);
        }
    }
}

/// What halving costs: a call, and both halves where there is poison.
fn calls_of_a_search(jobs: Range<u32>, poison: &[u32]) -> usize {
    if jobs.len() == 1 || !poison.iter().any(|job| jobs.contains(job)) {
        return 1;
    }
    let middle = jobs.start + (jobs.end - jobs.start) / 2;
    1 + calls_of_a_search(jobs.start..middle, poison) + calls_of_a_search(middle..jobs.end, poison)
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_poison_is_one_call() {
    assert_eq!(isolate(&[], false).await, 1);
}

#[tokio::test(start_paused = true)]
async fn all_poison_gets_each_its_own_error() {
    let calls = Calls::new();
    let batcher = batcher(4, all_or_nothing(&[0, 1, 2, 3], false, &calls).bisect());
    for (job, result) in batcher.submit_all(0..4).await.into_iter().enumerate() {
        let error = result.expect("no batch fails").expect_err("poison");
        assert_eq!(cause(&error), format!("poison {job}"));
    }
    assert_eq!(calls.count(), 7);
}

#[tokio::test(start_paused = true)]
async fn halves_are_processed_in_order() {
    let calls = Calls::new();
    let batcher = batcher(4, all_or_nothing(&[2], false, &calls).bisect());
    batcher.submit_all(0..4).await;
    let expected: [&[u32]; 5] = [&[0, 1, 2, 3], &[0, 1], &[2, 3], &[2], &[3]];
    assert_eq!(calls.all(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_no_job_causes_is_not_split() {
    let calls = Calls::new();
    let broken = {
        let calls = calls.clone();
        move |jobs: Vec<u32>| {
            calls.note(&jobs);
            async move { Err::<Vec<u32>, _>("connection refused") }
        }
    };
    let batcher = batcher(
        4,
        broken
            .bisect()
            .when(|error| error.starts_with("constraint")),
    );
    for result in batcher.submit_all(0..4).await {
        let error = result.expect("no batch fails").expect_err("broken");
        assert_eq!(cause(&error), "connection refused");
    }
    assert_eq!(calls.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_of_results_is_split_and_never_misdelivered() {
    let short = |jobs: Vec<u32>| async move {
        // Loses the row of job 1.
        Ok::<_, String>(jobs.into_iter().filter(|job| *job != 1).collect())
    };
    let batcher = batcher(4, short.bisect());
    let results = batcher.submit_all(0..4).await;
    for (job, result) in (0..).zip(results) {
        match result.expect("no batch fails") {
            Ok(result) => assert_eq!(result, job),
            Err(JobError::ResultCount { expected, actual }) => {
                assert_eq!((job, expected, actual), (1, 1, 0));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_drops_a_search_that_takes_too_long() {
    let slow = |_: Vec<u32>| async move {
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        Err::<Vec<u32>, _>("no")
    };
    let batcher = batcher(1024, slow.bisect());
    let handles: Vec<_> = (0..1024).map(|job| batcher.submit(job)).collect();
    let timeout = batcher
        .shutdown()
        .await
        .expect_err("3 s a call, 5 s in all");
    assert_eq!(timeout.abandoned, 1024);
    for handle in handles {
        assert!(matches!(handle.await, Err(JobError::Abandoned)));
    }
}
