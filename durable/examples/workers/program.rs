//! The program: what all of its processes begin with.

#[path = "../shared/command_line.rs"]
mod command_line;
mod engine;
#[path = "../shared/flights.rs"]
mod flights;
#[path = "../shared/found.rs"]
mod found;
mod ledger;
mod message;
mod options;
#[path = "../shared/output.rs"]
mod output;
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
    // Ends with this function.
    let (_server, url) = match &options.url {
        Some(url) => (None, url.clone()),
        None => {
            let (server, url) = E::start()?;
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

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_ctrl_c(stop.clone()));
        let store = E::prepare(&place).await?;
        let outcome = supervise::<E>(options, &place, store, &flights, &stop).await;
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
    store: E::Store,
    flights: &[flights::Flight],
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let ledger = supervisor::run::<E>(options, place, store, flights, stop).await?;
    if stop.is_cancelled() {
        let (done, records) = (ledger.done(), flights.len() as u64);
        say(&format!(
            "interrupted: {} of {} jobs were done",
            grouped(done),
            grouped(records),
        ));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let found = E::check(place, flights).await?;
    report::print::<E>(&mut io::stdout().lock(), place, &ledger, &found)?;
    Ok(match found.is_right() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
