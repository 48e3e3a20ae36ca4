//! Many tasks send many jobs through one batcher.

use std::sync::Arc;
use std::time::{Duration, Instant};

use microbatch::{MicroBatch, Stats};
use tokio::task::JoinSet;

use crate::checks::Checks;
use crate::load::{self, Job, Ledger, Tally};
use crate::progress::Progress;
use crate::{THREADS, runtime};

pub struct Flood {
    batcher: MicroBatch<Job, u64>,
    ledger: Arc<Ledger>,
    tally: Tally,
    jobs: u64,
}

impl Flood {
    /// Starts a batcher for floods of that many jobs at most.
    pub fn start(jobs: u32) -> Self {
        let ledger = Arc::new(Ledger::new(jobs));
        Self {
            batcher: load::start(&ledger),
            ledger,
            tally: Tally::default(),
            jobs: 0,
        }
    }

    /// Sends the jobs, and returns when there is nothing left to do.
    pub async fn pour(&mut self, jobs: u32, tasks: u32, progress: &Progress) {
        self.ledger.wipe();
        self.jobs += u64::from(jobs);
        let mut callers = JoinSet::new();
        for task in 0..tasks {
            let (batcher, progress) = (self.batcher.clone(), progress.clone());
            let numbers = (task..jobs).step_by(tasks as usize);
            callers.spawn(load::call(batcher, numbers, move |done| progress.add(done)));
        }
        for tally in callers.join_all().await {
            self.tally += tally;
        }
        self.batcher.flush().await;
    }

    /// Stops the batcher and compares all counts.
    pub async fn finish(self) -> (Checks, Tally, Stats) {
        self.batcher.shutdown().await.expect("drains in time");
        let stats = self.batcher.stats();
        let checks = Checks::of(self.jobs, &self.tally, &self.ledger, stats);
        (checks, self.tally, stats)
    }
}

pub fn run(jobs: u32, tasks: u32) -> bool {
    let progress = Progress::every(Duration::from_secs(1), move |done| {
        format!("{done} of {jobs} jobs")
    });
    let began = Instant::now();
    let (checks, tally, stats) = runtime().block_on(async {
        let mut flood = Flood::start(jobs);
        flood.pour(jobs, tasks, &progress).await;
        flood.finish().await
    });
    let took = began.elapsed();
    drop(progress);
    checks.print();
    let rate = f64::from(jobs) / took.as_secs_f64();
    println!(
        "\n{jobs} jobs of {tasks} tasks on {THREADS} threads in {:.1} s, {rate:.0} a second: \
         {} batches of {:.1} jobs, {} flushes, {} jobs withdrawn",
        took.as_secs_f64(),
        stats.batches,
        stats.accepted as f64 / stats.batches as f64,
        tally.flushes,
        stats.withdrawn,
    );
    println!(
        "{}",
        if checks.hold() {
            "all match"
        } else {
            "they do not match"
        }
    );
    checks.hold()
}
