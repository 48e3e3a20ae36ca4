//! What came of one policy on one sequence of arrivals.

use crate::arrivals::{PER_JOB, SETUP};

/// What a batch takes once it is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// One batch after the other, a setup and then some for each job.
    OneServer,
    /// No time at all: only waiting counts.
    Instant,
}

impl Service {
    pub fn ticks(self, jobs: usize) -> u64 {
        match self {
            Self::OneServer => SETUP + PER_JOB * jobs as u64,
            Self::Instant => 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// From each job's arrival to its result, in ticks.
    latencies: Vec<u64>,
    pub flushes: u64,
}

impl Outcome {
    pub fn new(arrivals: &[u64], done: &[u64], flushes: u64) -> Self {
        assert_eq!(arrivals.len(), done.len(), "a result for every job");
        let latencies = arrivals.iter().zip(done).map(|(from, to)| to - from);
        Self {
            latencies: latencies.collect(),
            flushes,
        }
    }

    /// Summed latency in setups.
    pub fn total(&self) -> f64 {
        self.latencies.iter().sum::<u64>() as f64 / SETUP as f64
    }

    /// Mean latency in setups.
    pub fn mean(&self) -> f64 {
        self.total() / self.latencies.len() as f64
    }

    /// The latency in setups that 99 of 100 jobs do not exceed.
    pub fn p99(&self) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() * 99).div_ceil(100) - 1] as f64 / SETUP as f64
    }

    pub fn flushes_per_thousand(&self) -> f64 {
        self.flushes as f64 * 1000.0 / self.latencies.len() as f64
    }

    /// Waiting and flushes in one currency, in setups.
    pub fn cost(&self, price: f64) -> f64 {
        self.total() + price * self.flushes as f64
    }
}
