//! What is asked of a subject: how many callers, how many jobs, in which shape.

use std::fmt;
use std::time::Duration;

use crate::subject::Subject;

/// As long as callers wait in every measure by the clock.
pub const INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Each caller is a task that awaits its job before it submits the next.
    Closed,
    /// Each job is a task of its own, and all of them are spawned at once.
    Flood,
}

/// Everything about a load but its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Case {
    pub shape: Shape,
    /// One is a current-thread runtime.
    pub threads: usize,
    /// Zero in a flood.
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

    pub const fn queue(self, queue: usize) -> Self {
        Self { queue, ..self }
    }

    /// The load nearest to that many jobs in which all callers have as many,
    /// and each at least one.
    pub fn jobs(self, jobs: usize) -> Load {
        let callers = self.callers.max(1);
        Load {
            case: self,
            jobs: (jobs / callers).max(1) * callers,
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

/// A case, and how many jobs.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub case: Case,
    pub jobs: usize,
    /// How long the first job of a batch waits for company, where a subject
    /// waits.
    pub interval: Duration,
}

impl Load {
    /// As the subject's process takes it.
    pub fn to_args(self) -> [String; 7] {
        let Case {
            shape,
            threads,
            callers,
            batch,
            queue,
        } = self.case;
        let shape = match shape {
            Shape::Closed => "closed",
            Shape::Flood => "flood",
        };
        let interval = self.interval.as_millis() as usize;
        let [threads, callers, batch, queue, jobs, interval] =
            [threads, callers, batch, queue, self.jobs, interval].map(|number| number.to_string());
        let shape = shape.to_owned();
        [shape, threads, callers, batch, queue, jobs, interval]
    }

    pub fn from_args(args: &[String]) -> Option<Self> {
        let [shape, numbers @ ..] = args else {
            return None;
        };
        let shape = match shape.as_str() {
            "closed" => Shape::Closed,
            "flood" => Shape::Flood,
            _ => return None,
        };
        let numbers = numbers.iter().map(|number| number.parse().ok());
        let numbers = numbers.collect::<Option<Vec<_>>>()?;
        let &[threads, callers, batch, queue, jobs, interval] = numbers.as_slice() else {
            return None;
        };
        let case = Case {
            shape,
            threads,
            callers,
            batch,
            queue,
        };
        let interval = Duration::from_millis(interval as u64);
        Some(Self {
            case,
            jobs,
            interval,
        })
    }
}

/// What the callers saw, beside right results.
#[derive(Debug, Default)]
pub struct Tally {
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
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.panicked += other.panicked;
    }
}

/// Puts the load on the subject and checks every result.
pub async fn drive<S: Subject>(subject: S, load: Load) -> Tally {
    let (tasks, each) = match load.case.shape {
        Shape::Closed => (load.case.callers, load.jobs / load.case.callers),
        Shape::Flood => (load.jobs, 1),
    };
    let tasks: Vec<_> = (0..tasks)
        .map(|caller| {
            let mut subject = subject.clone();
            let jobs = caller as u64 * each as u64..(caller as u64 + 1) * each as u64;
            tokio::spawn(async move {
                let mut tally = Tally::default();
                for job in jobs {
                    let answer = subject.ask(job).await;
                    if answer != Some(job + 1) {
                        tally.note(answer);
                    }
                }
                tally
            })
        })
        .collect();
    let mut total = Tally::default();
    for task in tasks {
        match task.await {
            Ok(tally) => total.add(&tally),
            Err(_) => total.panicked += 1,
        }
    }
    total
}
