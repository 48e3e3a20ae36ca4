use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{ConstantBuilder, ExponentialBuilder};
use microbatch::{BatchProcessor, BatchProcessorExt, CancellationToken, JobError, MicroBatch};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::Instant;

use super::{Calls, batcher, cause};
use crate::support::{lock, secs};

type Items = Vec<Result<u32, String>>;

/// Refuses a job that many times, by its number in the tens; one with a number in the
/// hundreds is malformed.
fn throttled(
    calls: &Calls<u32>,
) -> impl BatchProcessor<u32, Result<u32, String>, Error = String> + use<> {
    let calls = calls.clone();
    let refused = Arc::new(Mutex::new(HashMap::new()));
    move |jobs: Vec<u32>| {
        calls.note(&jobs);
        let mut refused = lock(&refused);
        let mut put = |job: u32| {
            let times: &mut u32 = refused.entry(job).or_default();
            *times += 1;
            match job {
                100.. => Err("malformed".to_owned()),
                _ if *times <= job / 10 => Err(format!("refused {times}")),
                _ => Ok(job),
            }
        };
        let results: Items = jobs.into_iter().map(&mut put).collect();
        async move { Ok(results) }
    }
}

fn pauses(times: usize) -> ConstantBuilder {
    ConstantBuilder::default()
        .with_delay(secs(1))
        .with_max_times(times)
}

/// The results of a batch that succeeds.
async fn put(batcher: &MicroBatch<u32, Result<u32, String>>, jobs: &[u32]) -> Items {
    let results = batcher.submit_all(jobs.iter().copied()).await.into_iter();
    results.map(|result| result.expect("succeeds")).collect()
}

#[tokio::test(start_paused = true)]
async fn only_the_failed_jobs_are_tried_again() {
    let calls = Calls::new();
    let batcher = batcher(5, throttled(&calls).retry_items(pauses(9)));
    let start = Instant::now();
    let results = put(&batcher, &[20, 1, 10, 2, 21]).await;
    assert_eq!(results, [20, 1, 10, 2, 21].map(Ok));
    let expected = [vec![20, 1, 10, 2, 21], vec![20, 10, 21], vec![20, 21]];
    assert_eq!(calls.all(), expected);
    assert_eq!(start.elapsed(), secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_failed_jobs_takes_one_call_and_no_pause() {
    let calls = Calls::new();
    let batcher = batcher(3, throttled(&calls).retry_items(pauses(9)));
    let start = Instant::now();
    assert_eq!(put(&batcher, &[1, 2, 3]).await, [1, 2, 3].map(Ok));
    assert_eq!((calls.count(), start.elapsed()), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn jobs_keep_their_last_error_when_the_pauses_are_used_up() {
    let calls = Calls::new();
    let batcher = batcher(3, throttled(&calls).retry_items(pauses(2)));
    let refused = |times: u32| Err(format!("refused {times}"));
    let results = put(&batcher, &[50, 1, 20]).await;
    assert_eq!(results, [refused(3), Ok(1), Ok(20)]);
    assert_eq!(calls.count(), 3);
    // Each batch starts with all pauses.
    assert_eq!(
        put(&batcher, &[50, 60, 70]).await,
        [Ok(50), refused(3), refused(3)]
    );
    assert_eq!(calls.count(), 6);
}

#[tokio::test(start_paused = true)]
async fn without_pauses_nothing_is_tried_again() {
    let calls = Calls::new();
    let batcher = batcher(2, throttled(&calls).retry_items(pauses(0)));
    let results = put(&batcher, &[10, 1]).await;
    assert_eq!(results, [Err("refused 1".to_owned()), Ok(1)]);
    assert_eq!(calls.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_error_will_not_pass_is_not_tried_again() {
    let calls = Calls::new();
    let retried = throttled(&calls)
        .retry_items(pauses(9))
        .when(|error: &String| error.starts_with("refused"));
    let batcher = batcher(3, retried);
    let results = put(&batcher, &[100, 10, 1]).await;
    assert_eq!(results, [Err("malformed".to_owned()), Ok(10), Ok(1)]);
    assert_eq!(calls.all(), [vec![100, 10, 1], vec![10]]);
    // A batch of such jobs takes one call and no pause.
    let start = Instant::now();
    put(&batcher, &[100, 101, 102]).await;
    assert_eq!((calls.count(), start.elapsed()), (3, Duration::ZERO));
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Fine,
    Fails,
    PanicsEarly,
    Panics,
    Short,
    Long,
}

use Call::{Fails, Fine, Long, Panics, PanicsEarly, Short};

const UNFIT: [Call; 5] = [Fails, PanicsEarly, Panics, Short, Long];

/// Lets the calls end as planned, and those after them as they like.
fn planned<J, P>(
    inner: P,
    plan: Vec<Call>,
) -> impl BatchProcessor<J, Result<u32, String>, Error = String>
where
    J: Send + 'static,
    P: BatchProcessor<J, Result<u32, String>, Error = String>,
{
    let (inner, count) = (Arc::new(inner), AtomicU32::new(0));
    move |jobs: Vec<J>| {
        let at = count.fetch_add(1, Ordering::SeqCst) as usize;
        let call = plan.get(at).copied().unwrap_or(Fine);
        assert!(call != PanicsEarly, "early");
        let inner = Arc::clone(&inner);
        async move {
            let mut results = inner.process(jobs).await?;
            match call {
                Fine | PanicsEarly => {}
                Fails => return Err("down".to_owned()),
                Panics => panic!("late"),
                Short => drop(results.pop()),
                Long => results.push(Ok(0)),
            }
            Ok(results)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_call_that_is_unfit_fails_the_batch_as_without_the_decorator() {
    for call in UNFIT {
        let calls = Calls::new();
        let batcher = batcher(
            2,
            planned(throttled(&calls), vec![call]).retry_items(pauses(9)),
        );
        let start = Instant::now();
        for result in batcher.submit_all([10, 1]).await {
            let error = result.expect_err("fails");
            match call {
                Fine => unreachable!(),
                Fails => assert_eq!(cause(&error), "down"),
                PanicsEarly => assert!(matches!(error, JobError::Panicked(m) if *m == *"early")),
                Panics => assert!(matches!(error, JobError::Panicked(m) if *m == *"late")),
                Short => assert!(matches!(error, JobError::ResultCount { actual: 1, .. })),
                Long => assert!(matches!(error, JobError::ResultCount { actual: 3, .. })),
            }
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_call_that_is_unfit_leaves_what_was_done_and_the_last_errors() {
    for call in UNFIT {
        let calls = Calls::new();
        let plan = vec![Fine, Fine, call];
        let batcher = batcher(4, planned(throttled(&calls), plan).retry_items(pauses(9)));
        let start = Instant::now();
        let results = put(&batcher, &[30, 1, 10, 20]).await;
        let refused = || Err("refused 2".to_owned());
        assert_eq!(results, [refused(), Ok(1), Ok(10), refused()], "{call:?}");
        // No further pause, no further call.
        assert_eq!(start.elapsed(), secs(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_call_that_fails_is_tried_again_by_a_retry_before_it() {
    let calls = Calls::new();
    let plan = vec![Fine, Fails, Fine];
    let put_all = planned(throttled(&calls), plan).retry(pauses(1));
    let batcher = batcher(2, put_all.retry_items(pauses(1)));
    assert_eq!(put(&batcher, &[10, 1]).await, [Ok(10), Ok(1)]);
    assert_eq!(calls.all(), [vec![10, 1], vec![10], vec![10]]);
}

#[tokio::test(start_paused = true)]
async fn other_batches_go_on_during_a_pause() {
    let calls = Calls::new();
    let batcher = MicroBatch::builder(throttled(&calls).retry_items(pauses(9)))
        .max_batch_size(1)
        .max_in_flight(2)
        .build_running(CancellationToken::new())
        .expect("valid options");
    let refused = batcher.submit(10);
    let start = Instant::now();
    assert_eq!(batcher.submit(1).await.expect("succeeds"), Ok(1));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(refused.await.expect("succeeds"), Ok(10));
    assert_eq!(calls.all(), [[10], [1], [10]]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_out_a_pause_longer_than_its_deadline() {
    let calls = Calls::new();
    let hours = ExponentialBuilder::default()
        .with_min_delay(secs(3600))
        .with_max_delay(secs(36_000));
    let batcher = batcher(2, throttled(&calls).retry_items(hours));
    let handles = [10, 1].map(|job| batcher.submit(job));
    tokio::task::yield_now().await;
    let start = Instant::now();
    let timeout = batcher.shutdown().await.expect_err("the pause is too long");
    assert_eq!(timeout.abandoned, 2);
    assert_eq!(start.elapsed(), secs(5));
    for handle in handles {
        assert!(matches!(handle.await, Err(JobError::Abandoned)));
    }
}

/// How an attempt at a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Done,
    /// `when` holds.
    Busy,
    /// `when` does not hold.
    Malformed,
    /// `when` panics.
    Odd,
}

/// How the attempts at a job end, the last of them again and again.
#[derive(Debug, Clone)]
struct Plan {
    attempts: Vec<Attempt>,
    /// How often it may be cloned.
    clones: u32,
}

impl Plan {
    fn attempt(&self, number: usize) -> Attempt {
        let last = self.attempts.len() - 1;
        self.attempts[number.min(last)]
    }
}

/// A job that can be cloned so many times, over all its clones.
struct Job {
    number: usize,
    clones: Arc<AtomicU32>,
}

impl Clone for Job {
    fn clone(&self) -> Self {
        let left = self
            .clones
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        left.expect("a clone");
        Self {
            number: self.number,
            clones: Arc::clone(&self.clones),
        }
    }
}

/// The attempt at a job that its result is of, and how it ended.
type Seen = Result<(usize, usize), (usize, usize, Attempt)>;

/// What a batch comes to: the results, or nothing if it failed; the jobs of each call;
/// and the pauses.
#[derive(Debug, PartialEq)]
struct Outcome {
    results: Option<Vec<Seen>>,
    calls: Vec<Vec<usize>>,
    pauses: u64,
}

fn model(plans: &[Plan], calls: &[Call], max_pauses: u64) -> Outcome {
    let call = |number: usize| calls.get(number).copied().unwrap_or(Fine);
    let seen = |job: usize, number: usize| match plans[job].attempt(number) {
        Attempt::Done => Ok((job, number)),
        other => Err((job, number, other)),
    };
    let all: Vec<usize> = (0..plans.len()).collect();
    let mut outcome = Outcome {
        results: None,
        calls: vec![all.clone()],
        pauses: 0,
    };
    if call(0) != Fine {
        return outcome;
    }
    let mut results: Vec<Seen> = all.iter().map(|job| seen(*job, 0)).collect();
    let mut open = all;
    for number in 1.. {
        // An attempt costs a clone, made before the attempt ahead of it.
        open.retain(|job| {
            let busy = matches!(results[*job], Err((_, _, Attempt::Busy)));
            busy && plans[*job].clones as usize >= number
        });
        if open.is_empty() || outcome.pauses == max_pauses {
            break;
        }
        outcome.pauses += 1;
        outcome.calls.push(open.clone());
        if call(number) != Fine {
            break;
        }
        for job in &open {
            results[*job] = seen(*job, number);
        }
    }
    outcome.results = Some(results);
    outcome
}

async fn real(plans: &[Plan], calls: &[Call], max_pauses: usize) -> Outcome {
    let log = Calls::new();
    let attempts = Arc::new(Mutex::new(vec![0; plans.len()]));
    let processor = {
        let (log, plans, calls) = (log.clone(), plans.to_vec(), calls.to_vec());
        move |jobs: Vec<Job>| {
            let number = log.count();
            let numbers: Vec<usize> = jobs.iter().map(|job| job.number).collect();
            log.note(&numbers);
            let call = calls.get(number).copied().unwrap_or(Fine);
            assert!(call != PanicsEarly, "early");
            let mut attempts = lock(&attempts);
            let mut attempt = |job: &usize| -> Seen {
                let number = attempts[*job];
                attempts[*job] += 1;
                match plans[*job].attempt(number) {
                    Attempt::Done => Ok((*job, number)),
                    other => Err((*job, number, other)),
                }
            };
            let mut results: Vec<Seen> = numbers.iter().map(&mut attempt).collect();
            async move {
                match call {
                    Fine | PanicsEarly => {}
                    Fails => return Err("down"),
                    Panics => panic!("late"),
                    Short => drop(results.pop()),
                    Long => results.push(Ok((99, 99))),
                }
                Ok(results)
            }
        }
    };
    let when = |error: &(usize, usize, Attempt)| {
        assert!(error.2 != Attempt::Odd, "odd");
        error.2 == Attempt::Busy
    };
    let batcher = batcher(
        plans.len(),
        processor.retry_items(pauses(max_pauses)).when(when),
    );
    let jobs = plans.iter().enumerate().map(|(number, plan)| Job {
        number,
        clones: Arc::new(AtomicU32::new(plan.clones)),
    });
    let start = Instant::now();
    let results = batcher.submit_all(jobs).await;
    Outcome {
        pauses: start.elapsed().as_secs(),
        results: results.into_iter().map(Result::ok).collect(),
        calls: log.all(),
    }
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let attempt = prop_oneof![
        2 => Just(Attempt::Done),
        5 => Just(Attempt::Busy),
        1 => Just(Attempt::Malformed),
        1 => Just(Attempt::Odd),
    ];
    let clones = prop_oneof![3 => Just(99), 1 => 0..4_u32];
    (vec(attempt, 1..5), clones).prop_map(|(attempts, clones)| Plan { attempts, clones })
}

fn any_call() -> impl Strategy<Value = Call> {
    let unfit = prop::sample::select(UNFIT.to_vec());
    prop_oneof![6 => Just(Fine), 1 => unfit]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_batch_comes_to_what_the_model_says(
        plans in vec(any_plan(), 1..8),
        calls in vec(any_call(), 0..5),
        max_pauses in 0..5_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let outcome = runtime.block_on(real(&plans, &calls, max_pauses));
        prop_assert_eq!(outcome, model(&plans, &calls, max_pauses as u64));
    }
}
