//! The program: what all of its processes begin with.

#[path = "../shared/command_line.rs"]
mod command_line;
#[cfg(feature = "nats")]
#[path = "../shared/database.rs"]
mod database;
mod engine;
#[path = "../shared/flights.rs"]
mod flights;
#[path = "../shared/found.rs"]
mod found;
mod ledger;
mod message;
#[cfg(feature = "nats")]
mod nats;
mod options;
#[path = "../shared/output.rs"]
mod output;
#[cfg(feature = "postgres")]
mod postgres;
mod producer;
mod progress;
mod report;
#[path = "../shared/stop.rs"]
mod stop;
mod supervisor;
mod worker;

use std::io;
use std::process::ExitCode;

use anyhow::Context;
use microbatch_durable::CancellationToken;

use engine::{Engine, Place};
use options::{Options, Which};
use output::{grouped, say};
use stop::{INTERRUPTED, stop_on_ctrl_c};

pub(crate) fn run() -> ExitCode {
    let outcome = command_line::read::<Options>().and_then(|options| match options {
        Some(options) => choose(&options),
        None => Ok(ExitCode::SUCCESS),
    });
    outcome.unwrap_or_else(|error| {
        say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn choose(options: &Options) -> anyhow::Result<ExitCode> {
    match options.which()? {
        #[cfg(feature = "nats")]
        Which::Nats => run_with::<nats::Nats>(options),
        #[cfg(feature = "postgres")]
        Which::Postgres => run_with::<postgres::Postgres>(options),
    }
}

fn run_with<E: Engine>(options: &Options) -> anyhow::Result<ExitCode> {
    match options.worker {
        true => worker::run::<E>().map(|()| ExitCode::SUCCESS),
        false => parent::<E>(options),
    }
}

/// Does what the parent does.
fn parent<E: Engine>(options: &Options) -> anyhow::Result<ExitCode> {
    let flights = flights::read(&options.file, options.rows)?;
    let folder = tempfile::Builder::new()
        .prefix("microbatch-workers-")
        .tempdir()
        .context("cannot create a temporary folder")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        // From here on Ctrl-C ends nothing by itself: a server of ours would stay.
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_ctrl_c(stop.clone()));
        let (_server, url) = match &options.url {
            Some(url) => (None, url.clone()),
            None => {
                let started = tokio::task::spawn_blocking(E::start).await?;
                if stop.is_cancelled() {
                    return Ok(interrupted(0, flights.len()));
                }
                let (server, url) = started?;
                (Some(server), url)
            }
        };
        let place = Place {
            url,
            name: format!("workers_{:08x}", fastrand::u32(..)),
            folder: folder.path().to_owned(),
            batch_size: options.batch_size,
            lease_time: options.lease_time,
        };
        let outcome = supervise::<E>(options, &place, &flights, &stop).await;
        // On a server of somebody else's nothing is left.
        let removed = E::remove(&place).await;
        let code = outcome?;
        removed.context("cannot remove what it made on the server")?;
        Ok(code)
    })
}

async fn supervise<E: Engine>(
    options: &Options,
    place: &Place,
    flights: &[flights::Flight],
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let store = E::prepare(place).await?;
    let ledger = supervisor::run::<E>(options, place, store, flights, stop).await?;
    if stop.is_cancelled() {
        return Ok(interrupted(ledger.done(), flights.len()));
    }
    let found = E::check(place, flights).await?;
    report::print::<E>(&mut io::stdout().lock(), place, &ledger, &found)?;
    Ok(match found.is_right() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn interrupted(done: u64, records: usize) -> ExitCode {
    let (done, records) = (grouped(done), grouped(records as u64));
    say(&format!("interrupted: {done} of {records} jobs were done"));
    ExitCode::from(INTERRUPTED)
}
