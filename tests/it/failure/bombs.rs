//! Jobs and results whose `Drop` panics: user code that runs wherever a job
//! ends. Their owners may see the panic; the worker, its other jobs and their
//! callers must not.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

use microbatch::{
    BatchProcessor, BatchStorage, CancellationToken, JobError, MicroBatch, MicroBatchBuilder,
    PendingJob, ShutdownTimeout,
};

use crate::support::{
    Bomb, LIVE, answers, assert_balanced, idle, poll_once, results, run, settle, soon, submit,
};

/// Batches of one job that never end.
fn hanging() -> MicroBatchBuilder<Bomb, u32, impl BatchProcessor<Bomb, u32>> {
    MicroBatch::builder(|jobs: Vec<Bomb>| async move {
        let hung: Result<Vec<u32>, String> = std::future::pending().await;
        drop(jobs);
        hung
    })
    .max_batch_size(1)
}

fn echo() -> MicroBatchBuilder<Bomb, u32, impl BatchProcessor<Bomb, u32>> {
    MicroBatch::builder(|jobs: Vec<Bomb>| async move {
        Ok::<_, String>(jobs.iter().map(|job| job.0).collect())
    })
}

#[tokio::test(start_paused = true)]
async fn one_in_the_processor_fails_its_batch_alone() {
    let batcher = run(echo());
    let handles = submit(&batcher, [1, LIVE, 2, 3, 4, 5].map(Bomb));
    let mut answers = answers(handles).await;
    let later = answers.split_off(3);
    let blown = |answer: &Result<_, _>| matches!(answer, Err(JobError::Panicked(_)));
    assert!(answers.iter().all(blown), "{answers:?}");
    assert!(later.into_iter().map(Result::unwrap).eq(3..6));
    assert_balanced(batcher.stats());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_withdrawn_hurts_no_other() {
    let batcher = run(echo().cancel_on_drop(true));
    drop(submit(&batcher, [LIVE, 1, LIVE].map(Bomb)));
    let others = results(submit(&batcher, (0..5).map(Bomb))).await;
    assert!(others.into_iter().eq(0..5));
    assert_eq!(batcher.stats().withdrawn, 3);
    soon(batcher.shutdown()).await.expect("drains");
}

/// Refuses the unlucky.
struct Wary(Vec<PendingJob<Bomb, u32>>);

impl BatchStorage<Bomb, u32> for Wary {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: PendingJob<Bomb, u32>) {
        if job.job().0 != LIVE {
            self.0.push(job);
        }
    }

    fn take(&mut self, max_jobs: usize, _max_weight: usize) -> Vec<PendingJob<Bomb, u32>> {
        self.0.drain(..max_jobs.min(self.0.len())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_the_storage_refuses_hurts_no_other() {
    let batcher = run(echo().storage(Wary(Vec::new())));
    let refused = batcher.submit(Bomb(LIVE));
    let others = results(submit(&batcher, (0..5).map(Bomb))).await;
    assert!(others.into_iter().eq(0..5));
    assert!(matches!(soon(refused).await, Err(JobError::Abandoned)));
    assert_eq!(batcher.stats().abandoned, 1);
    assert_balanced(batcher.stats());
}

/// Stops a batcher that hangs on the first of four jobs, and checks that the
/// bomb among them changes nothing of what is told.
async fn stopped_at_the_deadline_with(jobs: [u32; 4]) {
    let batcher = idle(hanging());
    let start = tokio::spawn(batcher.start(CancellationToken::new()));
    let handles = submit(&batcher, jobs.map(Bomb));
    settle().await;
    let stopped = soon(batcher.shutdown()).await;
    let answers = answers(handles).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    let timeout = ShutdownTimeout { abandoned: 4 };
    assert_eq!(stopped, Err(timeout));
    let stats = batcher.stats();
    assert_eq!((stats.abandoned, stats.processing), (4, 0));
    assert_balanced(stats);
    let started = start.await.expect("the loop does not panic");
    assert_eq!(started, Err(timeout.into()));
}

#[tokio::test(start_paused = true)]
async fn one_in_a_batch_that_is_aborted_hurts_no_other() {
    stopped_at_the_deadline_with([LIVE, 1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_pending_at_the_deadline_hurts_no_other() {
    stopped_at_the_deadline_with([1, LIVE, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_queued_at_the_deadline_hurts_no_other() {
    stopped_at_the_deadline_with([1, 2, LIVE, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn several_at_the_deadline_hurt_no_other() {
    stopped_at_the_deadline_with([LIVE; 4]).await;
    stopped_at_the_deadline_with([LIVE, LIVE, 1, LIVE]).await;
}

#[tokio::test(start_paused = true)]
async fn one_among_the_waiters_does_not_change_the_replies_behind_it() {
    let batcher = run(hanging().queue_capacity(1));
    let mut stuck = Vec::new();
    for job in 0..3 {
        stuck.extend(submit(&batcher, [Bomb(job)]));
        settle().await;
    }
    let mut waiting = submit(&batcher, [LIVE, 4, LIVE, 5].map(Bomb));
    assert!(
        waiting
            .iter_mut()
            .all(|handle| poll_once(handle).is_pending())
    );
    let closing = tokio::spawn(batcher.shutdown());
    for answer in answers(waiting).await {
        assert!(matches!(answer, Err(JobError::Closed)), "{answer:?}");
    }
    let closed = soon(closing)
        .await
        .expect("the caller that closes does not panic");
    assert_eq!(closed, Err(ShutdownTimeout { abandoned: 3 }));
}

/// The stop must reach the worker though the first caller of it met a bomb.
#[tokio::test(start_paused = true)]
async fn one_among_the_waiters_does_not_keep_the_worker_from_stopping() {
    let batcher = run(hanging().queue_capacity(1));
    let mut stuck = Vec::new();
    for job in 0..3 {
        stuck.extend(submit(&batcher, [Bomb(job)]));
        settle().await;
    }
    let mut waiting = batcher.submit(Bomb(LIVE));
    assert!(poll_once(&mut waiting).is_pending());
    let _ = soon(tokio::spawn(batcher.shutdown())).await;
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 3 }));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_never_started_does_not_hurt_who_shuts_down() {
    let batcher = idle(echo());
    let handles = submit(&batcher, [1, LIVE, 2].map(Bomb));
    let closing = tokio::spawn(batcher.shutdown());
    let answers = answers(handles).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    assert_eq!(batcher.stats().abandoned, 3);
    soon(closing)
        .await
        .expect("the caller that closes does not panic")
        .expect("nothing runs");
}

#[tokio::test(start_paused = true)]
async fn one_dropped_with_the_start_future_leaves_no_handle_unanswered() {
    let batcher = idle(hanging());
    let handles = submit(&batcher, [1, 2, LIVE, 3].map(Bomb));
    let mut start = Box::pin(batcher.start(CancellationToken::new()));
    assert!(poll_once(&mut start).is_pending());
    // The bomb may panic in the task that drops it.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(start)));
    let answers = answers(handles).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    let _ = soon(batcher.shutdown()).await;
    assert_eq!(batcher.stats().abandoned, 4);
    assert_balanced(batcher.stats());
}

#[tokio::test(start_paused = true)]
async fn a_result_without_a_handle_hurts_no_other() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        Ok::<_, String>(jobs.into_iter().map(Bomb).collect())
    }));
    let mut handles = submit(&batcher, [LIVE, 1, LIVE]);
    drop((handles.remove(2), handles.remove(0)));
    let results: Vec<_> = results(handles).await.iter().map(|bomb| bomb.0).collect();
    assert_eq!(results, [1]);
}

#[tokio::test(start_paused = true)]
async fn results_in_wrong_number_still_count_as_failed() {
    let batcher = run(MicroBatch::builder(|_: Vec<u32>| async move {
        Ok::<_, String>(vec![Bomb(LIVE)])
    }));
    let answers = answers(submit(&batcher, 0..3)).await;
    assert!(answers.iter().all(Result::is_err));
    settle().await;
    let stats = batcher.stats();
    assert_eq!(
        (stats.failed, stats.processing, stats.in_flight),
        (3, 0, 0),
        "{stats:?}"
    );
}

/// Its drop panicked in the task that calls the processor, outside of what caught
/// the panic: that task was gone, and no later batch was ever processed.
#[tokio::test(start_paused = true)]
async fn one_that_a_panic_throws_fails_its_batch_alone() {
    let explode = || -> () { panic_any(Bomb(LIVE)) };
    let before = move |jobs: Vec<u32>| {
        if jobs == [0] {
            explode();
        }
        async move { Ok::<_, String>(jobs) }
    };
    let inside = move |jobs: Vec<u32>| async move {
        if jobs == [0] {
            explode();
        }
        Ok::<_, String>(jobs)
    };
    let before = run(MicroBatch::builder(before).max_batch_size(1));
    let inside = run(MicroBatch::builder(inside).max_batch_size(1));
    let weigh = move |job: &u32| {
        if *job == 0 {
            explode();
        }
        1
    };
    let weighed = MicroBatch::builder(|jobs: Vec<u32>| async { Ok::<_, String>(jobs) });
    let weighed = run(weighed.max_batch_size(1).max_batch_weight(1, weigh));
    for batcher in [before, inside, weighed] {
        let mut answers = answers(submit(&batcher, 0..3)).await.into_iter();
        let first = answers.next().expect("three");
        assert!(matches!(first, Err(JobError::Panicked(_))), "{first:?}");
        assert!(answers.map(Result::unwrap).eq(1..3));
        soon(batcher.shutdown()).await.expect("drains");
        assert_balanced(batcher.stats());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_a_hook_throws_changes_no_result() {
    let batcher = MicroBatch::builder(|jobs: Vec<u32>| async { Ok::<_, String>(jobs) });
    let batcher = run(batcher.on_batch(|_| panic_any(Bomb(LIVE))));
    assert_eq!(results(submit(&batcher, 0..6)).await, [0, 1, 2, 3, 4, 5]);
}

/// Panics whenever it is dropped.
struct Always;

impl Drop for Always {
    fn drop(&mut self) {
        panic!("always");
    }
}

/// A batch that no task had taken was dropped as a whole: two jobs whose drops panic
/// aborted the process.
#[tokio::test(start_paused = true)]
async fn two_bombs_in_a_batch_not_taken() {
    let batcher = MicroBatch::builder(|jobs: Vec<Always>| async move {
        jobs.into_iter().for_each(std::mem::forget);
        Ok::<Vec<u32>, String>(Vec::new())
    })
    .max_batch_size(2)
    .build()
    .unwrap();
    let handles = submit(&batcher, [Always, Always]);
    let mut start = Box::pin(batcher.start(CancellationToken::new()));
    // Polled by hand once: the batch is assigned and its task has not run.
    let waker = std::task::Waker::noop();
    let _ = start
        .as_mut()
        .poll(&mut std::task::Context::from_waker(waker));
    drop(start);
    let abandoned = |answer: &Result<u32, _>| matches!(answer, Err(JobError::Abandoned));
    assert!(answers(handles).await.iter().all(abandoned));
}
