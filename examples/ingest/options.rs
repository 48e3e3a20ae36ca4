//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::pass::Method;

const FLIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights.csv");

/// Load flight records into SQLite row by row, micro-batched and in bulk by hand,
/// and compare the three.
#[derive(Debug, Parser)]
#[command(name = "ingest")]
pub(crate) struct Options {
    /// The records, as CSV with a header line [default: 20 000 real flights,
    /// which come with this example]
    #[arg(value_name = "FILE.csv", default_value = FLIGHTS, hide_default_value = true)]
    pub(crate) file: PathBuf,

    /// Callers at a time in the micro-batched pass, each with one record
    ///
    /// A commit costs about the same for 64 rows as for 256, so more callers share
    /// it: on the machine where this was tried, the median gain over row by row was 28
    /// times with 64, 38 with 128, 65 with 256 and 59 with 512.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    producers: u32,

    /// Callers at a time in the row-by-row pass
    ///
    /// SQLite has one writer, so more than one gain little.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    row_by_row_callers: u32,

    /// Most rows in a batch [default: as many as producers]
    ///
    /// A caller waits for its row id before it submits the next record, so
    /// there are never more rows to batch than there are producers. A larger
    /// batch than that would always wait for the interval.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch_size: Option<u32>,

    /// Longest time in milliseconds that a row waits for company
    #[arg(long, value_name = "MS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,

    /// Flush whenever the database is idle instead of waiting [default: no]
    ///
    /// Better for callers that come and go. Here all of them come back at the
    /// same time, and an idle flush would catch only the first few.
    #[arg(long)]
    pub(crate) idle: bool,

    /// Most rows to load [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rows: Option<u64>,

    /// The SQLite database, on a disk that is worth measuring [default: one in
    /// a temporary folder that is removed at the end]
    ///
    /// Its tables `row_by_row`, `micro_batched` and `bulk_by_hand` are replaced.
    #[arg(long, value_name = "PATH")]
    pub(crate) database: Option<PathBuf>,

    /// Which passes to run
    #[arg(long, value_enum, default_value_t = Passes::All)]
    pub(crate) passes: Passes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Passes {
    All,
    /// Row by row and micro-batched
    Both,
    RowByRow,
    Batched,
    Bulk,
}

impl Options {
    pub(crate) fn producers(&self) -> usize {
        self.producers as usize
    }

    pub(crate) fn row_by_row_callers(&self) -> usize {
        self.row_by_row_callers as usize
    }

    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size.unwrap_or(self.producers) as usize
    }

    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval)
    }
}

impl Passes {
    pub(crate) fn methods(self) -> &'static [Method] {
        match self {
            Self::All => &[Method::RowByRow, Method::Batched, Method::Bulk],
            Self::Both => &[Method::RowByRow, Method::Batched],
            Self::RowByRow => &[Method::RowByRow],
            Self::Batched => &[Method::Batched],
            Self::Bulk => &[Method::Bulk],
        }
    }
}
