//! The failed jobs of a batch are tried again, and only those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::ConstantBuilder;
use microbatch::{BatchProcessor, BatchProcessorExt, JobError};
use proptest::prelude::*;
use tokio::time::Instant;

use super::{Calls, batcher, cause};
use crate::support::lock;

fn pauses(times: usize) -> ConstantBuilder {
    ConstantBuilder::default()
        .with_delay(Duration::from_secs(1))
        .with_max_times(times)
}

/// Fails each job as often as it says, and then succeeds.
fn flaky(calls: &Calls<u8>) -> impl BatchProcessor<u8, Result<u8, String>, Error = String> {
    let (calls, failed) = (calls.clone(), Arc::new(Mutex::new(HashMap::new())));
    move |jobs: Vec<u8>| {
        calls.note(&jobs);
        let answer = |job: &u8| {
            let mut failed = lock(&failed);
            let times: &mut u8 = failed.entry(*job).or_default();
            *times += 1;
            match *times > *job {
                true => Ok(*job),
                false => Err(format!("{job} failed {times} times")),
            }
        };
        let results: Vec<_> = jobs.iter().map(answer).collect();
        async move { Ok(results) }
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_failed_jobs_are_tried_again_and_every_result_is_its_jobs() {
    let calls = Calls::new();
    let batcher = batcher(4, flaky(&calls).retry_items(pauses(5)));
    let start = Instant::now();
    let results = batcher.submit_all([2, 0, 1, 3]).await;
    let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(results, [Ok(2), Ok(0), Ok(1), Ok(3)]);
    assert_eq!(
        calls.all(),
        [vec![2, 0, 1, 3], vec![2, 1, 3], vec![2, 3], vec![3]]
    );
    assert_eq!(start.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_failures_is_called_once_and_at_once() {
    let calls = Calls::new();
    let batcher = batcher(2, flaky(&calls).retry_items(pauses(5)));
    let start = Instant::now();
    for result in batcher.submit_all([0, 0]).await {
        assert_eq!(result.unwrap(), Ok(0));
    }
    assert_eq!((calls.count(), start.elapsed()), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_job_keeps_its_last_error_when_the_pauses_are_used_up() {
    let calls = Calls::new();
    let batcher = batcher(2, flaky(&calls).retry_items(pauses(2)));
    let results = batcher.submit_all([1, 9]).await;
    let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(results, [Ok(1), Err("9 failed 3 times".to_owned())]);
    assert_eq!(calls.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_will_not_pass_is_not_retried() {
    let calls = Calls::new();
    let retried = flaky(&calls)
        .retry_items(pauses(5))
        .when(|error| !error.starts_with('2'));
    let batcher = batcher(3, retried);
    let results = batcher.submit_all([1, 2, 0]).await;
    let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(results, [Ok(1), Err("2 failed 1 times".to_owned()), Ok(0)]);
    assert_eq!(calls.all(), [vec![1, 2, 0], vec![1]]);
}

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Well,
    Fails,
    Panics,
    Miscounts,
}

type Answer = Result<u8, &'static str>;

/// Ends its calls as the plan says. Jobs below the number of the call succeed.
fn planned(ends: Vec<End>, calls: &Calls<u8>) -> impl BatchProcessor<u8, Answer, Error = String> {
    let (calls, ends) = (calls.clone(), Mutex::new(ends.into_iter()));
    move |jobs: Vec<u8>| {
        let number = calls.count() as u8;
        calls.note(&jobs);
        let end = lock(&ends).next().unwrap_or(End::Well);
        async move {
            let mut results = jobs
                .iter()
                .map(|job| answer(*job, number))
                .collect::<Vec<_>>();
            match end {
                End::Well => Ok(results),
                End::Fails => Err("down".to_owned()),
                End::Panics => panic!("call {number}"),
                End::Miscounts => {
                    results.push(Ok(0));
                    Ok(results)
                }
            }
        }
    }
}

fn answer(job: u8, call: u8) -> Answer {
    match job {
        200.. => Err("bad"),
        job if job > call => Err("busy"),
        job => Ok(job),
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_call_that_fails_panics_or_miscounts_does_so_as_without() {
    let calls = Calls::new();
    let retried = planned(vec![End::Fails], &calls).retry_items(pauses(5));
    let error = batcher(1, retried).submit(1).await.expect_err("fails");
    assert_eq!(cause(&error), "down");
    let retried = planned(vec![End::Panics], &Calls::new()).retry_items(pauses(5));
    let error = batcher(1, retried).submit(1).await.expect_err("panics");
    assert!(matches!(error, JobError::Panicked(message) if &*message == "call 0"));
    let retried = planned(vec![End::Miscounts], &Calls::new()).retry_items(pauses(5));
    let error = batcher(1, retried).submit(1).await.expect_err("miscounts");
    assert!(matches!(
        error,
        JobError::ResultCount {
            expected: 1,
            actual: 2
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_later_call_that_fails_panics_or_miscounts_leaves_done_what_was_done() {
    for end in [End::Fails, End::Panics, End::Miscounts] {
        let calls = Calls::new();
        let retried = planned(vec![End::Well, end], &calls).retry_items(pauses(5));
        let results = batcher(3, retried).submit_all([0, 1, 2]).await;
        let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
        assert_eq!(results, [Ok(0), Err("busy"), Err("busy")], "{end:?}");
        assert_eq!(calls.count(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_out_a_pause_longer_than_its_deadline() {
    let calls = Calls::new();
    let hours = ConstantBuilder::default().with_delay(Duration::from_secs(3600));
    let batcher = batcher(1, flaky(&calls).retry_items(hours));
    let handle = batcher.submit(1);
    tokio::task::yield_now().await;
    let timeout = batcher.shutdown().await.expect_err("the pause is too long");
    assert_eq!(timeout.abandoned, 1);
    assert!(matches!(handle.await, Err(JobError::Abandoned)));
}

/// Panics where it says, in a job's life.
#[derive(Debug, PartialEq, Clone, Copy)]
enum At {
    Nowhere,
    FirstClone,
    SecondClone,
}

#[derive(Debug)]
struct Fragile(u8, At, u8);

impl Clone for Fragile {
    fn clone(&self) -> Self {
        let clones = self.2 + 1;
        assert!(!(self.1 == At::FirstClone && clones == 1), "first clone");
        assert!(!(self.1 == At::SecondClone && clones == 2), "second clone");
        Self(self.0, self.1, clones)
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_clone_panics_keeps_its_error_and_hurts_no_other() {
    for at in [At::FirstClone, At::SecondClone] {
        let calls = Calls::<u8>::new();
        let inner = {
            let calls = calls.clone();
            move |jobs: Vec<Fragile>| {
                let number = calls.count() as u8;
                let jobs: Vec<u8> = jobs.iter().map(|job| job.0).collect();
                calls.note(&jobs);
                let results: Vec<Answer> = jobs.iter().map(|job| answer(*job, number)).collect();
                async move { Ok::<_, String>(results) }
            }
        };
        let batcher = batcher(3, inner.retry_items(pauses(3)));
        let jobs = [
            Fragile(0, at, 0),
            Fragile(1, at, 0),
            Fragile(1, At::Nowhere, 0),
        ];
        let results = batcher.submit_all(jobs).await;
        let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
        assert_eq!(results, [Ok(0), Err("busy"), Ok(1)], "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_predicate_or_a_backoff_that_panics_loses_no_result() {
    let calls = Calls::new();
    let retried = planned(vec![], &calls)
        .retry_items(pauses(3))
        .when(|error| *error == "bad" && panic!("in the predicate"));
    let results = batcher(2, retried).submit_all([0, 200]).await;
    let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(results, [Ok(0), Err("bad")]);

    let explosive = std::iter::from_fn(|| -> Option<Duration> { panic!("in the backoff") });
    let retried = planned(vec![], &Calls::new()).retry_items(explosive);
    let results = batcher(2, retried).submit_all([0, 1]).await;
    let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(results, [Ok(0), Err("busy")]);
}

/// What the jobs of one batch get, by the plain meaning of the words.
fn model(jobs: &[u8], ends: &[End], attempts: usize) -> Option<Vec<Answer>> {
    let mut results: Vec<Answer> = Vec::new();
    for call in 0..=attempts {
        let end = ends.get(call).copied().unwrap_or(End::Well);
        if call == 0 {
            if end != End::Well {
                return None;
            }
            results = jobs.iter().map(|job| answer(*job, 0)).collect();
        } else {
            if !results.contains(&Err("busy")) || end != End::Well {
                break;
            }
            for (job, result) in jobs.iter().zip(&mut results) {
                if *result == Err("busy") {
                    *result = answer(*job, call as u8);
                }
            }
        }
    }
    Some(results)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_batch_ends_as_the_words_say(
        jobs in prop::collection::vec(prop_oneof![3 => 0_u8..6, 1 => 200_u8..=255], 1..12),
        ends in prop::collection::vec(
            prop_oneof![
                6 => Just(End::Well),
                1 => Just(End::Fails),
                1 => Just(End::Panics),
                1 => Just(End::Miscounts),
            ],
            0..6,
        ),
        attempts in 0_usize..6,
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        let expected = model(&jobs, &ends, attempts);
        let calls = Calls::new();
        let zero = ConstantBuilder::default().with_delay(Duration::ZERO).with_max_times(attempts);
        let retried = planned(ends, &calls).retry_items(zero).when(|error| *error == "busy");
        let results = runtime.block_on(async {
            batcher(jobs.len(), retried).submit_all(jobs.clone()).await
        });
        match expected {
            None => prop_assert!(results.iter().all(Result::is_err)),
            Some(expected) => {
                let results: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
                prop_assert_eq!(results, expected);
            }
        }
    }
}
