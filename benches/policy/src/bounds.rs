//! What no policy can beat, and what theory says of it.

use std::collections::VecDeque;

use crate::arrivals::{PER_JOB, SETUP};
use crate::outcome::{Outcome, Service};

/// The server that is never idle while a job waits and takes all that wait.
pub fn ideal_server(arrivals: &[u64]) -> Outcome {
    let mut done = Vec::with_capacity(arrivals.len());
    let (mut free, mut flushes) = (0, 0);
    while let Some(first) = arrivals.get(done.len()) {
        let start = free.max(*first);
        let waiting = arrivals[done.len()..].partition_point(|arrival| *arrival <= start);
        free = start + Service::OneServer.ticks(waiting);
        done.extend(std::iter::repeat_n(free, waiting));
        flushes += 1;
    }
    Outcome::new(arrivals, &done, flushes)
}

/// Inoue's upper bound on the mean latency of the ideal server under Poisson
/// arrivals, in setups (arXiv 1912.06322).
pub fn inoue(rate: f64) -> f64 {
    let per_job = PER_JOB as f64 / SETUP as f64;
    let load = rate * per_job;
    1.5 / (1.0 - load) + per_job / 2.0 * (load + 2.0) / (1.0 - load * load)
}

/// The least cost in ticks of waiting and flushes for one who knows all
/// arrivals beforehand and whose batches take no time.
///
/// A batch then goes when its last job comes, so with `best(j)` the least cost
/// of the first `j` jobs, `best(j)` is the least over `i < j` of `best(i)`, a
/// price, and the waits until `t[j]` of the jobs after `i`. For each `i` that is
/// a straight line in `t[j]`, of slope `-i`; the slopes fall and the times
/// rise, so one walk along the lower hull of the lines finds every minimum.
pub fn offline_optimum(arrivals: &[u64], price: u64) -> u64 {
    let at = |line: (i128, i128), time: i128| line.1 - line.0 * time;
    let mut hull = VecDeque::from([(0, 0)]);
    let (mut sum, mut best) = (0, 0);
    for (index, time) in arrivals.iter().enumerate() {
        let (jobs, time) = (index as i128 + 1, i128::from(*time));
        sum += time;
        while hull.len() > 1 && at(hull[1], time) <= at(hull[0], time) {
            hull.pop_front();
        }
        best = at(hull[0], time) + i128::from(price) + jobs * time - sum;
        let line = (jobs, best + sum);
        while hull.len() > 1 {
            let (before, last) = (hull[hull.len() - 2], hull[hull.len() - 1]);
            // Is the last line below both others anywhere?
            let with_line = (line.1 - before.1) * (last.0 - before.0);
            let with_last = (last.1 - before.1) * (line.0 - before.0);
            if with_last < with_line {
                break;
            }
            hull.pop_back();
        }
        hull.push_back(line);
    }
    u64::try_from(best).expect("costs are not negative")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Kind;

    fn by_trying_all(arrivals: &[u64], price: u64) -> u64 {
        let mut best = vec![0];
        for jobs in 1..=arrivals.len() {
            let waits = |from: usize| -> u64 {
                let times = &arrivals[from..jobs];
                times.iter().map(|time| arrivals[jobs - 1] - time).sum()
            };
            let costs = (0..jobs).map(|from| best[from] + price + waits(from));
            best.push(costs.min().expect("a batch"));
        }
        best[arrivals.len()]
    }

    #[test]
    fn the_optimum_is_that_of_trying_all() {
        for kind in [Kind::Poisson, Kind::OnOff, Kind::Volleys] {
            for rate in [0.3, 2.0, 20.0] {
                let arrivals = kind.arrivals(rate, 300, 1);
                for price in [0, SETUP / 10, SETUP, 30 * SETUP] {
                    let (fast, slow) = (
                        offline_optimum(&arrivals, price),
                        by_trying_all(&arrivals, price),
                    );
                    assert_eq!(fast, slow, "{} {rate} {price}", kind.name());
                }
            }
        }
    }

    #[test]
    fn the_ideal_server_takes_all_that_wait() {
        let outcome = ideal_server(&[0, 1, 2]);
        assert_eq!(outcome.flushes, 2);
        let first = SETUP + PER_JOB;
        let second = first + SETUP + 2 * PER_JOB;
        let total = first + (second - 1) + (second - 2);
        assert!((outcome.total() - total as f64 / SETUP as f64).abs() < 1e-9);
    }
}
