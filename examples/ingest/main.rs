//! Loads real records into SQLite three times: row by row, one transaction a row;
//! through `MicroBatch`, where many callers each submit one record and await that
//! record's row id; and in bulk by hand, with batches of the same size and no callers,
//! which is the most that micro-batching can reach. Then it checks every row and every
//! id against the file.
//!
//! ```text
//! cargo run --release --example ingest -- --help
//!
//!           ┌─ records ─▶        ┌─▶ MicroBatch ─┐
//! file ─▶ desk          callers ─┤               ├─▶ database thread ─▶ SQLite
//!           └◀ receipts ─        └─ row by row ──┘                        │
//!               └─▶ ledger ──▶ check against the file ◀───────────────────┘
//! ```

mod batched;
mod bulk;
mod callers;
mod check;
mod database;
mod database_thread;
mod desk;
mod ledger;
mod options;
mod pass;
mod problems;
mod progress;
mod record;
mod report;
mod row_by_row;
mod scratch;
mod source;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;
use microbatch::CancellationToken;
use tokio::runtime::{self, Runtime};

use crate::database::Database;
use crate::ledger::Ledger;
use crate::options::Options;
use crate::pass::{Method, Pass};
use crate::scratch::Scratch;
use crate::source::Source;

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    // One thread, because the callers do little but wait, and would only be
    // handed to and fro between more.
    let mut runtime = runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let stop = CancellationToken::new();
    runtime.spawn(stop_on_ctrl_c(stop.clone()));

    let source = Source::new(&options.file, options.rows);
    let survey = source.survey(&stop)?;
    survey.bad.print("skipped");
    let some = survey.rows > 0 || stop.is_cancelled();
    ensure!(
        some,
        "{}: there is no record to load",
        options.file.display()
    );
    let mut good = survey.bad.is_empty();

    let scratch = Scratch::new()?;
    let database = options.database.clone();
    let database = database.unwrap_or_else(|| scratch.path("ingest.db"));
    let mut passes = Vec::new();
    for &method in options.passes.methods() {
        if stop.is_cancelled() {
            break;
        }
        let ledger = Ledger::new(&source, &scratch.path(method.table()), method, survey.rows)?;
        let pass = load(&runtime, &source, options, &database, ledger, method, &stop);
        match pass {
            Ok((pass, right)) => {
                good &= right;
                passes.push(pass);
            }
            Err(error) => {
                complain(&error);
                good = false;
                break;
            }
        }
    }
    report::print(&mut io::stdout().lock(), &passes, good)?;
    if stop.is_cancelled() {
        if passes.is_empty() {
            problems::say("interrupted: no rows stored");
        }
        for pass in &passes {
            let (method, stored) = (pass.method.name(), pass.ledger.stored);
            problems::say(&format!("interrupted: {stored} rows stored {method}"));
        }
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs and checks one pass; returns whether all went well with it.
fn load(
    runtime: &Runtime,
    source: &Source,
    options: &Options,
    path: &Path,
    ledger: Ledger,
    method: Method,
    stop: &CancellationToken,
) -> anyhow::Result<(Pass, bool)> {
    // Kept open, because the last connection to close removes the log.
    let _first = Database::create(path, method.table())?;
    // Ctrl-C stops everything, and a failure only its own pass.
    let halt = stop.child_token();
    let pass = match method {
        Method::RowByRow => runtime.block_on(row_by_row::run(source, options, path, ledger, &halt)),
        Method::Batched => runtime.block_on(batched::run(source, options, path, ledger, &halt)),
        Method::Bulk => runtime.block_on(bulk::run(source, options, path, ledger, &halt)),
    };
    let pass = pass?;
    pass.ledger.refused.print("not stored");
    let wrong = check::run(source, path, &pass, stop.is_cancelled())?;
    wrong.print("wrong");
    let right = pass.ledger.refused.is_empty() && wrong.is_empty();
    Ok((pass, right))
}

fn complain(error: &anyhow::Error) {
    problems::say(&format!("error: {error:#}"));
}

/// Cancels at the first Ctrl-C and gives up at the second.
async fn stop_on_ctrl_c(stop: CancellationToken) {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler Ctrl-C ends the program, which is fine.
        return;
    }
    stop.cancel();
    problems::say("stopping; what was accepted is still stored (Ctrl-C again: give up now)");
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(INTERRUPTED.into());
    }
}
