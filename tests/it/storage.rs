//! Storages of one's own: their order, their limits, and their misbehaviour.

mod faulty;
mod lanes;
mod similar;
mod watched;

use std::collections::VecDeque;
use std::time::Duration;

use microbatch::{
    BatchStorage, CancellationToken, FlushReason, JobError, MemoryStorage, MicroBatch, PendingJob,
};
use tokio::time::sleep;

use crate::support::{
    Gate, Reports, answers, assert_balanced, fitting, idle, millis, poll_once, results, run, secs,
    settle, soon, submit,
};

type Pending = PendingJob<u32, u32>;

/// Highest number first.
#[derive(Default)]
struct Urgent(Vec<Pending>);

impl BatchStorage<u32, u32> for Urgent {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: Pending) {
        let at = self.0.partition_point(|held| held.job() > job.job());
        self.0.insert(at, job);
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        let fits = fitting(self.0.iter(), max_jobs, max_weight);
        self.0.drain(..fits).collect()
    }
}

/// First in, first out, written by hand.
#[derive(Default)]
struct Plain(Vec<Pending>);

impl BatchStorage<u32, u32> for Plain {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: Pending) {
        self.0.push(job);
    }

    fn take(&mut self, max_jobs: usize, _max_weight: usize) -> Vec<Pending> {
        self.0.drain(..max_jobs.min(self.0.len())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_decides_the_order() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).storage(Urgent::default()));
    let handles = submit(&batcher, [3, 1, 4, 1, 5, 9, 2]);
    tokio::spawn(batcher.start(CancellationToken::new()));
    assert_eq!(results(handles).await, [3, 1, 4, 1, 5, 9, 2]);
    assert_eq!(gate.batches(), [vec![9, 5, 4], vec![3, 2, 1], vec![1]]);
}

#[tokio::test(start_paused = true)]
async fn a_storage_chooses_among_more_than_a_batch_while_the_processor_is_busy() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .storage(Urgent::default())
        .queue_capacity(50));
    let mut handles = submit(&batcher, 0..3);
    settle().await;
    for job in 3..40 {
        handles.extend(submit(&batcher, [job]));
        settle().await;
    }
    gate.pass(99);
    results(handles).await;
    assert_eq!(gate.batches()[1], [39, 38, 37]);
}

#[tokio::test(start_paused = true)]
async fn a_storage_chooses_among_more_than_a_batch_s_weight() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .storage(Urgent::default())
        .max_batch_weight(1, |_| 1));
    let mut handles = Vec::new();
    for job in 0..4 {
        handles.extend(submit(&batcher, [job]));
        settle().await;
    }
    let stats = batcher.stats();
    assert_eq!((stats.pending, stats.queued), (3, 0));
    gate.pass(4);
    results(handles).await;
    assert_eq!(gate.batches(), [[0], [3], [2], [1]]);
}

#[tokio::test(start_paused = true)]
async fn a_storage_is_told_the_weights_and_the_limits() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = idle(
        MicroBatch::builder(gate.clone())
            .max_batch_weight(10, |job| *job as usize)
            .on_batch(reports.hook())
            .storage(Urgent::default()),
    );
    let handles = submit(&batcher, [2, 6, 5, 4]);
    tokio::spawn(batcher.start(CancellationToken::new()));
    results(handles).await;
    assert_eq!(gate.batches(), [vec![6], vec![5, 4], vec![2]]);
    assert_eq!(reports.weights(), [6, 9, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_default_storage_may_be_named() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).storage(MemoryStorage::default()));
    assert!(results(submit(&batcher, 0..7)).await.into_iter().eq(0..7));
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    assert_eq!(gate.times(), [Duration::ZERO, Duration::ZERO, secs(1)]);
}

#[test]
fn the_default_storage_starts_empty() {
    let storage = MemoryStorage::<u32, u32>::new();
    assert_eq!(storage.len(), 0);
    assert!(storage.is_empty());
}

/// Counts what passes through the default storage.
#[derive(Default)]
struct Wrapping {
    inner: MemoryStorage<u32, u32>,
    appended: usize,
    taken: usize,
}

impl BatchStorage<u32, u32> for Wrapping {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn append(&mut self, job: Pending) {
        self.appended += 1;
        self.inner.append(job);
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        // A panic here would leave the jobs where they are.
        assert!(!self.inner.is_empty());
        let held = self.inner.len();
        let taken = self.inner.take(max_jobs, max_weight);
        self.taken += taken.len();
        assert!(taken.len() <= max_jobs);
        assert!(taken.iter().map(Pending::weight).sum::<usize>() <= max_weight);
        assert_eq!(held, self.inner.len() + taken.len());
        assert_eq!(self.appended, self.inner.len() + self.taken);
        taken
    }
}

#[tokio::test(start_paused = true)]
async fn the_default_storage_may_be_wrapped() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .storage(Wrapping::default())
        .max_batch_weight(10, |job| *job as usize)
        .on_batch(reports.hook()));
    let handles = submit(&batcher, [4, 5, 6, 1, 1, 10]);
    results(handles).await;
    results(submit(&batcher, [1, 1, 1, 2])).await;
    let batches = [vec![4, 5], vec![6, 1, 1], vec![10], vec![1, 1, 1], vec![2]];
    assert_eq!(gate.batches(), batches);
    assert_eq!(reports.weights(), [9, 8, 10, 3, 2]);
}

/// Takes jobs in by the dozen, and leaves what is beyond a dozen behind.
#[derive(Default)]
struct Bulk(Plain);

impl BatchStorage<u32, u32> for Bulk {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: Pending) {
        self.0.append(job);
    }

    fn append_all(&mut self, jobs: &mut VecDeque<Pending>) {
        let dozen = jobs.len().min(12);
        self.0.0.extend(jobs.drain(..dozen));
        assert!(jobs.len() < 20, "in append_all");
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        self.0.take(max_jobs, max_weight)
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_bulk_append_leaves_behind_is_appended_one_by_one() {
    // Ten, twenty, and fifty, at which it panics.
    for jobs in [10, 20, 50] {
        let gate = Gate::open();
        let batcher = idle(MicroBatch::builder(gate.clone()).storage(Bulk::default()));
        let handles = submit(&batcher, 0..jobs);
        tokio::spawn(batcher.start(CancellationToken::new()));
        assert!(results(handles).await.into_iter().eq(0..jobs));
        assert!(gate.batches().concat().into_iter().eq(0..jobs));
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_left_over_in_a_storage_keep_their_own_clock() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).storage(Plain::default()));
    let mut handles = submit(&batcher, [0]);
    sleep(millis(900)).await;
    handles.extend(submit(&batcher, [1, 2, 3]));
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3]]);
    assert_eq!(gate.times(), [millis(900), millis(1_900)]);
}

/// Where jobs keep coming the storage is never empty, and an old clock must not
/// cut every batch short from then on.
#[tokio::test(start_paused = true)]
async fn batches_stay_large_in_a_storage_that_is_never_empty() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .storage(Plain::default())
        .max_batch_size(10));
    let mut handles = Vec::new();
    for job in 0..500 {
        handles.extend(submit(&batcher, [job, job]));
        // Eleven at a time now and then, so that one is left over.
        if job % 5 == 0 {
            handles.extend(submit(&batcher, [job]));
        }
        sleep(millis(90)).await;
    }
    results(handles).await;
    let sizes: Vec<_> = gate.batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10; 110]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_empties_the_storage() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .storage(Urgent::default())
        .max_batch_size(4)
        .interval(Duration::MAX));
    let handles = submit(&batcher, 0..11);
    soon(batcher.shutdown()).await.expect("drains");
    results(handles).await;
    assert_eq!(gate.batches()[2], [2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_empties_the_storage() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .storage(Urgent::default())
        .interval(Duration::MAX)
        .on_batch(reports.hook()));
    let handles = submit(&batcher, 0..5);
    soon(batcher.flush()).await;
    assert!(handles.iter().all(|handle| handle.is_finished()));
    use FlushReason::{Requested, Size};
    assert_eq!(reports.reasons(), [Size, Requested]);
}

/// Holds two jobs at most and refuses the others.
#[derive(Default)]
struct Small(Plain);

impl BatchStorage<u32, u32> for Small {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: Pending) {
        if self.len() < 2 {
            self.0.append(job);
        }
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        self.0.take(max_jobs, max_weight)
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_job_is_abandoned_and_counted() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).storage(Small::default()));
    let answers = answers(submit(&batcher, 0..5)).await;
    assert!(matches!(
        answers[..],
        [
            Ok(0),
            Ok(1),
            Err(JobError::Abandoned),
            Err(JobError::Abandoned),
            Err(JobError::Abandoned)
        ]
    ));
    let stats = batcher.stats();
    assert_eq!((stats.completed, stats.abandoned, stats.pending), (2, 3, 0));
    assert_balanced(stats);
    assert_eq!(results(submit(&batcher, 5..7)).await, [5, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_job_does_not_count_towards_a_batch() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_weight(10, |_| 4)
        .on_batch(reports.hook())
        .storage(Small::default()));
    let _refused = answers(submit(&batcher, 0..4)).await;
    assert_eq!(reports.reasons(), [FlushReason::Interval], "eight of ten");
    assert_eq!(gate.times(), [secs(1)]);
}

/// Where jobs keep coming the storage is never empty, and what it refuses must
/// not add up until every batch is cut short.
#[tokio::test(start_paused = true)]
async fn refused_jobs_do_not_add_up() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .interval(Duration::MAX)
        .max_batch_weight(100, |_| 4)
        .max_batch_size(10)
        .storage(Small::default()));
    let _held = submit(&batcher, 0..2);
    let refused = answers(submit(&batcher, 2..90)).await;
    assert!(refused.iter().all(Result::is_err));
    assert!(gate.batches().is_empty(), "eight of a hundred");
}

/// Replaces what it holds by what comes.
#[derive(Default)]
struct Latest(Option<Pending>);

impl BatchStorage<u32, u32> for Latest {
    fn len(&self) -> usize {
        usize::from(self.0.is_some())
    }

    fn append(&mut self, job: Pending) {
        self.0 = Some(job);
    }

    fn take(&mut self, _max_jobs: usize, _max_weight: usize) -> Vec<Pending> {
        self.0.take().into_iter().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_may_drop_what_it_has_held() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).storage(Latest::default()));
    let mut handles = Vec::new();
    for job in 0..5 {
        handles.extend(submit(&batcher, [job]));
        settle().await;
    }
    let mut answers = answers(handles).await;
    assert_eq!(answers.pop().expect("five").expect("the last"), 4);
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    assert_eq!(gate.batches(), [[4]]);
    assert_eq!(batcher.stats().abandoned, 4);
    assert_balanced(batcher.stats());
}

/// Gives jobs by twos only.
#[derive(Default)]
struct Pairs(Vec<Pending>);

impl BatchStorage<u32, u32> for Pairs {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: Pending) {
        self.0.push(job);
    }

    fn take(&mut self, max_jobs: usize, _max_weight: usize) -> Vec<Pending> {
        let even = self.0.len().min(max_jobs) & !1;
        self.0.drain(..even).collect()
    }
}

/// A flush let nothing into the storage until it was empty, which it would only
/// have been with another job.
#[tokio::test(start_paused = true)]
async fn a_flush_keeps_no_job_from_a_storage_that_waits_for_one() {
    let gate = Gate::open();
    let batcher = MicroBatch::builder(gate.clone()).interval(Duration::MAX);
    let batcher = run(batcher.max_batch_size(10).storage(Pairs::default()));
    let odd = batcher.submit(1);
    let mut flush = Box::pin(batcher.flush());
    settle().await;
    let again = tokio::spawn(batcher.flush());
    settle().await;
    assert!(poll_once(&mut flush).is_pending());
    let even = batcher.submit(2);
    assert_eq!(results(vec![odd, even]).await, [1, 2]);
    soon(flush).await;
    soon(again).await.expect("no panic");
    assert_eq!(gate.batches(), [[1, 2]]);
}
