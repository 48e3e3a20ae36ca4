//! The table at the end.

use std::io::{self, Write};

use super::engine::{Engine, Place};
use super::found::Found;
use super::ledger::Ledger;
use super::output::{grouped, say};

pub(crate) fn print<E: Engine>(
    out: &mut impl Write,
    place: &Place,
    ledger: &Ledger,
    found: &Found,
) -> io::Result<()> {
    let row = |out: &mut dyn Write, name: &str, jobs: u64, batches: u64, note: &str| {
        let (jobs, batches) = (grouped(jobs), grouped(batches));
        let line = format!("{name:<10}{jobs:>10}{batches:>10}  {note}");
        writeln!(out, "{}", line.trim_end())
    };
    writeln!(out, "{:<10}{:>10}{:>10}", E::NAME, "jobs", "batches")?;
    for (n, worker) in ledger.workers.iter().enumerate() {
        let note = if ledger.is_killed(n) { "killed" } else { "" };
        let name = format!("worker {}", n + 1);
        row(out, &name, worker.jobs, worker.batches, note)?;
    }
    let untold = found.stored.saturating_sub(ledger.done());
    if untold > 0 {
        // The worker died between its last settlement and the word of it.
        row(out, "not told", untold, 0, "done as it was killed")?;
    }
    let batches = ledger.workers.iter().map(|worker| worker.batches).sum();
    row(out, "total", ledger.done() + untold, batches, "")?;
    writeln!(out)?;

    let mut rows = vec![
        ("records", grouped(found.records)),
        ("delivered twice", grouped(ledger.delivered_again)),
    ];
    if let Some((first, last)) = ledger.waited {
        let (first, last) = (first.as_secs_f64(), last.as_secs_f64());
        let lease = place.lease_time;
        rows.push((
            "waited after the kill",
            format!("{first:.1} to {last:.1} s (a lease holds for {lease} s)"),
        ));
    }
    rows.extend([
        ("written twice", grouped(found.seen_again)),
        ("stored", grouped(found.stored)),
        ("missing", grouped(found.missing)),
        ("wrong", grouped(found.wrong)),
        ("seconds", format!("{:.2}", ledger.took.as_secs_f64())),
    ]);
    for (label, cell) in rows {
        writeln!(out, "{label:<26}{cell}")?;
    }
    match found.is_right() {
        true => writeln!(out, "Checked: {}", E::CHECKED),
        false => {
            say("error: what was written is not what was submitted");
            Ok(())
        }
    }
}
