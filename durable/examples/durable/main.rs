//! Jobs that outlive the process, to be seen: a worker process submits real records
//! durably and writes them into SQLite, and is killed halfway, without a warning. The
//! next one goes on. At the end every record that was acknowledged is in SQLite.
//!
//! ```text
//! cargo run --release -p microbatch-durable --example durable -- --help
//!
//!  parent                              worker (the same program, killed and started again)
//!  ┌──────────────────┐  what is left  ┌──────────────────────────────────────────────────┐
//!  │ records ─────────┼───────────────▶│ 256 callers ─▶ Durable ─▶ jobs.redb              │
//!  │ acknowledged ◀───┼── messages ────┤                              │                   │
//!  │ check ◀──────────┼─ flights.db ◀──┤ SQLite, on a thread ◀── Drain ◀                  │
//!  └──────────────────┘                └──────────────────────────────────────────────────┘
//! ```
//!
//! To see how durable jobs are used, read `worker.rs` and `../shared/database.rs`. The
//! rest is the stage: it starts, kills, counts and checks.

#[path = "../shared/command_line.rs"]
mod command_line;
#[path = "../shared/database.rs"]
mod database;
#[path = "../shared/flights.rs"]
mod flights;
#[path = "../shared/found.rs"]
mod found;
mod ledger;
mod message;
mod options;
#[path = "../shared/output.rs"]
mod output;
mod progress;
mod report;
#[path = "../shared/stop.rs"]
mod stop;
mod supervisor;
mod worker;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use microbatch_durable::CancellationToken;

use crate::options::Options;
use crate::output::{grouped, say};
use crate::stop::{INTERRUPTED, stop_on_ctrl_c};

/// The jobs, in the folder of a run.
const JOBS: &str = "jobs.redb";

/// The SQLite database, in the same folder.
const DATABASE: &str = "flights.db";

fn main() -> ExitCode {
    let outcome = match command_line::read::<Options>() {
        Ok(Some(options)) if options.worker => worker::run(&options).map(|()| ExitCode::SUCCESS),
        Ok(Some(options)) => run(&options),
        Ok(None) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Does what the parent does.
fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let flights = flights::read(&options.file, options.rows)?;
    match &options.folder {
        Some(folder) => {
            check_folder(folder)?;
            run_in(folder, options, &flights)
        }
        None => {
            let folder = tempfile::Builder::new()
                .prefix("microbatch-durable-")
                .tempdir()
                .context("cannot create a temporary folder")?;
            run_in(folder.path(), options, &flights)
        }
    }
}

fn run_in(
    folder: &Path,
    options: &Options,
    flights: &[flights::Flight],
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let stop = CancellationToken::new();
    runtime.spawn(stop_or_give_up(stop.clone()));
    let ledger = runtime.block_on(supervisor::run(options, folder, flights, &stop))?;
    if stop.is_cancelled() {
        let (acknowledged, records) = (ledger.acknowledged(), flights.len() as u64);
        say(&format!(
            "interrupted: {} of {} records were acknowledged",
            grouped(acknowledged),
            grouped(records),
        ));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let found = report::compare(&folder.join(DATABASE), flights)?;
    report::print(&mut io::stdout().lock(), &ledger, &found)?;
    Ok(match found.is_right() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// A folder with files of an earlier run would spoil the counts, and they may be of use
/// to somebody.
fn check_folder(folder: &Path) -> anyhow::Result<()> {
    let name = || format!("cannot use the folder {}", folder.display());
    let metadata = folder.metadata().with_context(name)?;
    ensure!(metadata.is_dir(), "{}: it is not a folder", name());
    for file in [JOBS, DATABASE] {
        let is_there = folder.join(file).exists();
        ensure!(!is_there, "{}: it has a file `{file}` already", name());
    }
    Ok(())
}

/// Cancels at the first Ctrl-C and gives up at the second.
async fn stop_or_give_up(stop: CancellationToken) {
    stop_on_ctrl_c(stop).await;
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(INTERRUPTED.into());
    }
}
