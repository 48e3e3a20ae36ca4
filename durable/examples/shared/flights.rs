//! The records: what a flight has, and how it is read from a line.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use csv::{ErrorKind, Reader, StringRecord};
use serde::{Deserialize, Serialize};

/// A flight, which is also the job: this is what is written to the store, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flight {
    /// Where in the file it comes from, which makes its id.
    #[serde(default)]
    pub(crate) line: u32,
    pub(crate) time_hour: String,
    pub(crate) carrier: String,
    pub(crate) flight: u32,
    pub(crate) tailnum: Option<String>,
    pub(crate) origin: String,
    pub(crate) dest: String,
    pub(crate) dep_delay: Option<i32>,
    pub(crate) arr_delay: Option<i32>,
    pub(crate) air_time: Option<u32>,
    pub(crate) distance: u32,
}

impl Flight {
    /// The same for the same record, whoever submits it and how often.
    pub(crate) fn id(&self) -> String {
        format!("flight-{:05}", self.line)
    }
}

/// Reads at most `rows` records, all if that is `None`.
pub(crate) fn read(path: &Path, rows: Option<u64>) -> anyhow::Result<Vec<Flight>> {
    let name = || format!("cannot read {}", path.display());
    let mut reader = Reader::from_path(path).with_context(name)?;
    let header = reader.headers().with_context(name)?.clone();
    let rows = rows.map_or(usize::MAX, |rows| {
        usize::try_from(rows).unwrap_or(usize::MAX)
    });
    let mut flights: Vec<Flight> = Vec::new();
    for record in reader.records().take(rows) {
        let (position, flight) = match &record {
            Ok(record) => (record.position(), parse(record, &header)),
            Err(error) => (error.position(), Err(describe(error, &header))),
        };
        let line = position.map_or(0, csv::Position::line);
        let line = u32::try_from(line).with_context(name)?;
        let flight = match flight {
            Ok(flight) => Flight { line, ..flight },
            Err(why) => bail!("{}:{line}: {why}", path.display()),
        };
        // Else two records had the same id, and one would be taken for the other.
        ensure!(
            flights.last().is_none_or(|last| last.line < line),
            "{}:{line}: more than one record in a line",
            path.display(),
        );
        flights.push(flight);
    }
    ensure!(!flights.is_empty(), "{} has no records", path.display());
    Ok(flights)
}

fn parse(record: &StringRecord, header: &StringRecord) -> Result<Flight, String> {
    // An empty field is none for serde; in the file, `NA` is.
    let known = |field| if field == "NA" { "" } else { field };
    let record: StringRecord = record.iter().map(known).collect();
    let flight: Flight = record
        .deserialize(Some(header))
        .map_err(|error| describe(&error, header))?;
    let texts = [
        ("time_hour", &flight.time_hour),
        ("carrier", &flight.carrier),
        ("origin", &flight.origin),
        ("dest", &flight.dest),
    ];
    match texts.iter().find(|(_, text)| text.is_empty()) {
        Some((column, _)) => Err(format!("`{column}` is empty")),
        None => Ok(flight),
    }
}

/// Says what is wrong, without the place, which is said before.
fn describe(error: &csv::Error, header: &StringRecord) -> String {
    match error.kind() {
        ErrorKind::Deserialize { err, .. } => {
            let column = err.field().and_then(|field| header.get(field as usize));
            match column {
                Some(column) => format!("`{column}`: {}", err.kind()),
                None => err.kind().to_string(),
            }
        }
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => {
            format!("expected {expected_len} fields, found {len}")
        }
        ErrorKind::Utf8 { err, .. } => err.to_string(),
        _ => error.to_string(),
    }
}
