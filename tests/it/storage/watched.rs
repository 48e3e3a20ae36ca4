//! A storage that logs what goes in and out, and any number of steps with it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use microbatch::{BatchStorage, MicroBatch};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use super::Pending;
use crate::support::{Gate, lock, millis, results, run, secs, settle};

#[derive(Debug, Clone)]
pub(super) enum Event {
    Append(u32, Instant),
    Take {
        max_jobs: usize,
        max_weight: usize,
        at: Instant,
        batch: Vec<u32>,
    },
}

/// Logs what goes into the storage within, and comes out.
struct Watched<S> {
    inner: S,
    log: Arc<Mutex<Vec<Event>>>,
}

impl<S: BatchStorage<u32, u32>> BatchStorage<u32, u32> for Watched<S> {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn append(&mut self, job: Pending) {
        lock(&self.log).push(Event::Append(*job.job(), Instant::now()));
        self.inner.append(job);
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<Pending> {
        let held = self.inner.len();
        let taken = self.inner.take(max_jobs, max_weight);
        assert_eq!(held, self.inner.len() + taken.len());
        lock(&self.log).push(Event::Take {
            max_jobs,
            max_weight,
            at: Instant::now(),
            batch: taken.iter().map(|job| *job.job()).collect(),
        });
        taken
    }
}

/// The kind of a job, which its number begins with: its lane, or its key.
pub(super) fn kind(job: u32) -> u32 {
    job / 1_000_000
}

/// The weight of a job, which follows in its number.
pub(super) fn weight(job: u32) -> usize {
    (job / 10_000 % 100) as usize
}

/// The first of the jobs that fit under both limits.
pub(super) fn fitting(
    jobs: impl IntoIterator<Item = u32>,
    max_jobs: usize,
    max_weight: usize,
) -> Vec<u32> {
    let mut room = max_weight;
    let fits = jobs.into_iter().map_while(|job| {
        room = room.checked_sub(weight(job))?;
        Some(job)
    });
    fits.take(max_jobs).collect()
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A job of that kind and weight comes.
    Submit(u32, u32),
    /// A batch ends, and the next one starts.
    Pass,
    Wait(Duration),
}

#[derive(Debug, Clone)]
pub(super) struct Script {
    pub(super) steps: Vec<Step>,
    max_jobs: usize,
    max_weight: usize,
}

/// Any arrivals and takes of jobs with kinds below that.
pub(super) fn any_script(kinds: u32) -> impl Strategy<Value = Script> {
    let step = prop_oneof![
        4 => (0..kinds, 0..8_u32).prop_map(|(kind, weight)| Step::Submit(kind, weight)),
        2 => Just(Step::Pass),
        1 => (0..40_u64).prop_map(|wait| Step::Wait(millis(wait))),
    ];
    let script = (vec(step, 0..80), 1..6_usize, 8..20_usize);
    script.prop_map(|(steps, max_jobs, max_weight)| Script {
        steps,
        max_jobs,
        max_weight,
    })
}

impl Script {
    /// Plays it with the storage, checks that each job gets its own result, and returns
    /// the log of the storage.
    pub(super) fn play(
        &self,
        storage: impl BatchStorage<u32, u32>,
    ) -> Result<Vec<Event>, TestCaseError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(self.play_here(storage))
    }

    async fn play_here(
        &self,
        inner: impl BatchStorage<u32, u32>,
    ) -> Result<Vec<Event>, TestCaseError> {
        let (gate, log) = (Gate::closed(), Arc::default());
        let batcher = run(MicroBatch::builder(gate.clone())
            .max_batch_size(self.max_jobs)
            .max_batch_weight(self.max_weight, |job| weight(*job))
            .flush_when_idle(true)
            .queue_capacity(1_000)
            .shutdown_timeout(secs(1))
            .storage(Watched {
                inner,
                log: Arc::clone(&log),
            }));
        let (mut jobs, mut handles) = (Vec::new(), Vec::new());
        for step in &self.steps {
            match step {
                Step::Submit(kind, weight) => {
                    let job = kind * 1_000_000 + weight * 10_000 + jobs.len() as u32;
                    jobs.push(job);
                    handles.push(batcher.submit(job));
                }
                Step::Pass => gate.pass(1),
                Step::Wait(time) => sleep(*time).await,
            }
            settle().await;
        }
        gate.pass(1_000);
        prop_assert_eq!(results(handles).await, jobs.clone());
        let mut processed = gate.batches().concat();
        processed.sort_unstable();
        jobs.sort_unstable();
        prop_assert_eq!(processed, jobs);
        Ok(lock(&log).clone())
    }
}
