//! Batches that fail, and what they leave untouched (promises 1 and 6).

mod bombs;

use std::error::Error;
use std::sync::Arc;

use microbatch::{JobError, MicroBatch};

use crate::support::{
    Cause, Fate, answers, assert_balanced, decide, results, run, settle, soon, submit,
};

/// Batches of three, decided by their jobs.
fn fated() -> MicroBatch<Fate, u32> {
    run(MicroBatch::builder(decide))
}

/// The answers to one batch in which the middle job has that fate, between two
/// batches that must go well.
async fn answers_to(fate: Fate) -> Vec<JobError> {
    let batcher = fated();
    let before = submit(&batcher, [Fate::Answer(0); 3]);
    let batch = submit(&batcher, [Fate::Answer(1), fate, Fate::Answer(3)]);
    let after = submit(&batcher, [Fate::Answer(4); 3]);
    assert_eq!(results(before).await, [0; 3]);
    let answers = answers(batch).await;
    assert_eq!(results(after).await, [4; 3]);
    let stats = batcher.stats();
    assert_eq!((stats.completed, stats.failed), (6, 3));
    assert_eq!((stats.processing, stats.in_flight), (0, 0));
    assert_balanced(stats);
    soon(batcher.shutdown()).await.expect("drains");
    answers
        .into_iter()
        .map(|answer| answer.expect_err("failed"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn an_error_reaches_every_job_of_its_batch_and_no_other() {
    for error in answers_to(Fate::Fail(7)).await {
        let cause = error.source().expect("a cause");
        assert_eq!(cause.downcast_ref(), Some(&Cause(7)));
    }
}

#[tokio::test(start_paused = true)]
async fn one_error_is_shared_by_its_batch() {
    let causes: Vec<_> = answers_to(Fate::Fail(7)).await;
    let causes = causes.into_iter().map(|error| match error {
        JobError::Failed(cause) => cause,
        other => panic!("{other:?}"),
    });
    let causes: Vec<_> = causes.collect();
    assert!(causes.iter().all(|cause| Arc::ptr_eq(cause, &causes[0])));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_future_fails_its_batch_alone() {
    for error in answers_to(Fate::Panic).await {
        assert!(matches!(error, JobError::Panicked(why) if &*why == "panicked on 3 jobs"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_future_fails_its_batch_alone() {
    for error in answers_to(Fate::PanicEarly).await {
        assert!(matches!(error, JobError::Panicked(why) if &*why == "panicked early"));
    }
}

#[tokio::test(start_paused = true)]
async fn too_few_results_fail_the_whole_batch() {
    for error in answers_to(Fate::Short).await {
        let JobError::ResultCount { expected, actual } = error else {
            panic!("{error:?}");
        };
        assert_eq!((expected, actual), (3, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_results_fail_the_whole_batch() {
    for error in answers_to(Fate::Long).await {
        let JobError::ResultCount { expected, actual } = error else {
            panic!("{error:?}");
        };
        assert_eq!((expected, actual), (3, 4));
    }
}

#[tokio::test(start_paused = true)]
async fn no_results_at_all_are_a_wrong_number() {
    let batcher = run(MicroBatch::builder(|_: Vec<u32>| async {
        Ok::<Vec<u32>, String>(Vec::new())
    }));
    let error = soon(batcher.submit(1))
        .await
        .expect_err("nothing came back");
    let JobError::ResultCount { expected, actual } = error else {
        panic!("{error:?}");
    };
    assert_eq!((expected, actual), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_with_something_else_than_a_message_is_told_too() {
    let batcher = run(MicroBatch::builder(|_: Vec<u32>| async {
        std::panic::panic_any(7_u32);
        #[allow(unreachable_code)]
        Ok::<Vec<u32>, String>(Vec::new())
    }));
    let answer = soon(batcher.submit(1)).await;
    assert!(matches!(answer, Err(JobError::Panicked(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn many_failures_in_a_row_end_nothing() {
    let batcher = fated();
    let fates = [
        Fate::Fail(1),
        Fate::Panic,
        Fate::PanicEarly,
        Fate::Short,
        Fate::Long,
    ];
    for _ in 0..20 {
        let answers = soon(batcher.submit_all(fates)).await;
        assert!(answers.iter().all(Result::is_err));
    }
    soon(batcher.flush()).await;
    assert_eq!(
        results(submit(&batcher, [Fate::Answer(1); 3])).await,
        [1; 3]
    );
    assert!(batcher.is_running());
}

#[tokio::test(start_paused = true)]
async fn a_failure_leaves_the_batches_beside_it_alone() {
    let batcher = run(MicroBatch::builder(decide)
        .max_batch_size(1)
        .max_in_flight(4));
    let mut hung = submit(&batcher, [Fate::Hang]);
    let fates = [
        Fate::Fail(1),
        Fate::Panic,
        Fate::PanicEarly,
        Fate::Answer(5),
    ];
    let mut answers = answers(submit(&batcher, fates)).await;
    assert_eq!(answers.pop().expect("four").expect("succeeds"), 5);
    assert!(answers.iter().all(Result::is_err));
    settle().await;
    assert!(!hung.remove(0).is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_failure_without_handles_is_counted() {
    let batcher = fated();
    drop(submit(&batcher, [Fate::Panic, Fate::Answer(1)]));
    soon(batcher.flush()).await;
    assert_eq!(batcher.stats().failed, 2);
    assert_eq!(
        results(submit(&batcher, [Fate::Answer(1); 3])).await,
        [1; 3]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_changes_nothing() {
    let batcher = run(MicroBatch::builder(decide).on_batch(|_| panic!("in the hook")));
    assert_eq!(
        results(submit(&batcher, [Fate::Answer(1); 6])).await,
        [1; 6]
    );
    let failed = answers(submit(&batcher, [Fate::Fail(7); 3])).await;
    assert!(
        failed
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Failed(_))))
    );
    let stats = batcher.stats();
    assert_eq!((stats.completed, stats.failed), (6, 3));
    soon(batcher.shutdown()).await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_job_error_of_the_processor_is_passed_on_as_it_is() {
    let inner = fated();
    let outer = run(MicroBatch::builder(move |jobs: Vec<Fate>| {
        let inner = inner.clone();
        async move {
            let answers = inner.submit_all(jobs).await;
            answers.into_iter().collect::<Result<Vec<u32>, JobError>>()
        }
    }));
    let failed = answers(submit(&outer, [Fate::Short; 3])).await;
    for answer in failed {
        let expected = Err(JobError::ResultCount {
            expected: 3,
            actual: 2,
        });
        assert_eq!(
            format!("{answer:?}"),
            format!("{expected:?}", expected = expected as Result<u32, _>)
        );
    }
}

/// An error that panics when it is made into one.
#[derive(Debug)]
struct Unwilling;

impl From<Unwilling> for Box<dyn Error + Send + Sync> {
    fn from(_: Unwilling) -> Self {
        panic!("not an error")
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_converted_fails_its_batch_alone() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        if jobs.contains(&13) {
            Err(Unwilling)
        } else {
            Ok(jobs)
        }
    }));
    let unlucky = answers(submit(&batcher, [1, 13, 2])).await;
    assert!(unlucky.iter().all(Result::is_err), "{unlucky:?}");
    assert_eq!(results(submit(&batcher, 0..3)).await, [0, 1, 2]);
    let stats = batcher.stats();
    assert_eq!((stats.processing, stats.in_flight), (0, 0), "{stats:?}");
    assert_balanced(stats);
}

/// A processor that submitted to another micro-batcher, which had stopped, passed
/// its `Closed` on: "not and never to be processed", of a job that was.
#[tokio::test(start_paused = true)]
async fn an_error_that_says_not_accepted_is_the_processors_own() {
    let inner = run(MicroBatch::builder(decide));
    inner.shutdown().await.expect("nothing to drain");
    let outer = run(MicroBatch::builder(move |jobs: Vec<Fate>| {
        let inner = inner.clone();
        async move { inner.submit_all(jobs).await.into_iter().collect() }
    }));
    let mut handle = outer.submit(Fate::Answer(1));
    handle.accepted().await.expect("room");
    let error = soon(handle).await.expect_err("the inner one has stopped");
    assert!(matches!(error, JobError::Failed(_)), "{error:?}");
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    assert!(matches!(cause, Some(JobError::Closed)), "{cause:?}");
}

#[tokio::test(start_paused = true)]
async fn of_a_processors_job_errors_those_that_are_true_of_its_jobs_are_passed_on() {
    let errors = [
        JobError::Closed,
        JobError::TooHeavy {
            weight: 3,
            limit: 2,
        },
        JobError::Failed(Arc::from(Box::<dyn Error + Send + Sync>::from("no disk"))),
        JobError::Panicked("oh".into()),
        JobError::ResultCount {
            expected: 2,
            actual: 1,
        },
        JobError::Abandoned,
    ];
    let batcher = run(MicroBatch::builder(|mut jobs: Vec<JobError>| async move {
        Err::<Vec<()>, _>(jobs.remove(0))
    })
    .max_batch_size(1));
    let answers = answers(submit(&batcher, errors)).await.into_iter();
    let answers: Vec<_> = answers
        .map(|answer| format!("{:?}", answer.expect_err("fails")))
        .collect();
    let expected = [
        "Failed(Closed)",
        "Failed(TooHeavy { weight: 3, limit: 2 })",
        "Failed(\"no disk\")",
        "Panicked(\"oh\")",
        "ResultCount { expected: 2, actual: 1 }",
        "Abandoned",
    ];
    assert_eq!(answers, expected);
}

/// They were dropped one by one, which took a while.
#[tokio::test(start_paused = true)]
async fn any_number_of_results_that_take_no_room_is_a_wrong_number() {
    let batcher = run(MicroBatch::builder(|_: Vec<u32>| async {
        Ok::<_, String>(vec![(); usize::MAX])
    }));
    let error = soon(batcher.submit(1)).await.expect_err("too many");
    let JobError::ResultCount { expected, actual } = error else {
        panic!("{error:?}");
    };
    assert_eq!((expected, actual), (1, usize::MAX));
}
