//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// A web service with and without micro-batches, and a page that shows both.
#[derive(Debug, Parser)]
pub struct Options {
    /// Where to listen; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,

    /// From where else the page may change settings, as in `https://flights.example`.
    /// Needed where others than this machine can reach it.
    #[arg(long, value_name = "URL")]
    pub origin: Vec<String>,

    /// The SQLite file; a temporary one by default, removed at the end.
    #[arg(long, value_name = "FILE", conflicts_with = "database_url")]
    pub database: Option<PathBuf>,

    /// The file in which jobs wait that are stored later; by default `FILE.jobs` beside
    /// the SQLite file, or a temporary one, removed at the end.
    #[arg(long, value_name = "FILE")]
    pub jobs: Option<PathBuf>,

    /// PostgreSQL instead of SQLite.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
}
