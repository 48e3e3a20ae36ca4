//! Numbers that two sides have counted, and that must be equal.

use std::sync::Arc;

use microbatch::Stats;

use crate::load::{Ledger, Tally};

struct Check {
    what: &'static str,
    one: u64,
    other: u64,
}

pub struct Checks(Vec<Check>);

impl Checks {
    /// Compares what the callers know, what the processor was given, and what
    /// the stopped batcher has counted.
    pub fn of(jobs: u64, tally: &Tally, ledger: &Arc<Ledger>, stats: Stats) -> Self {
        let (known, awaited, dropped) = (&tally.awaited, ledger.awaited(), ledger.dropped());
        let mut checks = Self(Vec::new());
        let mut equal = |what, one, other| checks.0.push(Check { what, one, other });
        equal("jobs: asked for, answered or dropped", jobs, tally.jobs());
        equal("wrong answers: none, callers", 0, tally.wrong);
        equal("processed twice: none, processor", 0, ledger.again());
        equal(
            "completed: callers, processor",
            known.completed,
            awaited.completed,
        );
        equal("sum of results: callers, processor", known.sum, awaited.sum);
        equal("failed: callers, processor", known.failed, awaited.failed);
        equal(
            "panicked: callers, processor",
            known.panicked,
            awaited.panicked,
        );
        equal(
            "miscounted: callers, processor",
            known.miscounted,
            awaited.miscounted,
        );
        let completed = awaited.completed + dropped.completed;
        equal("completed: stats, processor", stats.completed, completed);
        let unsuccessful = awaited.unsuccessful() + dropped.unsuccessful();
        equal(
            "not completed: stats, processor",
            stats.failed,
            unsuccessful,
        );
        equal(
            "reported: hook, processor",
            ledger.reported(),
            awaited.all() + dropped.all(),
        );
        let done = stats.completed + stats.failed + stats.withdrawn;
        equal("accepted: stats, their outcomes", stats.accepted, done);
        equal("abandoned: none, stats", 0, stats.abandoned);
        // Of those that were dropped at once some found no room.
        let accepted_dropped = stats.accepted.saturating_sub(known.all());
        let bounded = accepted_dropped.clamp(tally.left, tally.left + tally.dropped);
        equal(
            "dropped: stats, within the callers' bounds",
            accepted_dropped,
            bounded,
        );
        let held = stats.waiting + stats.queued + stats.pending + stats.processing;
        equal("left over: none, stats", 0, (held + stats.in_flight) as u64);
        checks
    }

    pub fn hold(&self) -> bool {
        self.0.iter().all(|check| check.one == check.other)
    }

    pub fn print(&self) {
        println!("\n{:<46}{:>22}{:>22}", "", "one", "the other");
        for Check { what, one, other } in &self.0 {
            let mark = if one == other { "" } else { "  MISMATCH" };
            println!("{what:<46}{one:>22}{other:>22}{mark}");
        }
    }
}
