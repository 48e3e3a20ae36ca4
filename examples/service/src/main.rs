//! ```text
//! cargo run --release -p microbatch-service
//! ```
//!
//! Prints the address, and stops on ctrl-c once everything accepted is done.

mod options;

use std::io::{self, Write};
use std::process::{ExitCode, exit};

use anyhow::{Context, anyhow};
use clap::Parser;
use microbatch::CancellationToken;
use microbatch_durable::RedbStore;
use microbatch_service::app::App;
use microbatch_service::serve::{own_origins, serve};
use microbatch_service::store::{Postgres, Sqlite, Store, describe};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::options::Options;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into());
    let filter = filter.from_env().context("cannot read RUST_LOG")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();

    // Kept until the end, when it is removed.
    let folder = tempfile::Builder::new()
        .prefix("microbatch-service-")
        .tempdir()
        .context("cannot create a temporary folder")?;
    let jobs = options.jobs.unwrap_or_else(|| match &options.database {
        Some(file) => {
            let mut jobs = file.clone().into_os_string();
            jobs.push(".jobs");
            jobs.into()
        }
        None => folder.path().join("jobs"),
    });
    let store = match (options.database_url, options.database) {
        (Some(url), _) => Postgres::connect(&url).await.map(Store::Postgres),
        (None, Some(file)) => Sqlite::open(&file).await.map(Store::Sqlite),
        (None, None) => {
            let file = folder.path().join("flights.db");
            Sqlite::open(&file).await.map(Store::Sqlite)
        }
    };
    let store =
        store.map_err(|error| anyhow!("cannot open the database: {}", describe(&*error)))?;
    let jobs = RedbStore::open(jobs).await;
    let jobs = jobs.map_err(|error| anyhow!("cannot open the jobs: {}", describe(&error)))?;
    let name = store.name();

    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", options.listen))?;
    let address = listener
        .local_addr()
        .context("the listener has no address")?;
    let mut origins = own_origins(address);
    origins.extend(options.origin);

    let stop = CancellationToken::new();
    let app = App::start(store, jobs, origins, stop.clone()).await?;
    let signals = Signals::listen().context("cannot listen for signals")?;
    tokio::spawn(stop_on_signal(signals, stop));
    say(&format!("{name}: http://{address} (ctrl-c stops)"));
    serve(listener, app).await?;
    say("stopped; everything accepted is stored, or waits on disk");
    Ok(())
}

/// Prints a line, which no one need read.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Cancels at the first signal and gives up at the second.
async fn stop_on_signal(mut signals: Signals, stop: CancellationToken) {
    signals.next().await;
    stop.cancel();
    eprintln!("stopping; again: give up at once");
    signals.next().await;
    exit(1);
}

/// The signals that stop it, heard as soon as it is made: before the address is told.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
