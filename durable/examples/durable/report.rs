//! The check and the table at the end.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;

use crate::database::Database;
use crate::flights::Flight;
use crate::found::Found;
use crate::ledger::{Kill, Ledger};
use crate::output::{grouped, say};

/// Compares the database with the records, all of which are acknowledged by now.
pub(crate) fn compare(path: &Path, flights: &[Flight]) -> anyhow::Result<Found> {
    let found = Database::open(path).and_then(|database| database.compare(flights));
    found.with_context(|| format!("cannot check {}", path.display()))
}

pub(crate) fn print(out: &mut impl Write, ledger: &Ledger, found: &Found) -> io::Result<()> {
    let kills = |count: &dyn Fn(&Kill) -> Option<u64>| {
        let cells = ledger.kills.iter().map(|kill| match count(kill) {
            Some(count) => grouped(count),
            None => "-".to_owned(),
        });
        cells.collect::<Vec<_>>().join(", ")
    };
    let commits = ledger.commits();
    let per_commit = ledger.acknowledged() as f64 / commits.max(1) as f64;
    let mut rows = vec![("records", grouped(found.records))];
    if !ledger.kills.is_empty() {
        rows.extend([
            (
                "acknowledged at the kill",
                kills(&|kill| Some(kill.acknowledged)),
            ),
            ("  in the store then", kills(&|kill| kill.waiting)),
            ("  in SQLite then", kills(&|kill| kill.stored)),
            ("submitted again", grouped(ledger.duplicates)),
            ("redelivered", grouped(ledger.redelivered)),
            ("written twice", grouped(found.seen_again)),
        ]);
    }
    rows.extend([
        ("stored", grouped(found.stored)),
        ("missing", grouped(found.missing)),
        ("wrong", grouped(found.wrong)),
        ("seconds", format!("{:.2}", ledger.took.as_secs_f64())),
        (
            "commits of submits",
            format!("{} ({per_commit:.1} jobs each)", grouped(commits)),
        ),
    ]);
    for (label, cell) in rows {
        writeln!(out, "{label:<26}{cell}")?;
    }
    if found.is_right() {
        writeln!(
            out,
            "Checked: every acknowledged record is in SQLite, once, as the file has it."
        )?;
    } else {
        say("error: SQLite does not have what was acknowledged");
    }
    Ok(())
}
