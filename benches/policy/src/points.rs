//! Where the contenders meet: the loads, the arrivals, and how far the run is.

use std::io::{IsTerminal, Write, stderr};

use crate::arrivals::{Kind, PER_JOB, SETUP};

/// Arriving work in percent of what the server could do in endless batches.
pub const LOADS: [u32; 7] = [5, 10, 20, 40, 60, 80, 90];

pub const KINDS: [Kind; 2] = [Kind::Poisson, Kind::OnOff];

const JOBS: usize = 30_000;

/// One load of one kind of arrivals.
pub struct Point {
    pub kind: Kind,
    pub load: u32,
    pub arrivals: Vec<u64>,
}

impl Point {
    pub fn new(kind: Kind, load: u32) -> Self {
        let seed = u64::from(load) + 1000 * kind as u64;
        Self {
            kind,
            load,
            arrivals: kind.arrivals(rate(load), JOBS, seed),
        }
    }

    /// All points of all kinds.
    pub fn all() -> Vec<Self> {
        let pairs = KINDS
            .into_iter()
            .flat_map(|kind| LOADS.map(|load| (kind, load)));
        pairs.map(|(kind, load)| Self::new(kind, load)).collect()
    }
}

/// Jobs a setup at this load.
pub fn rate(load: u32) -> f64 {
    f64::from(load) / 100.0 * SETUP as f64 / PER_JOB as f64
}

/// Says on stderr how far the run is.
pub struct Progress {
    done: usize,
    of: usize,
}

impl Progress {
    pub fn new(of: usize) -> Self {
        Self { done: 0, of }
    }

    pub fn step(&mut self, what: &str) {
        self.done += 1;
        let (done, of) = (self.done, self.of);
        let mut stderr = stderr();
        // Progress that cannot be shown is no reason to stop.
        let _ = if stderr.is_terminal() {
            let end = if done == of { "\r\x1b[K" } else { "" };
            write!(stderr, "\r\x1b[K{done}/{of} {what}{end}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{done}/{of} {what}")
        };
    }
}
