//! Compares the database with the file, record by record.
//!
//! If every record's id leads to a row with that record's line and values,
//! then no two records share a row, because a row has one line. If there are
//! no more rows than that either, every record is there exactly once.

use std::path::Path;

use rusqlite::types::ValueRef;

use crate::database::{Database, Row};
use crate::pass::Pass;
use crate::problems::Problems;
use crate::record::{COLUMNS, Record};
use crate::source::Source;

/// Returns what is wrong. A pass that did not get to its end is held to the
/// rows it says it has stored.
pub(crate) fn run(
    source: &Source,
    path: &Path,
    pass: &Pass,
    interrupted: bool,
) -> anyhow::Result<Problems> {
    let complete = !interrupted && pass.ledger.refused.is_empty();
    let database = Database::open(path, pass.method.table())?;
    database.freeze()?;
    let mut ids = pass.ledger.ids()?;
    let mut wrong = Problems::default();
    let mut stored = 0;
    for page in source.records()? {
        for record in page? {
            let line = record.line();
            let Some(id) = ids.of(line)? else {
                if complete {
                    wrong.add(format!("{}: no row id came back", source.at(line)));
                }
                continue;
            };
            stored += 1;
            if let Some(difference) = difference(&record, database.find(id)?.as_ref()) {
                wrong.add(format!("{}: row {id} {difference}", source.at(line)));
            }
        }
    }
    let rows = database.count()?;
    if rows != stored {
        let table = pass.method.table();
        wrong.add(format!("`{table}` has {rows} rows for {stored} records"));
    }
    Ok(wrong)
}

fn difference(record: &Record, row: Option<&Row>) -> Option<String> {
    let Some(row) = row else {
        return Some("does not exist".into());
    };
    if row.line != record.line() {
        return Some(format!("is that of line {}", row.line));
    }
    let found = row.values.iter().map(ValueRef::from);
    let mut columns = COLUMNS.iter().zip(record.values()).zip(found);
    let ((column, expected), found) = columns.find(|((_, expected), found)| expected != found)?;
    Some(format!(
        "has {found:?} in `{}`, not {expected:?}",
        column.name
    ))
}
