//! What durable jobs cost on servers of the benchmark's own, everything in one run:
//!
//! ```text
//! cargo bench -p microbatch-durable --features nats,postgres --bench servers -- --help
//! ```
//!
//! 1. appends: a commit or a publish a job by hand, and a front with 256 callers
//! 2. a drain of jobs that do nothing, in batches of 1 and of 100
//! 3. one and three worker processes, each batch taking a millisecond
//! 4. how long a job waits in an idle queue
//! 5. PostgreSQL: 800 jobs a second while somebody holds a transaction open
//!
//! Rates depend on the disk and on who else uses it; compare those of one run.

#![forbid(unsafe_code)]

#[path = "../shared/bars.rs"]
mod bars;
#[path = "../shared/callers.rs"]
mod callers;
mod jetstream;
mod load;
mod postgres;
#[path = "../shared/raw.rs"]
mod raw;
mod table;
mod workers;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Measure the stores on servers.
#[derive(Debug, Parser)]
#[command(name = "servers")]
struct Options {
    /// Seconds for each way to append
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,

    /// Milliseconds by which each sync of PostgreSQL is made longer (its `commit_delay`), for
    /// the figures of a slower disk
    #[arg(long, default_value_t = 0.0)]
    slower: f64,

    /// Jobs to drain
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..))]
    drain: u64,

    /// Seconds for which a transaction is held open; 0 leaves it out
    #[arg(long, default_value_t = 180)]
    held: u64,

    /// Where to write the picture of PostgreSQL [default: none]
    #[arg(long)]
    picture: Option<std::path::PathBuf>,

    /// Given by `cargo bench`; means nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = runtime.map_err(Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match workers::orders() {
                Some(orders) => workers::work(&orders).await,
                None => run(&Options::parse()).await,
            }
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("servers: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), Error> {
    if !(options.seconds > 0.0 && options.seconds <= 3600.0) {
        return Err("--seconds must be more than 0 and at most 3600".into());
    }
    if !(0.0..=100.0).contains(&options.slower) {
        return Err("--slower must be from 0 to 100".into());
    }
    postgres::run(options).await?;
    jetstream::run(options).await
}

fn progress(what: &str) {
    let mut err = std::io::stderr();
    // The figures matter, not this line.
    let _ = write!(err, "\r\x1b[K{what}");
    let _ = err.flush();
}
