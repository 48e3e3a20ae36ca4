//! What is asked of a subject: how many callers, how many jobs, in which shape.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::subject::Subject;

/// As long as callers wait in every measure by the clock.
pub const INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Each caller is a task that awaits its job before it submits the next.
    Closed,
    /// Each job is a task of its own, and all of them are spawned at once.
    Flood,
    /// One task, that of `block_on`, collects that many futures of the subject
    /// in one `join_all`.
    Collected,
    /// The same in a task that is spawned.
    CollectedSpawned,
}

/// Everything about a load but its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Case {
    pub shape: Shape,
    /// One is a current-thread runtime.
    pub threads: usize,
    /// Zero in a flood, and how many futures where they are collected.
    pub callers: usize,
    pub batch: usize,
    pub queue: usize,
}

impl Case {
    pub const fn closed(threads: usize, callers: usize, batch: usize) -> Self {
        Self {
            shape: Shape::Closed,
            threads,
            callers,
            batch,
            queue: 1024,
        }
    }

    pub const fn flood(threads: usize, batch: usize) -> Self {
        Self {
            shape: Shape::Flood,
            threads,
            callers: 0,
            batch,
            queue: 1024,
        }
    }

    pub const fn collected(threads: usize, futures: usize, batch: usize) -> Self {
        Self {
            shape: Shape::Collected,
            threads,
            callers: futures,
            batch,
            queue: 1024,
        }
    }

    /// The same load from a spawned task.
    pub const fn spawned(self) -> Self {
        Self {
            shape: Shape::CollectedSpawned,
            ..self
        }
    }

    pub const fn queue(self, queue: usize) -> Self {
        Self { queue, ..self }
    }

    /// The load nearest to that many jobs in which all callers have as many,
    /// and each at least one.
    pub fn jobs(self, jobs: usize) -> Load {
        let callers = self.callers.max(1);
        let jobs = (jobs / callers).max(1) * callers;
        self.length(Length::Jobs(jobs))
    }

    /// The load of that long, after a while to warm up.
    pub fn clock(self, clock: Duration) -> Load {
        self.length(Length::Clock(clock))
    }

    fn length(self, length: Length) -> Load {
        Load {
            case: self,
            length,
            interval: INTERVAL,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape {
            Shape::Closed if self.callers == 1 => f.write_str("1 caller")?,
            Shape::Closed => write!(f, "{} callers", self.callers)?,
            Shape::Flood => f.write_str("flood")?,
            Shape::Collected => write!(f, "{} collected", self.callers)?,
            Shape::CollectedSpawned => write!(f, "{} collected, spawned", self.callers)?,
        }
        write!(f, ", batch {}", self.batch)?;
        if self.queue != 1024 {
            write!(f, ", queue {}", self.queue)?;
        }
        match self.threads {
            1 => f.write_str(", one thread"),
            threads => write!(f, ", {threads} threads"),
        }
    }
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub enum Length {
    /// After so many jobs, of which all callers have as many.
    Jobs(usize),
    /// When the time is up, for all callers at once, so that there is no end in
    /// which the last of them do not fill a batch. Only for a closed loop.
    Clock(Duration),
}

/// A case, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub case: Case,
    pub length: Length,
    /// How long the first job of a batch waits for company, where a subject
    /// waits.
    pub interval: Duration,
}

impl Load {
    /// As the subject's process takes it.
    pub fn to_args(self) -> [String; 7] {
        let shape = match self.case.shape {
            Shape::Closed => "closed",
            Shape::Flood => "flood",
            Shape::Collected => "collected",
            Shape::CollectedSpawned => "collected-spawned",
        };
        let length = match self.length {
            Length::Jobs(jobs) => jobs.to_string(),
            Length::Clock(clock) => format!("{}ms", clock.as_millis()),
        };
        [
            shape.to_owned(),
            self.case.threads.to_string(),
            self.case.callers.to_string(),
            self.case.batch.to_string(),
            self.case.queue.to_string(),
            length,
            format!("{}ms", self.interval.as_millis()),
        ]
    }

    pub fn from_args(args: &[String]) -> Option<Self> {
        let [shape, threads, callers, batch, queue, length, interval] = args else {
            return None;
        };
        let shape = match shape.as_str() {
            "closed" => Shape::Closed,
            "flood" => Shape::Flood,
            "collected" => Shape::Collected,
            "collected-spawned" => Shape::CollectedSpawned,
            _ => return None,
        };
        let millis = |text: &str| {
            let number = text.strip_suffix("ms")?.parse().ok()?;
            Some(Duration::from_millis(number))
        };
        Some(Self {
            case: Case {
                shape,
                threads: threads.parse().ok()?,
                callers: callers.parse().ok()?,
                batch: batch.parse().ok()?,
                queue: queue.parse().ok()?,
            },
            length: match millis(length) {
                Some(clock) => Length::Clock(clock),
                None => Length::Jobs(length.parse().ok()?),
            },
            interval: millis(interval)?,
        })
    }
}

/// What the callers saw, beside right results.
#[derive(Debug, Default)]
pub struct Tally {
    /// Jobs that count.
    pub jobs: usize,
    pub wrong: u64,
    pub failed: u64,
    pub panicked: u64,
}

impl Tally {
    /// Notes an answer that is not one more than the job.
    #[cold]
    fn note(&mut self, answer: Option<u64>) {
        match answer {
            Some(_) => self.wrong += 1,
            None => self.failed += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.jobs += other.jobs;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.panicked += other.panicked;
    }
}

/// Puts the load on the subject, checks every result, and says how long it
/// took.
pub async fn drive<S: Subject>(subject: S, load: Load) -> (Tally, Duration) {
    match (load.length, load.case.shape) {
        (Length::Clock(clock), _) => by_the_clock(subject, load.case, clock).await,
        (Length::Jobs(jobs), Shape::Flood) => by_number(subject, jobs, 1).await,
        (Length::Jobs(jobs), Shape::Closed) => {
            by_number(subject, load.case.callers, jobs / load.case.callers).await
        }
        (Length::Jobs(jobs), Shape::Collected) => collected(subject, jobs).await,
        (Length::Jobs(jobs), Shape::CollectedSpawned) => {
            let task = tokio::spawn(collected(subject, jobs));
            task.await.expect("no panic")
        }
    }
}

async fn by_number<S: Subject>(subject: S, tasks: usize, each: usize) -> (Tally, Duration) {
    let began = Instant::now();
    let callers = (0..tasks as u64).map(|caller| {
        let mut subject = subject.clone();
        tokio::spawn(async move {
            let mut tally = Tally::default();
            for job in caller * each as u64..(caller + 1) * each as u64 {
                let answer = subject.ask(job).await;
                if answer != Some(job + 1) {
                    tally.note(answer);
                }
            }
            tally.jobs = each;
            tally
        })
    });
    let tally = total(callers.collect()).await;
    (tally, began.elapsed())
}

async fn collected<S: Subject>(subject: S, jobs: usize) -> (Tally, Duration) {
    let began = Instant::now();
    let answers = join_all((0..jobs as u64).map(|job| subject.future(job))).await;
    let mut tally = Tally::default();
    for (job, answer) in (0..).zip(answers) {
        if answer != Some(job + 1) {
            tally.note(answer);
        }
    }
    tally.jobs = jobs;
    (tally, began.elapsed())
}

static PHASE: AtomicU8 = AtomicU8::new(WARMING);
const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

async fn by_the_clock<S: Subject>(subject: S, case: Case, clock: Duration) -> (Tally, Duration) {
    let callers = (0..case.callers as u64).map(|caller| {
        let mut subject = subject.clone();
        tokio::spawn(async move {
            let mut tally = Tally::default();
            for job in caller << 32.. {
                let answer = subject.ask(job).await;
                if answer != Some(job + 1) {
                    tally.note(answer);
                }
                match PHASE.load(Relaxed) {
                    WARMING => {}
                    COUNTING => tally.jobs += 1,
                    _ => break,
                }
            }
            tally
        })
    });
    let callers = callers.collect();
    sleep(clock / 5).await;
    PHASE.store(COUNTING, Relaxed);
    let began = Instant::now();
    sleep(clock).await;
    PHASE.store(OVER, Relaxed);
    let elapsed = began.elapsed();
    (total(callers).await, elapsed)
}

async fn total(callers: Vec<JoinHandle<Tally>>) -> Tally {
    let mut total = Tally::default();
    for caller in callers {
        match caller.await {
            Ok(tally) => total.add(&tally),
            Err(_) => total.panicked += 1,
        }
    }
    total
}
