//! Storages that break their word. They may hurt the jobs they hold, and
//! nothing else.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microbatch::{BatchStorage, CancellationToken, JobError, MicroBatch, ShutdownTimeout};
use tokio::time::{Instant, sleep};

use super::{Pending, Plain};
use crate::support::{
    AGES, Counted, Gate, Reports, answers, assert_balanced, idle, lock, millis, results, run, secs,
    settle, soon, submit,
};

/// First in, first out, with `take` done by the test.
struct Taking<F> {
    held: Vec<Pending>,
    take: F,
}

impl<F: FnMut(&mut Vec<Pending>, usize) -> Vec<Pending>> Taking<F> {
    fn new(take: F) -> Self {
        Self {
            held: Vec::new(),
            take,
        }
    }
}

impl<F> BatchStorage<u32, u32> for Taking<F>
where
    F: FnMut(&mut Vec<Pending>, usize) -> Vec<Pending> + Send + 'static,
{
    fn len(&self) -> usize {
        self.held.len()
    }

    fn append(&mut self, job: Pending) {
        self.held.push(job);
    }

    fn take(&mut self, max_jobs: usize, _max_weight: usize) -> Vec<Pending> {
        (self.take)(&mut self.held, max_jobs)
    }
}

/// The first so many that are held.
fn first(held: &mut Vec<Pending>, jobs: usize) -> Vec<Pending> {
    held.drain(..jobs.min(held.len())).collect()
}

#[tokio::test(start_paused = true)]
async fn more_jobs_than_asked_for_do_not_make_a_larger_batch() {
    let gate = Gate::open();
    let storage = Taking::new(|held, _| std::mem::take(held));
    let batcher = run(MicroBatch::builder(gate.clone()).storage(storage));
    let results = results(submit(&batcher, 0..20)).await;
    assert!(results.into_iter().eq(0..20));
    assert!(gate.batches().iter().all(|batch| batch.len() <= 3));
    assert_eq!(batcher.stats().completed, 20);
}

#[tokio::test(start_paused = true)]
async fn more_weight_than_asked_for_does_not_make_a_heavier_batch() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(10)
        .max_batch_weight(10, |job| *job as usize)
        .on_batch(reports.hook())
        .storage(Plain::default()));
    results(submit(&batcher, [6, 6, 3, 1, 10, 9, 2])).await;
    assert!(reports.weights().iter().all(|weight| *weight <= 10));
    assert_eq!(gate.batches().concat().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn fewer_jobs_than_held_leave_the_others_for_the_next_batch() {
    let gate = Gate::open();
    let storage = Taking::new(|held, _| first(held, 1));
    let batcher = run(MicroBatch::builder(gate.clone()).storage(storage));
    let results = results(submit(&batcher, 0..7)).await;
    assert!(results.into_iter().eq(0..7));
    assert_eq!(gate.batches().len(), 7);
}

/// Gives nothing while shut, and notes when it is asked.
#[derive(Clone, Default)]
struct Hatch {
    open: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Hatch {
    fn storage(&self) -> impl BatchStorage<u32, u32> + use<> {
        let hatch = self.clone();
        Taking::new(move |held, max_jobs| {
            lock(&hatch.asked).push(Instant::now());
            match hatch.open.load(Ordering::SeqCst) {
                true => first(held, max_jobs),
                false => Vec::new(),
            }
        })
    }

    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        lock(&self.asked).len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_gives_nothing_is_asked_again_after_the_interval() {
    let (gate, hatch) = (Gate::open(), Hatch::default());
    let batcher = run(MicroBatch::builder(gate.clone()).storage(hatch.storage()));
    let handles = submit(&batcher, 0..3);
    sleep(millis(9_500)).await;
    assert_eq!(hatch.asked(), 10, "once a second");
    hatch.open();
    results(handles).await;
    assert_eq!(gate.times(), [secs(10)]);
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_gives_nothing_is_asked_again_when_something_happens() {
    let (gate, hatch) = (Gate::open(), Hatch::default());
    let batcher = run(MicroBatch::builder(gate.clone()).storage(hatch.storage()));
    let mut handles = submit(&batcher, 0..3);
    settle().await;
    hatch.open();
    handles.extend(submit(&batcher, [3]));
    results(handles).await;
    assert_eq!(gate.times()[0], millis(1));
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_gives_nothing_at_first_is_asked_again_during_a_stop() {
    let (gate, hatch) = (Gate::open(), Hatch::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .storage(hatch.storage())
        .shutdown_timeout(secs(60)));
    let handles = submit(&batcher, 0..2);
    let stop = tokio::spawn(batcher.shutdown());
    settle().await;
    hatch.open();
    assert_eq!(soon(stop).await.expect("no panic"), Ok(()));
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_gives_nothing_is_abandoned_with_the_stop() {
    let hatch = Hatch::default();
    let batcher = run(MicroBatch::builder(Gate::open()).storage(hatch.storage()));
    let handles = submit(&batcher, 0..3);
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 3 }));
    let answers = answers(handles).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_held_back_has_waited_since_it_was_taken_up() {
    let (hatch, reports) = (Hatch::default(), Reports::default());
    let batcher = run(MicroBatch::builder(Gate::open())
        .storage(hatch.storage())
        .on_batch(reports.hook()));
    let handles = submit(&batcher, 0..1);
    sleep(millis(2_500)).await;
    hatch.open();
    results(handles).await;
    assert_eq!(reports.all()[0].waited, secs(3));
}

/// Throws away all it holds when asked for a batch, the first time: as one
/// that drops what has expired.
fn expiring() -> impl BatchStorage<u32, u32> {
    let mut expired = false;
    Taking::new(move |held, max_jobs| {
        if !std::mem::replace(&mut expired, true) {
            held.clear();
        }
        first(held, max_jobs)
    })
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_drops_all_when_asked_sets_no_timer() {
    let batcher = idle(MicroBatch::builder(Gate::open()).storage(expiring()));
    let (start, polls) = Counted::new(batcher.start(CancellationToken::new()));
    let start = tokio::spawn(start);
    let answers = answers(submit(&batcher, 0..2)).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    settle().await;
    let before = polls.get();
    sleep(AGES).await;
    assert!(!start.is_finished(), "the loop spins");
    assert_eq!(polls.get() - before, 0);
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_drops_all_when_asked_starts_no_clock() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).storage(expiring()));
    answers(submit(&batcher, 0..2)).await;
    assert_eq!(batcher.stats().abandoned, 2);
    sleep(millis(900)).await;
    results(submit(&batcher, [2])).await;
    assert_eq!(gate.times(), [millis(2_900)], "one second after it came");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_take_loses_only_what_it_drops() {
    let gate = Gate::open();
    let panics = AtomicUsize::new(0);
    let storage = Taking::new(move |held, max_jobs| {
        if panics.fetch_add(1, Ordering::SeqCst) == 0 {
            let _dropped = first(held, 1);
            panic!("in take");
        }
        first(held, max_jobs)
    });
    let batcher = run(MicroBatch::builder(gate.clone()).storage(storage));
    let mut answers = answers(submit(&batcher, 0..3)).await;
    assert!(matches!(answers.remove(0), Err(JobError::Abandoned)));
    assert!(
        answers
            .into_iter()
            .map(|answer| answer.expect("kept"))
            .eq(1..3)
    );
    assert_eq!(batcher.stats().abandoned, 1);
    assert_balanced(batcher.stats());
    assert!(results(submit(&batcher, 3..9)).await.into_iter().eq(3..9));
}

/// Panics on a job, having taken it or not.
struct Squeamish(Plain);

impl BatchStorage<u32, u32> for Squeamish {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: Pending) {
        assert!(*job.job() != 13, "in append");
        self.0.append(job);
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        self.0.take(max_jobs, max_weight)
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_append_loses_only_its_job() {
    let gate = Gate::open();
    let storage = Squeamish(Plain::default());
    let batcher = run(MicroBatch::builder(gate.clone()).storage(storage));
    let mut answers = answers(submit(&batcher, [1, 13, 2, 13, 3, 4])).await;
    assert!(matches!(answers.remove(3), Err(JobError::Abandoned)));
    assert!(matches!(answers.remove(1), Err(JobError::Abandoned)));
    assert!(
        answers
            .into_iter()
            .map(|answer| answer.expect("kept"))
            .eq(1..5)
    );
    assert_eq!(batcher.stats().abandoned, 2);
    assert_balanced(batcher.stats());
    soon(batcher.shutdown()).await.expect("drains");
}

/// Says that it holds another number of jobs than it does.
struct Lying {
    inner: Plain,
    len: fn(usize) -> usize,
}

impl BatchStorage<u32, u32> for Lying {
    fn len(&self) -> usize {
        (self.len)(self.inner.len())
    }

    fn append(&mut self, job: Pending) {
        self.inner.append(job);
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        self.inner.take(max_jobs, max_weight)
    }
}

/// What becomes of five jobs in a storage that lies, when all is over.
async fn answers_of_a_liar(len: fn(usize) -> usize) -> Vec<Result<u32, JobError>> {
    let inner = Plain::default();
    let batcher = run(MicroBatch::builder(Gate::open()).storage(Lying { inner, len }));
    let handles = submit(&batcher, 0..5);
    sleep(secs(3)).await;
    let _ = soon(batcher.shutdown()).await;
    let answers = answers(handles).await;
    assert!(!batcher.is_running());
    answers
}

#[tokio::test(start_paused = true)]
async fn no_lie_about_the_number_of_jobs_leaves_one_unanswered() {
    let lies: [fn(usize) -> usize; 6] = [
        |_| 0,
        |_| 1,
        |_| usize::MAX,
        |held| held + 1,
        |held| held / 2,
        |held| held.wrapping_sub(1),
    ];
    for lie in lies {
        assert_eq!(answers_of_a_liar(lie).await.len(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_panics_when_counted_leaves_no_job_unanswered() {
    let answers = answers_of_a_liar(|held| {
        assert!(held == 0, "in len");
        held
    });
    assert_eq!(answers.await.len(), 5);
}

/// What one batcher puts in, another may take out.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Plain>>);

impl BatchStorage<u32, u32> for Shared {
    fn len(&self) -> usize {
        lock(&self.0).len()
    }

    fn append(&mut self, job: Pending) {
        lock(&self.0).append(job);
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        lock(&self.0).take(max_jobs, max_weight)
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_shared_by_two_batchers_mixes_up_no_results() {
    let (gate, storage) = (Gate::open(), Shared::default());
    let one = run(MicroBatch::builder(gate.clone()).storage(storage.clone()));
    let other = run(MicroBatch::builder(gate.clone())
        .storage(storage)
        .max_batch_size(2));
    let mut handles = submit(&one, 0..2);
    settle().await;
    handles.extend(submit(&other, 2..4));
    settle().await;
    handles.extend(submit(&one, 4..9));
    assert!(results(handles).await.into_iter().eq(0..9));
    assert!(one.is_running() && other.is_running());
    for batcher in [one, other] {
        soon(batcher.shutdown()).await.expect("drains");
        assert_eq!(batcher.stats().pending, 0);
    }
}

/// Drops its jobs in a panic of its own.
struct Explosive(Plain);

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("in the storage's drop");
    }
}

impl BatchStorage<u32, u32> for Explosive {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: Pending) {
        self.0.append(job);
    }

    fn take(&mut self, _max_jobs: usize, _max_weight: usize) -> Vec<Pending> {
        Vec::new()
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_panics_when_dropped_leaves_no_job_unanswered() {
    let batcher = run(MicroBatch::builder(Gate::open())
        .storage(Explosive(Plain::default()))
        .interval(Duration::MAX));
    let handles = submit(&batcher, 0..5);
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 5 }));
    let answers = answers(handles).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
}
