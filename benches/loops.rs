//! What a job costs in each of the loops with which users collect handles.
//!
//! ```sh
//! cargo bench --bench loops
//! cargo bench --bench loops -- 1000 10000 --queue 1024 --threads 2 --cap 5
//! ```
//!
//! A loop submits that many jobs at once to a queue of 100 (`--queue`), with
//! batches of 100 and an interval of 1 ms, and collects all results in one task,
//! unless its row says otherwise: in that of `block_on`, as in `main` and in
//! tests, or in a spawned one (`--spawned`), which a current-thread runtime polls
//! more often. A cell is the best of some rounds in nanoseconds a job, on a
//! current-thread runtime (`--threads 1`), and in brackets how many times as long as the handles awaited one by one, in the
//! same run. Where a cell took more than `--cap` seconds (20), or would by the
//! cell before it, it says so instead.
//!
//! `cargo test --benches` runs each loop once, over few jobs.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all, try_join_all};
use futures::stream::{self, FuturesOrdered, FuturesUnordered, StreamExt};
use microbatch::{CancellationToken, JobError, JobHandle, MicroBatch};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

const CONCURRENCY: usize = 200;
const ROUNDS: usize = 5;
/// A cell gets no further round after that time.
const ENOUGH: Duration = Duration::from_secs(1);

type Batcher = MicroBatch<u64, u64>;
type Answers = Vec<Result<u64, JobError>>;

struct Row {
    name: &'static str,
    /// Whether the results come in the order of the jobs.
    ordered: bool,
    run: fn(Batcher, u64) -> BoxFuture<'static, Answers>,
}

/// The row that the others are compared with.
const ONE_BY_ONE: &str = "handles, one by one";

macro_rules! rows {
    ($($name:expr, $ordered:literal, $run:ident;)*) => {
        &[$(Row { name: $name, ordered: $ordered, run: |batcher, jobs| Box::pin($run(batcher, jobs)) }),*]
    };
}

const ROWS: &[Row] = rows! {
    ONE_BY_ONE, true, one_by_one;
    "handles, last one first", true, backwards;
    "handles, `accepted` and then one by one", true, accepted;
    "`submit_all`", true, submit_all;
    "`join_all`", true, joined;
    "`try_join_all`", true, try_joined;
    "`FuturesOrdered`", true, futures_ordered;
    "`FuturesUnordered`", false, futures_unordered;
    "`buffered(200)`", true, buffered;
    "`buffer_unordered(200)`", false, buffer_unordered;
    "`submit_stream(200)`", true, submit_stream;
    "`submit_stream_unordered(200)`", false, submit_stream_unordered;
    "`select!` over two handles", true, select_two;
    "`timeout` around `&mut handle`", true, timeouts;
    "`poll_fn` over a `Vec`", true, polled_by_hand;
    "a task a handle, `JoinSet`", false, join_set;
    "a task a job, `spawn`", true, tasks;
};

fn submitted(batcher: &Batcher, jobs: u64) -> Vec<JobHandle<u64>> {
    (0..jobs).map(|job| batcher.submit(job)).collect()
}

async fn one_by_one(batcher: Batcher, jobs: u64) -> Answers {
    let mut answers = Vec::new();
    for handle in submitted(&batcher, jobs) {
        answers.push(handle.await);
    }
    answers
}

async fn backwards(batcher: Batcher, jobs: u64) -> Answers {
    let mut answers = Vec::new();
    for handle in submitted(&batcher, jobs).into_iter().rev() {
        answers.push(handle.await);
    }
    answers.reverse();
    answers
}

async fn accepted(batcher: Batcher, jobs: u64) -> Answers {
    let mut handles = Vec::new();
    for job in 0..jobs {
        let mut handle = batcher.submit(job);
        if handle.accepted().await.is_ok() {
            handles.push(handle);
        }
    }
    let mut answers = Vec::new();
    for handle in handles {
        answers.push(handle.await);
    }
    answers
}

async fn submit_all(batcher: Batcher, jobs: u64) -> Answers {
    batcher.submit_all(0..jobs).await
}

async fn joined(batcher: Batcher, jobs: u64) -> Answers {
    join_all(submitted(&batcher, jobs)).await
}

async fn try_joined(batcher: Batcher, jobs: u64) -> Answers {
    match try_join_all(submitted(&batcher, jobs)).await {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}

async fn futures_ordered(batcher: Batcher, jobs: u64) -> Answers {
    let handles: FuturesOrdered<_> = submitted(&batcher, jobs).into_iter().collect();
    handles.collect().await
}

async fn futures_unordered(batcher: Batcher, jobs: u64) -> Answers {
    let handles: FuturesUnordered<_> = submitted(&batcher, jobs).into_iter().collect();
    handles.collect().await
}

async fn buffered(batcher: Batcher, jobs: u64) -> Answers {
    let handles = stream::iter(0..jobs).map(|job| batcher.submit(job));
    handles.buffered(CONCURRENCY).collect().await
}

async fn buffer_unordered(batcher: Batcher, jobs: u64) -> Answers {
    let handles = stream::iter(0..jobs).map(|job| batcher.submit(job));
    handles.buffer_unordered(CONCURRENCY).collect().await
}

async fn submit_stream(batcher: Batcher, jobs: u64) -> Answers {
    let results = batcher.submit_stream(stream::iter(0..jobs), CONCURRENCY);
    results.collect().await
}

async fn submit_stream_unordered(batcher: Batcher, jobs: u64) -> Answers {
    let results = batcher.submit_stream_unordered(stream::iter(0..jobs), CONCURRENCY);
    results.collect().await
}

async fn select_two(batcher: Batcher, jobs: u64) -> Answers {
    let mut answers = Vec::new();
    let mut handles = submitted(&batcher, jobs).into_iter();
    while let Some(mut one) = handles.next() {
        let Some(mut other) = handles.next() else {
            answers.push(one.await);
            break;
        };
        let pair = tokio::select! {
            answer = &mut one => [answer, other.await],
            answer = &mut other => [one.await, answer],
        };
        answers.extend(pair);
    }
    answers
}

async fn timeouts(batcher: Batcher, jobs: u64) -> Answers {
    let mut answers = Vec::new();
    for mut handle in submitted(&batcher, jobs) {
        loop {
            if let Ok(answer) = timeout(Duration::from_millis(5), &mut handle).await {
                answers.push(answer);
                break;
            }
        }
    }
    answers
}

async fn polled_by_hand(batcher: Batcher, jobs: u64) -> Answers {
    let handles = submitted(&batcher, jobs).into_iter();
    let mut pending: Vec<_> = handles.enumerate().collect();
    let mut answers: Vec<_> = (0..jobs).map(|_| None).collect();
    poll_fn(|cx| {
        pending.retain_mut(|(job, handle)| match Pin::new(handle).poll(cx) {
            Poll::Ready(answer) => {
                answers[*job] = Some(answer);
                false
            }
            Poll::Pending => true,
        });
        if pending.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    answers.into_iter().flatten().collect()
}

async fn join_set(batcher: Batcher, jobs: u64) -> Answers {
    let mut set: JoinSet<_> = submitted(&batcher, jobs).into_iter().collect();
    let mut answers = Vec::new();
    while let Some(answer) = set.join_next().await {
        answers.push(answer.expect("no panic"));
    }
    answers
}

async fn tasks(batcher: Batcher, jobs: u64) -> Answers {
    let tasks: Vec<_> = (0..jobs)
        .map(|job| {
            let batcher = batcher.clone();
            tokio::spawn(async move { batcher.submit(job).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("no panic"));
    }
    answers
}

struct Options {
    lengths: Vec<u64>,
    queue: usize,
    threads: usize,
    spawned: bool,
    rounds: usize,
    cap: Duration,
}

impl Options {
    /// Cargo adds `--bench` where it measures and not where it tests.
    fn from_args() -> Result<Self, String> {
        let mut options = Self {
            lengths: Vec::new(),
            queue: 100,
            threads: 1,
            spawned: false,
            rounds: 1,
            cap: Duration::from_secs(20),
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || {
                let value = args.next().and_then(|value| value.parse().ok());
                value
                    .filter(|value| *value > 0)
                    .ok_or(format!("{arg} takes a number"))
            };
            match arg.as_str() {
                "--bench" => options.rounds = ROUNDS,
                "--spawned" => options.spawned = true,
                "--queue" => options.queue = value()?,
                "--threads" => options.threads = value()?,
                "--cap" => options.cap = Duration::from_secs(value()? as u64),
                _ => match arg.parse() {
                    Ok(length) if length > 0 => options.lengths.push(length),
                    _ => return Err(format!("not a number of jobs: {arg}")),
                },
            }
        }
        if options.lengths.is_empty() {
            options.lengths = match options.rounds {
                1 => vec![150],
                _ => vec![1_000, 10_000, 100_000],
            };
        }
        options.lengths.sort_unstable();
        Ok(options)
    }

    fn runtime(&self) -> Runtime {
        let mut builder = match self.threads {
            1 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        let runtime = builder.worker_threads(self.threads).enable_time().build();
        runtime.expect("a runtime")
    }

    fn batcher(&self) -> Batcher {
        MicroBatch::builder(|mut jobs: Vec<u64>| async move {
            jobs.iter_mut().for_each(|job| *job += 1);
            Ok::<_, String>(jobs)
        })
        .max_batch_size(100)
        .queue_capacity(self.queue)
        .interval(Duration::from_millis(1))
        .build_running(CancellationToken::new())
        .expect("valid options")
    }

    /// Runs a loop once, checks its results, and returns how long it took; or
    /// none, where that was too long.
    fn round(&self, row: &Row, jobs: u64) -> Option<Duration> {
        let runtime = self.runtime();
        let collect = {
            let _inside = runtime.enter();
            let batcher = self.batcher();
            let (run, cap) = (row.run, self.cap);
            async move {
                let began = Instant::now();
                let answers = timeout(cap, run(batcher, jobs)).await;
                (began.elapsed(), answers)
            }
        };
        let (took, answers) = match self.spawned {
            true => runtime.block_on(runtime.spawn(collect)).expect("no panic"),
            false => runtime.block_on(collect),
        };
        runtime.shutdown_background();
        let mut results: Vec<_> = answers
            .ok()?
            .into_iter()
            .map(|answer| answer.expect("a result"))
            .collect();
        if !row.ordered {
            results.sort_unstable();
        }
        assert!(
            results.into_iter().eq(1..=jobs),
            "{}: wrong results",
            row.name
        );
        Some(took)
    }

    /// Returns the best of some rounds, or none where the cap is too short.
    fn cell(&self, row: &Row, jobs: u64) -> Option<Duration> {
        let began = Instant::now();
        let mut best = self.round(row, jobs)?;
        for _ in 1..self.rounds {
            if began.elapsed() > ENOUGH {
                break;
            }
            best = best.min(self.round(row, jobs)?);
        }
        Some(best)
    }

    /// Returns nanoseconds a job for each length, none beyond the cap.
    fn row(&self, row: &Row) -> Vec<Option<f64>> {
        let mut costs: Vec<Option<f64>> = Vec::new();
        for &jobs in &self.lengths {
            let predicted = match costs.last() {
                None => 0.0,
                Some(None) => f64::INFINITY,
                Some(Some(cost)) => cost * jobs as f64,
            };
            let cost = if predicted > self.cap.as_nanos() as f64 {
                None
            } else {
                let best = self.cell(row, jobs);
                best.map(|best| best.as_nanos() as f64 / jobs as f64)
            };
            match cost {
                Some(cost) => eprintln!("{jobs:>7} jobs, {}: {cost:.0} ns a job", row.name),
                None => eprintln!("{jobs:>7} jobs, {}: too long", row.name),
            }
            costs.push(cost);
        }
        costs
    }

    fn text(&self, cost: Option<f64>, one_by_one: Option<f64>) -> String {
        let Some(cost) = cost else {
            return format!("> {} s", self.cap.as_secs());
        };
        match one_by_one.map(|one_by_one| cost / one_by_one) {
            Some(ratio) if ratio < 0.1 => format!("{cost:.0} ({ratio:.4})"),
            Some(ratio) => format!("{cost:.0} ({ratio:.2})"),
            None => format!("{cost:.0} (–)"),
        }
    }
}

fn main() -> Result<(), String> {
    let options = Options::from_args()?;
    let rows: Vec<_> = ROWS
        .iter()
        .map(|row| (row.name, options.row(row)))
        .collect();
    let one_by_one = &rows[0].1;

    let Options { queue, threads, .. } = options;
    let task = if options.spawned { "spawned" } else { "main" };
    println!("ns a job (times one by one), queue of {queue}, threads: {threads}, {task} task\n");
    print!("| loop |");
    for jobs in &options.lengths {
        print!(" {jobs} jobs |");
    }
    println!("\n| --- |{}", " ---: |".repeat(options.lengths.len()));
    for (name, costs) in &rows {
        print!("| {name} |");
        for (&cost, &one_by_one) in costs.iter().zip(one_by_one) {
            print!(" {} |", options.text(cost, one_by_one));
        }
        println!();
    }
    Ok(())
}
