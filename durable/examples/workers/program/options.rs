//! The command line.

use std::path::PathBuf;

use anyhow::Context;
use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum, value_parser};

use super::command_line::FLIGHTS;
#[cfg(feature = "nats")]
use super::nats;
#[cfg(feature = "postgres")]
use super::postgres;

/// Submit flight records as jobs on a server, have several processes write them, kill one
/// of these halfway, and check that every record is there once.
#[derive(Debug, Parser)]
#[command(name = "workers")]
pub(crate) struct Options {
    /// The records, as CSV with a header line [default: 20 000 real flights, which come
    /// with this repository]
    #[arg(value_name = "FILE.csv", default_value = FLIGHTS, hide_default_value = true)]
    pub(crate) file: PathBuf,

    /// Most records to submit [default: all]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=100_000_000))]
    pub(crate) rows: Option<u64>,

    /// Processes that do the jobs; one of them is killed
    #[arg(long, value_name = "N", default_value = "3", value_parser = RangedU64ValueParser::<usize>::new().range(2..=32))]
    pub(crate) workers: usize,

    /// Most jobs in a batch
    #[arg(long, value_name = "N", default_value = "100", value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) batch_size: usize,

    /// How long a job stays with a worker that is not heard of
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = value_parser!(u64).range(1..=600))]
    pub(crate) lease_time: u64,

    /// Where the jobs are [default: where a server is found]
    #[arg(long, value_name = "STORE")]
    pub(crate) store: Option<Which>,

    /// A server that is there already; what this run makes on it is removed at the end
    /// [default: one of its own, in a temporary folder]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,

    /// Be a worker; the parent says so
    #[arg(long, hide = true, requires = "store")]
    pub(crate) worker: bool,
}

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    #[cfg(feature = "postgres")]
    Postgres,
    #[cfg(feature = "nats")]
    Nats,
}

impl Options {
    /// Chooses the store: as it is said, or by the address, or by what is there.
    pub(crate) fn which(&self) -> anyhow::Result<Which> {
        let all = Which::value_variants();
        if let (Some(which), _) | (None, [which]) = (self.store.as_ref(), all) {
            return Ok(*which);
        }
        let mut found = all.iter().filter(|which| match &self.url {
            Some(url) => which.takes(url),
            None => which.is_found(),
        });
        let ways: Vec<_> = all.iter().map(|which| which.how_to_get()).collect();
        let none = || anyhow::anyhow!("no server is found: {}", ways.join("; or "));
        found.next().copied().with_context(none)
    }
}

impl Which {
    /// Whether the address is one of its servers'.
    fn takes(self, url: &str) -> bool {
        let is_nats = ["nats://", "tls://", "ws://", "wss://"]
            .iter()
            .any(|scheme| url.starts_with(scheme));
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => !is_nats,
            #[cfg(feature = "nats")]
            Self::Nats => is_nats,
        }
    }

    fn is_found(self) -> bool {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => postgres::program().is_some(),
            #[cfg(feature = "nats")]
            Self::Nats => nats::program().is_some(),
        }
    }

    /// How to get its server.
    fn how_to_get(self) -> &'static str {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => postgres::HOW_TO_GET,
            #[cfg(feature = "nats")]
            Self::Nats => nats::HOW_TO_GET,
        }
    }
}
