//! Many tasks on several threads at once. The outcome of every job is known
//! beforehand or can be checked, whatever the order of events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use microbatch::{BatchProcessor, CancellationToken, JobError, MicroBatch, MicroBatchBuilder};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{assert_balanced, idle, poll_once, run};

/// What a job must get back.
fn checksum(job: usize) -> u64 {
    (job as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// How often each job was handed to the processor.
#[derive(Clone)]
struct Ledger(Arc<Vec<AtomicU8>>);

impl Ledger {
    fn new(jobs: usize) -> Self {
        Self(Arc::new((0..jobs).map(|_| AtomicU8::new(0)).collect()))
    }

    fn times(&self, job: usize) -> u8 {
        self.0[job].load(Ordering::SeqCst)
    }

    /// Notes the jobs; fails batches with a multiple of 97 and panics on those
    /// with one of 101.
    fn builder(&self) -> MicroBatchBuilder<usize, u64, impl BatchProcessor<usize, u64> + use<>> {
        let ledger = self.clone();
        MicroBatch::builder(move |jobs: Vec<usize>| {
            let ledger = ledger.clone();
            async move {
                assert!((1..=7).contains(&jobs.len()));
                for job in &jobs {
                    ledger.0[*job].fetch_add(1, Ordering::SeqCst);
                }
                tokio::task::yield_now().await;
                if jobs.iter().any(|job| job % 97 == 0) {
                    return Err("a multiple of 97");
                }
                assert!(jobs.iter().all(|job| job % 101 != 0), "a multiple of 101");
                Ok(jobs.into_iter().map(checksum).collect())
            }
        })
        .max_batch_size(7)
        .queue_capacity(20)
        .interval(Duration::from_millis(1))
    }
}

fn threads() -> Runtime {
    let builder = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build();
    builder.expect("a runtime")
}

/// Runs on four threads, and fails where it takes for ever.
fn on_four_threads(test: impl Future<Output = ()>) {
    threads().block_on(async {
        let within = timeout(Duration::from_secs(60), test);
        within.await.expect("hangs");
    });
}

/// What became of the jobs of one task.
#[derive(Default)]
struct Tally {
    right: u64,
    failed: u64,
    /// Accepted, and its handle was dropped.
    left: u64,
}

impl Tally {
    fn note(&mut self, job: usize, answer: Result<u64, JobError>) {
        match answer {
            Ok(result) => {
                assert_eq!(result, checksum(job), "another job's result");
                self.right += 1;
            }
            Err(JobError::Failed(_) | JobError::Panicked(_)) => self.failed += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Submits the jobs, each in another way.
async fn submit_every_way(
    batcher: MicroBatch<usize, u64>,
    jobs: impl Iterator<Item = usize>,
) -> Tally {
    let mut tally = Tally::default();
    for job in jobs {
        match job % 6 {
            0 => tally.note(job, batcher.submit(job).await),
            1 => {
                let permit = batcher.reserve().await.expect("open");
                tally.note(job, permit.submit(job).await);
            }
            2 => {
                let mut given = job;
                let handle = loop {
                    match batcher.try_submit(given) {
                        Ok(handle) => break handle,
                        Err(refused) => given = refused.into_job(),
                    }
                    tokio::task::yield_now().await;
                };
                tally.note(job, handle.await);
            }
            3 => {
                let mut handle = batcher.submit(job);
                handle.accepted().await.expect("open");
                tally.left += 1;
            }
            4 => {
                let answers = batcher.submit_all([job]).await;
                answers
                    .into_iter()
                    .for_each(|answer| tally.note(job, answer));
            }
            _ => {
                let mut handle = batcher.submit(job);
                // Polls once, and waits on later.
                let answer = poll_once(&mut handle);
                tokio::task::yield_now().await;
                drop(batcher.reserve());
                tally.note(
                    job,
                    match answer {
                        Poll::Ready(answer) => answer,
                        Poll::Pending => handle.await,
                    },
                );
            }
        }
    }
    tally
}

#[test]
fn many_tasks_with_all_outcomes_get_their_own_results() {
    const TASKS: usize = 64;
    const JOBS: usize = 64 * 150;
    on_four_threads(async {
        let ledger = Ledger::new(JOBS);
        let batcher = run(ledger.builder().max_in_flight(3));
        let over = Arc::new(AtomicBool::new(false));
        let watcher = thread::spawn({
            let (batcher, over) = (batcher.clone(), Arc::clone(&over));
            move || {
                while !over.load(Ordering::SeqCst) {
                    assert_balanced(batcher.stats());
                    thread::yield_now();
                }
            }
        });
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let jobs = (0..JOBS).skip(task).step_by(TASKS);
            tasks.spawn(submit_every_way(batcher.clone(), jobs));
        }
        let tallies = tasks.join_all().await;
        batcher.shutdown().await.expect("drains");
        over.store(true, Ordering::SeqCst);
        watcher.join().expect("the counters agree at every moment");

        let sum = |part: fn(&Tally) -> u64| tallies.iter().map(part).sum::<u64>();
        let (right, failed, left) = (sum(|it| it.right), sum(|it| it.failed), sum(|it| it.left));
        let stats = batcher.stats();
        assert_eq!(stats.accepted, JOBS as u64);
        assert_eq!(stats.completed + stats.failed, JOBS as u64);
        assert_eq!(right + failed + left, JOBS as u64);
        assert!(right > 0 && failed > 0 && right <= stats.completed);
        assert!((0..JOBS).all(|job| ledger.times(job) == 1), "each once");
    });
}

#[test]
fn under_cancel_on_drop_every_job_is_processed_or_withdrawn() {
    const JOBS: usize = 4_000;
    on_four_threads(async {
        let ledger = Ledger::new(JOBS);
        let batcher = run(ledger.builder().cancel_on_drop(true).max_in_flight(2));
        let mut tasks = JoinSet::new();
        for task in 0..16 {
            let batcher = batcher.clone();
            tasks.spawn(async move {
                for job in (0..JOBS).skip(task).step_by(16) {
                    let mut handle = batcher.submit(job);
                    if handle.accepted().await.is_ok() && job % 3 > 0 {
                        let _ = handle.await;
                    }
                }
            });
        }
        tasks.join_all().await;
        batcher.shutdown().await.expect("drains");
        let stats = batcher.stats();
        let processed = (0..JOBS).map(|job| u64::from(ledger.times(job)));
        assert!(processed.clone().all(|times| times <= 1));
        assert_eq!(processed.sum::<u64>(), stats.completed + stats.failed);
        assert_eq!(
            stats.accepted,
            stats.completed + stats.failed + stats.withdrawn
        );
    });
}

/// How a round of the next test ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Shutdown,
    Cancel,
    DropLast,
    DropStart,
    DropRuntime,
}

/// Lets many callers run into the end of a batcher, and counts that all of them
/// come to know.
fn callers_run_into(end: End, round: usize) {
    const CALLERS: usize = 12;
    let loop_runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build();
    let loop_runtime = loop_runtime.expect("a runtime");
    let ledger = Ledger::new(100_000);
    let batcher = idle(ledger.builder().max_in_flight(2));
    let cancel = CancellationToken::new();
    let start = loop_runtime.spawn(batcher.start(cancel.clone()));
    let next = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (mine, next) = (batcher.clone(), Arc::clone(&next));
            let ledger = ledger.clone();
            // Where the last batcher is to be dropped, each caller drops its own.
            let jobs = if matches!(end, End::DropLast) {
                40
            } else {
                usize::MAX
            };
            thread::spawn(move || {
                for _ in 0..jobs {
                    let job = next.fetch_add(1, Ordering::SeqCst);
                    match mine.submit(job).blocking_wait() {
                        Ok(result) => {
                            assert_eq!(result, checksum(job));
                            assert_eq!(ledger.times(job), 1);
                        }
                        Err(JobError::Closed) => {
                            assert_eq!(ledger.times(job), 0);
                            return;
                        }
                        Err(JobError::Abandoned) => {
                            assert!(ledger.times(job) <= 1);
                            return;
                        }
                        Err(_) => assert_eq!(ledger.times(job), 1),
                    }
                }
            })
        })
        .collect();
    // Somewhere in the midst of things.
    while next.load(Ordering::SeqCst) < 50 + round * 7 {
        thread::yield_now();
    }
    match end {
        End::Shutdown => loop_runtime.block_on(batcher.shutdown()).expect("drains"),
        End::Cancel => cancel.cancel(),
        End::DropLast => drop(batcher),
        End::DropStart => start.abort(),
        End::DropRuntime => drop(loop_runtime),
    }
    for caller in callers {
        caller
            .join()
            .unwrap_or_else(|_| panic!("{end:?} in round {round}"));
    }
}

#[test]
fn every_caller_gets_a_reply_whatever_the_end() {
    for round in 0..8 {
        for end in [
            End::Shutdown,
            End::Cancel,
            End::DropLast,
            End::DropStart,
            End::DropRuntime,
        ] {
            callers_run_into(end, round);
        }
    }
}
