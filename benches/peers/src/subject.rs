//! One subject under one load: the whole of a child process.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime;

use crate::load::{Load, Tally, drive};
use crate::{counting, queues, subjects};

/// A batcher that adds one to each job, behind the one call that its users
/// make. Each caller has its own clone.
pub trait Subject: Clone + Send + 'static {
    /// Submits the job and waits for its result, or else [`fail`]s.
    fn ask(&mut self, job: u64) -> impl Future<Output = Option<u64>> + Send;

    /// Returns what a task collects that waits for many jobs at once: a clone
    /// that asks, unless there is a handle.
    fn future(&self, job: u64) -> impl Future<Output = Option<u64>> + Send {
        let mut subject = self.clone();
        async move { subject.ask(job).await }
    }
}

static ERROR: OnceLock<String> = OnceLock::new();

/// Keeps the first error, to be reported; a result says no more than that there
/// was one, so that it costs the callers nothing.
#[cold]
pub fn fail<T>(error: impl Display) -> Option<T> {
    ERROR.get_or_init(|| error.to_string());
    None
}

static BATCHES: AtomicUsize = AtomicUsize::new(0);
static BATCHED: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Counts a batch; every processor calls it.
pub fn note_batch(jobs: usize) {
    BATCHES.fetch_add(1, Relaxed);
    BATCHED.fetch_add(jobs, Relaxed);
    LARGEST.fetch_max(jobs, Relaxed);
}

/// The processor of all who take a vector and return one.
pub fn add_one(mut jobs: Vec<u64>) -> Vec<u64> {
    note_batch(jobs.len());
    for job in &mut jobs {
        *job += 1;
    }
    jobs
}

/// What came of one load.
#[derive(Debug, Default)]
pub struct Outcome {
    pub elapsed: Duration,
    pub tally: Tally,
    /// The first error that a caller got.
    pub error: Option<String>,
    pub mean_batch: f64,
    pub largest: usize,
    /// Of the whole process up to the end of the load; zero unless counted.
    pub allocations: u64,
    pub bytes: u64,
}

/// Runs a load on a runtime of its own; `start` runs within it.
pub(crate) fn run<S: Subject>(load: Load, start: impl FnOnce(&Load) -> S) -> Outcome {
    let mut builder = match load.case.threads {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(load.case.threads)
        .enable_all()
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(async {
        let subject = start(&load);
        let (tally, elapsed) = drive(subject, load).await;
        let (allocations, bytes) = counting::so_far();
        Outcome {
            elapsed,
            tally,
            error: ERROR.get().cloned(),
            mean_batch: BATCHED.load(Relaxed) as f64 / BATCHES.load(Relaxed) as f64,
            largest: LARGEST.load(Relaxed),
            allocations,
            bytes,
        }
    });
    // What a subject has left running does not matter any more.
    runtime.shutdown_background();
    outcome
}

impl Outcome {
    /// What the children tell their parent, a line each.
    fn to_lines(&self) -> String {
        let tally = &self.tally;
        let error = self.error.as_deref().unwrap_or_default();
        let lines = [
            ("jobs", tally.jobs.to_string()),
            ("nanos", self.elapsed.as_nanos().to_string()),
            ("wrong", tally.wrong.to_string()),
            ("failed", tally.failed.to_string()),
            ("panicked", tally.panicked.to_string()),
            ("mean_batch", self.mean_batch.to_string()),
            ("largest", self.largest.to_string()),
            ("allocations", self.allocations.to_string()),
            ("bytes", self.bytes.to_string()),
            ("error", error.replace('\n', " ")),
        ];
        lines
            .map(|(key, value)| format!("{key}={value}\n"))
            .concat()
    }

    pub fn from_lines(lines: &str) -> Option<Self> {
        let pairs: BTreeMap<_, _> = lines.lines().filter_map(|l| l.split_once('=')).collect();
        let number = |key| pairs.get(key)?.parse::<u64>().ok();
        let error = pairs.get("error").filter(|error| !error.is_empty());
        Some(Self {
            elapsed: Duration::from_nanos(number("nanos")?),
            tally: Tally {
                jobs: number("jobs")? as usize,
                wrong: number("wrong")?,
                failed: number("failed")?,
                panicked: number("panicked")?,
            },
            error: error.map(|&error| error.to_owned()),
            mean_batch: pairs.get("mean_batch")?.parse().ok()?,
            largest: number("largest")? as usize,
            allocations: number("allocations")?,
            bytes: number("bytes")?,
        })
    }
}

/// The main function of the child processes: a subject's name and its load.
pub fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let outcome = args.split_first().and_then(|(name, load)| {
        let load = Load::from_args(load)?;
        subjects::run(name, load).or_else(|| queues::run(name, load))
    });
    let Some(outcome) = outcome else {
        eprintln!(
            "usage: subject <name> <closed|flood|collected|collected-spawned> <threads> <callers> <batch> <queue> <jobs or ..ms> <..ms>"
        );
        return ExitCode::FAILURE;
    };
    print!("{}", outcome.to_lines());
    ExitCode::SUCCESS
}
