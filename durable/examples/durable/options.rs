//! The command line.

use std::path::PathBuf;

use clap::{Parser, value_parser};

use crate::command_line::FLIGHTS;

/// Submit flight records durably, write them into SQLite, kill the process that does so
/// halfway, and check that nothing was lost.
#[derive(Debug, Parser)]
#[command(name = "durable")]
pub(crate) struct Options {
    /// The records, as CSV with a header line [default: 20 000 real flights, which come
    /// with this repository]
    #[arg(value_name = "FILE.csv", default_value = FLIGHTS, hide_default_value = true)]
    pub(crate) file: PathBuf,

    /// Most records to submit [default: all]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=100_000_000))]
    pub(crate) rows: Option<u64>,

    /// Callers at a time, each of which waits until its record is durable
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) callers: u32,

    /// How often the worker is killed, at random moments
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(..=20))]
    pub(crate) kills: u32,

    /// A folder for the jobs and the SQLite database; both are left there [default: a
    /// temporary one that is removed at the end]
    #[arg(long, value_name = "PATH")]
    pub(crate) folder: Option<PathBuf>,

    /// Be the worker; the parent says so
    #[arg(long, hide = true, requires = "folder")]
    pub(crate) worker: bool,
}
