//! Size, order, and batches side by side (promises 2, 4, 6 and 7).

use std::cell::Cell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use microbatch::{FlushReason, JobError, MicroBatch};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::support::{
    Fate, Gate, Reports, answers, decide, idle, lock, millis, results, run, secs, settle, soon,
    submit,
};

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_flushed_at_once() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(2));
    assert_eq!(results(submit(&batcher, 0..4)).await, [0, 1, 2, 3]);
    assert_eq!(gate.batches(), [[0, 1], [2, 3]]);
    assert_eq!(gate.times(), [Duration::ZERO; 2]);
}

#[tokio::test(start_paused = true)]
async fn jobs_enter_batches_in_the_order_accepted() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()));
    assert_eq!(results(submit(&batcher, 0..7)).await, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_one_job_is_a_batch() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(1));
    assert_eq!(results(submit(&batcher, 0..3)).await, [0, 1, 2]);
    assert_eq!(gate.batches(), [[0], [1], [2]]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_smaller_than_a_batch_still_fills_it() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .queue_capacity(1)
        .max_batch_size(5)
        .interval(Duration::MAX));
    let answers = soon(batcher.submit_all(0..5)).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(gate.batches(), [[0, 1, 2, 3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn no_batch_exceeds_the_size_whatever_the_way_in() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(4)
        .queue_capacity(6));
    let submits = async { answers(submit(&batcher, 0..25)).await };
    let bulk = async { batcher.submit_all(100..125).await };
    let permits = async {
        for job in 200..225 {
            let permit = batcher.reserve().await.expect("open");
            permit.submit(job).await.expect("succeeds");
        }
    };
    let tries = async {
        for job in 300..325 {
            while batcher.try_submit(job).is_err() {
                settle().await;
            }
        }
    };
    soon(async { tokio::join!(submits, bulk, permits, tries) }).await;
    soon(batcher.flush()).await;
    let mut seen = gate.batches().concat();
    seen.sort_unstable();
    let all = [0, 100, 200, 300].map(|first| (first..first + 25).collect::<Vec<_>>());
    assert_eq!(seen, all.concat(), "each job once");
    assert!(gate.batches().iter().all(|batch| batch.len() <= 4));
}

#[tokio::test(start_paused = true)]
async fn by_default_one_batch_runs_at_a_time() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..9);
    settle().await;
    assert_eq!(gate.batches(), [[0, 1, 2]]);
    gate.pass(3);
    results(handles).await;
    assert_eq!(gate.most_inside(), 1);
    assert_eq!(gate.batches(), [[0, 1, 2], [3, 4, 5], [6, 7, 8]]);
}

#[tokio::test(start_paused = true)]
async fn as_many_batches_run_side_by_side_as_allowed() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_in_flight(3));
    let handles = submit(&batcher, 0..15);
    settle().await;
    assert_eq!(gate.inside(), 3);
    gate.pass(5);
    results(handles).await;
    assert_eq!(gate.most_inside(), 3);
    assert!(gate.batches().concat().is_sorted());
}

#[tokio::test(start_paused = true)]
async fn a_batch_starts_as_soon_as_another_has_ended() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_in_flight(2));
    let _handles = submit(&batcher, 0..9);
    settle().await;
    gate.pass(1);
    settle().await;
    assert_eq!(gate.batches().len(), 3);
    assert_eq!(gate.inside(), 2);
    let tasks = Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks, 3, "the loop, and one for each batch at once");
}

/// Tokio's multi-thread scheduler runs the task that was spawned last first,
/// so tasks spawned in order do not start in order by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn batches_start_in_order_side_by_side_on_a_thread_pool() {
    let gate = Gate::open();
    let batcher = idle(
        MicroBatch::builder(gate.clone())
            .max_batch_size(1)
            .max_in_flight(4),
    );
    let handles = submit(&batcher, 0..40);
    tokio::spawn(batcher.start(Default::default()));
    results(handles).await;
    let started = gate.batches().concat();
    assert!(started.is_sorted(), "{started:?}");
}

/// Two tasks that take batches in order may still hand them to the processor in
/// another, where each has a thread of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_on_several_threads() {
    let started = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&started);
    let batcher = run(MicroBatch::builder(move |jobs: Vec<u32>| {
        let turn = count.fetch_add(1, Ordering::SeqCst);
        async move {
            for _ in 0..turn % 7 {
                tokio::task::yield_now().await;
            }
            Ok::<_, String>(vec![turn; jobs.len()])
        }
    })
    .max_batch_size(1)
    .max_in_flight(4)
    .queue_capacity(usize::MAX));
    let turns = results(submit(&batcher, 0..20_000)).await;
    let late = (0..).zip(turns).find(|(job, turn)| job != turn);
    assert_eq!(late, None, "(job, turn)");
}

#[tokio::test(start_paused = true)]
async fn a_hung_batch_holds_up_no_other() {
    let batcher = run(MicroBatch::builder(decide)
        .max_batch_size(1)
        .max_in_flight(2));
    let mut hung = submit(&batcher, [Fate::Hang]);
    let others = results(submit(&batcher, (0..50).map(Fate::Answer))).await;
    assert!(others.iter().copied().eq(0..50));
    assert!(!hung.remove(0).is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_running_batch_does_not_delay_acceptance() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).queue_capacity(4));
    let _running = submit(&batcher, 0..3);
    settle().await;
    // The next batch is taken up, and the queue takes in what it can hold.
    let _pending = submit(&batcher, 3..6);
    settle().await;
    let _queued = submit(&batcher, 6..10);
    let stats = batcher.stats();
    assert_eq!((stats.processing, stats.pending, stats.queued), (3, 3, 4));
    assert!(batcher.try_submit(10).is_err());
}

#[tokio::test(start_paused = true)]
async fn jobs_that_come_while_a_batch_runs_share_the_next() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(10));
    let mut handles = submit(&batcher, [0]);
    sleep(secs(2)).await;
    for job in 1..5 {
        handles.extend(submit(&batcher, [job]));
        sleep(secs(1)).await;
    }
    gate.pass(2);
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0], vec![1, 2, 3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn a_later_batch_that_ends_first_answers_its_own_callers() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u64>| async move {
        sleep(millis(1000 - jobs[0])).await;
        Ok::<_, String>(jobs.into_iter().map(|job| job * 2).collect())
    })
    .max_in_flight(10));
    let began = Instant::now();
    let handles = submit(&batcher, 0..30);
    let doubled = results(handles).await;
    assert!(doubled.into_iter().eq((0..30).map(|job| job * 2)));
    assert_eq!(began.elapsed(), secs(1));
}

#[tokio::test(start_paused = true)]
async fn submit_all_answers_in_order_whatever_the_outcome() {
    let batcher = run(MicroBatch::builder(decide).max_batch_size(1));
    let fates = [Fate::Answer(0), Fate::Fail(7), Fate::Answer(2), Fate::Panic];
    let answers = soon(batcher.submit_all(fates)).await;
    assert!(matches!(
        &answers[..],
        [
            Ok(0),
            Err(JobError::Failed(_)),
            Ok(2),
            Err(JobError::Panicked(_))
        ]
    ));
}

#[tokio::test(start_paused = true)]
async fn submit_all_of_nothing_is_nothing() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    assert!(soon(batcher.submit_all([])).await.is_empty());
    assert_eq!(batcher.stats().accepted, 0);
}

#[tokio::test(start_paused = true)]
async fn submit_all_draws_no_job_before_there_is_room_for_the_last() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(1)
        .queue_capacity(2));
    let drawn = Cell::new(0);
    let jobs = (0..100).inspect(|_| drawn.set(drawn.get() + 1));
    let all = batcher.submit_all(jobs);
    tokio::select! {
        _ = all => unreachable!("the gate is closed"),
        () = settle() => {}
    }
    // One runs, one is pending, two are queued, and one waits for room.
    assert_eq!(drawn.get(), 5);
}

#[tokio::test(start_paused = true)]
async fn separate_batchers_share_nothing() {
    let (left, right) = (Gate::open(), Gate::closed());
    let one = run(MicroBatch::builder(left.clone()));
    let other = run(MicroBatch::builder(right.clone()));
    let stuck = submit(&other, 100..103);
    assert_eq!(results(submit(&one, 0..3)).await, [0, 1, 2]);
    right.pass(1);
    assert_eq!(results(stuck).await, [100, 101, 102]);
    assert_eq!((left.batches().len(), right.batches().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_processor_may_submit_to_another_batcher() {
    let inner = run(MicroBatch::builder(Gate::open()).max_batch_size(6));
    let outer = run(MicroBatch::builder(move |jobs: Vec<u32>| {
        let inner = inner.clone();
        async move {
            let answers = inner.submit_all(jobs).await;
            answers.into_iter().collect::<Result<Vec<_>, JobError>>()
        }
    })
    .max_in_flight(2));
    assert_eq!(results(submit(&outer, 0..6)).await, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn jobs_and_results_need_only_be_send() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<Cell<u32>>| async move {
        Ok::<_, String>(
            jobs.into_iter()
                .map(|job| Cell::new(job.get() + 1))
                .collect(),
        )
    }));
    let batcher = Arc::new(batcher);
    let task = tokio::spawn(async move { batcher.submit(Cell::new(1)).await });
    let result = task.await.expect("no panic").expect("succeeds");
    assert_eq!(result.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn jobs_of_no_size_are_counted_all_the_same() {
    let reports = Reports::default();
    let batcher = run(MicroBatch::builder(
        |jobs: Vec<()>| async move { Ok::<Vec<()>, String>(jobs) },
    )
    .on_batch(reports.hook()));
    assert_eq!(results(submit(&batcher, [(); 6])).await.len(), 6);
    assert_eq!(reports.reasons(), [FlushReason::Size; 2]);
}

/// The task that came by itself was still among the idle ones, and was woken in
/// vain for a later batch, though another had nothing to do.
#[tokio::test(start_paused = true)]
async fn a_batch_finds_a_task_whatever_has_woken_another() {
    /// Ends a batch of that job.
    type Ends = Mutex<HashMap<u32, oneshot::Sender<()>>>;
    let (ends, wakers) = (
        Arc::new(Ends::default()),
        Arc::new(Mutex::new(HashMap::new())),
    );
    let (keys, left) = (Arc::clone(&ends), Arc::clone(&wakers));
    let batcher = run(MicroBatch::builder(move |jobs: Vec<u32>| {
        let (end, ended) = oneshot::channel();
        lock(&keys).insert(jobs[0], end);
        let left = Arc::clone(&left);
        async move {
            poll_fn(|cx| {
                lock(&left).insert(jobs[0], cx.waker().clone());
                Poll::Ready(())
            })
            .await;
            let _ = ended.await;
            Ok::<_, String>(jobs)
        }
    })
    .max_batch_size(1)
    .max_in_flight(3));
    let finish = |job: u32| {
        let end = lock(&ends).remove(&job).expect("under way");
        end.send(()).expect("still waiting");
    };
    let first = submit(&batcher, 0..3);
    settle().await;
    for job in 0..3 {
        finish(job);
        settle().await;
    }
    results(first).await;
    // The last to become idle is the first to be woken. The second comes before
    // it, by itself, once the batch is there.
    let second = submit(&batcher, 3..4);
    let waker = lock(&wakers).remove(&1).expect("has run");
    waker.wake();
    settle().await;
    let mut others = Vec::new();
    for job in 4..6 {
        others.extend(submit(&batcher, [job]));
        settle().await;
    }
    assert_eq!(lock(&ends).len(), 3, "one is not under way");
    (3..6).for_each(finish);
    assert_eq!(results(second).await, [3]);
    assert_eq!(results(others).await, [4, 5]);
}
