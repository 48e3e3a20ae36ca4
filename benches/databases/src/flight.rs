//! The records: real flights, each known by its number.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, ensure};

pub const INTEGERS: [&str; 14] = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "flight",
    "air_time",
    "distance",
    "hour",
    "minute",
];

pub const TEXTS: [&str; 5] = ["carrier", "tailnum", "origin", "dest", "time_hour"];

/// `number` and the columns of the file, as SQL lists them.
pub fn columns() -> String {
    let names = ["number"].into_iter().chain(INTEGERS).chain(TEXTS);
    names.collect::<Vec<_>>().join(", ")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// From zero; stored with the record, so that no two rows are alike.
    pub number: i64,
    pub integers: [Option<i32>; INTEGERS.len()],
    pub texts: [Option<String>; TEXTS.len()],
}

pub struct Flights(Vec<Flight>);

impl Flights {
    pub fn read() -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/flights.csv");
        let file = File::open(path).context("cannot open examples/data/flights.csv")?;
        let mut reader = csv::Reader::from_reader(file);
        let header = reader.headers()?.clone();
        let position = |name: &str| {
            let position = header.iter().position(|field| field == name);
            position.with_context(|| format!("no column `{name}`"))
        };
        let integers = INTEGERS.map(position);
        let texts = TEXTS.map(position);
        let mut flights = Vec::new();
        for (number, record) in (0..).zip(reader.records()) {
            let record = record?;
            let field = |position: &anyhow::Result<usize>| match position {
                Ok(position) => Ok(Some(&record[*position]).filter(|text| *text != "NA")),
                Err(error) => Err(anyhow::anyhow!("{error}")),
            };
            let mut flight = Flight {
                number,
                integers: [None; INTEGERS.len()],
                texts: Default::default(),
            };
            for (value, position) in flight.integers.iter_mut().zip(&integers) {
                *value = field(position)?.map(str::parse).transpose()?;
            }
            for (value, position) in flight.texts.iter_mut().zip(&texts) {
                *value = field(position)?.map(str::to_owned);
            }
            flights.push(flight);
        }
        ensure!(!flights.is_empty(), "examples/data/flights.csv is empty");
        Ok(Self(flights))
    }

    /// As many flights as asked for, from the start again after the last.
    pub fn take(&self, rows: usize) -> Vec<Flight> {
        let flights = self.0.iter().cycle().zip(0..).take(rows);
        let flights = flights.map(|(flight, number)| Flight {
            number,
            ..flight.clone()
        });
        flights.collect()
    }

    /// Whether a row is the flight of its number.
    pub fn has(&self, row: &Flight) -> bool {
        let number = usize::try_from(row.number).unwrap_or(usize::MAX);
        let flight = &self.0[number % self.0.len()];
        flight.integers == row.integers && flight.texts == row.texts
    }
}
