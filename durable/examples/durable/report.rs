//! The check and the table at the end.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;

use crate::database::Database;
use crate::flights::Flight;
use crate::ledger::{Kill, Ledger};
use crate::say;

/// What is in SQLite at the end, held against the file.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) records: u64,
    /// Rows of the table.
    pub(crate) stored: u64,
    pub(crate) missing: u64,
    /// Rows with other values than the file has.
    pub(crate) wrong: u64,
    /// Rows that were written more than once.
    pub(crate) seen_again: u64,
}

impl Found {
    pub(crate) fn is_right(&self) -> bool {
        (self.missing, self.wrong, self.stored) == (0, 0, self.records)
    }
}

/// Compares the database with the records, all of which are acknowledged by now.
pub(crate) fn compare(path: &Path, flights: &[Flight]) -> anyhow::Result<Found> {
    let read = || -> rusqlite::Result<Found> {
        let database = Database::open(path)?;
        let mut found = Found {
            records: flights.len() as u64,
            stored: database.count()?,
            seen_again: database.seen_again()?,
            ..Found::default()
        };
        for flight in flights {
            match database.find(flight.line)? {
                Some(stored) if stored == *flight => {}
                Some(_) => found.wrong += 1,
                None => found.missing += 1,
            }
        }
        Ok(found)
    };
    read().with_context(|| format!("cannot check {}", path.display()))
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

/// Sets the thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}
