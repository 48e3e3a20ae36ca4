//! Policies as rules in an event simulation: those of peers, whose crates would
//! weigh down the build, and the crate's own, to check one against the other.

use std::collections::VecDeque;

use crate::outcome::{Outcome, Service};

/// When the pending jobs are flushed. Times are in ticks.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// At once, while fewer than `in_flight` batches are.
    Immediate { in_flight: usize },
    /// So long after the first pending job.
    Interval(u64),
    /// So long after the first pending job was picked up, which a busy worker
    /// does not do.
    FromPickUp(u64),
    /// So long after the last pending job was picked up.
    Restarted(u64),
    /// At the next of equal steps that run from the start.
    Ticker(u64),
    /// When the pending jobs have together waited that long.
    Cost(u64),
}

/// Jobs that wait.
#[derive(Clone, Copy)]
struct Pending<'a> {
    times: &'a [u64],
    sum: u64,
    /// From when on a batch may be flushed.
    free: u64,
}

impl Rule {
    fn due(self, pending: Pending<'_>) -> u64 {
        let Pending { times, sum, free } = pending;
        let (first, last) = (times[0], times[times.len() - 1]);
        match self {
            Self::Immediate { .. } => first,
            Self::Interval(wait) => first + wait,
            Self::FromPickUp(wait) => first.max(free) + wait,
            Self::Restarted(wait) => last.max(free) + wait,
            Self::Ticker(step) => first.max(free).next_multiple_of(step),
            Self::Cost(cost) => (sum + cost).div_ceil(times.len() as u64),
        }
    }
}

/// Runs a rule on the arrivals, with batches of `cap` jobs at most, which go at
/// once. Batches in flight side by side share one server, which takes them in
/// turn.
pub fn run(rule: Rule, cap: usize, arrivals: &[u64], service: Service) -> Outcome {
    let in_flight = match (rule, service) {
        (_, Service::Instant) => usize::MAX,
        (Rule::Immediate { in_flight }, Service::OneServer) => in_flight,
        (_, Service::OneServer) => 1,
    };
    let mut done = Vec::with_capacity(arrivals.len());
    let (mut first, mut next, mut sum) = (0, 0, 0);
    let mut flushes = 0;
    let mut server_free = 0;
    // When the last batches end, as many as may be in flight, oldest first.
    let mut ends = VecDeque::new();
    while first < arrivals.len() {
        if first == next {
            sum += arrivals[next];
            next += 1;
        }
        let times = &arrivals[first..next];
        let free = if ends.len() < in_flight { 0 } else { ends[0] };
        let due = match times.get(cap - 1) {
            Some(full) => *full,
            None => rule.due(Pending { times, sum, free }),
        };
        let due = due.max(free);
        // A job that arrives as the batch is cut is still in time for it.
        if arrivals.get(next).is_some_and(|arrival| *arrival <= due) {
            sum += arrivals[next];
            next += 1;
            continue;
        }
        let jobs = times.len().min(cap);
        sum -= times[..jobs].iter().sum::<u64>();
        first += jobs;
        flushes += 1;
        server_free = due.max(server_free) + service.ticks(jobs);
        done.extend(std::iter::repeat_n(server_free, jobs));
        ends.push_back(server_free);
        if ends.len() > in_flight {
            ends.pop_front();
        }
    }
    Outcome::new(arrivals, &done, flushes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::{PER_JOB, SETUP};

    const FOUR: [u64; 4] = [0, 3, 6, 50];

    /// Summed waits, and flushes.
    fn instant(rule: Rule, cap: usize) -> (u64, u64) {
        let outcome = run(rule, cap, &FOUR, Service::Instant);
        (
            (outcome.total() * SETUP as f64).round() as u64,
            outcome.flushes,
        )
    }

    #[test]
    fn rules_flush_when_they_say() {
        let huge = usize::MAX;
        assert_eq!(instant(Rule::Immediate { in_flight: 1 }, huge), (0, 4));
        assert_eq!(instant(Rule::Interval(5), huge), (5 + 2 + 5 + 5, 3));
        assert_eq!(instant(Rule::FromPickUp(5), huge), (5 + 2 + 5 + 5, 3));
        assert_eq!(instant(Rule::Ticker(20), huge), (17 + 14 + 10, 3));
        assert_eq!(instant(Rule::Cost(12), huge), (7 + 4 + 1 + 12, 2));
        assert_eq!(instant(Rule::Restarted(4), huge), (10 + 7 + 4 + 4, 2));
        assert_eq!(instant(Rule::Restarted(4), 2), (3 + 4 + 4, 3));
    }

    #[test]
    fn batches_in_flight_share_one_server() {
        let rule = |in_flight| Rule::Immediate { in_flight };
        let run = |in_flight| run(rule(in_flight), usize::MAX, &[0, 1, 2], Service::OneServer);
        let one = SETUP + PER_JOB;
        assert_eq!(run(1).flushes, 2);
        let three = run(3);
        assert_eq!(three.flushes, 3);
        let ticks = one + (2 * one - 1) + (3 * one - 2);
        assert!((three.total() - ticks as f64 / SETUP as f64).abs() < 1e-9);
    }
}
