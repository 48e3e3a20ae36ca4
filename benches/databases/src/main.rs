//! Flight records into Postgres and SQLite: row by row, in micro-batches, and
//! in bulk by hand, with durable commits and every row verified.

#![forbid(unsafe_code)]

mod callers;
mod check;
mod contender;
mod flight;
mod postgres;
mod report;
mod scratch;
mod sqlite;
mod ways;

use std::env;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use contender::Contender;
use flight::Flights;
use microbatch_postgres::{Server, is_version, programs};
use postgres::Postgres;
use report::{Figures, Line};
use scratch::Scratch;

#[tokio::main]
async fn main() -> ExitCode {
    let result = tokio::select! {
        result = compare() => result,
        error = interrupted() => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns when asked to stop, so that the server and the folders go, too.
async fn interrupted() -> anyhow::Error {
    let terminate = async {
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            terminate.recv().await;
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
    anyhow::anyhow!("interrupted")
}

async fn compare() -> anyhow::Result<()> {
    let rounds = rounds()?;
    let flights = Flights::read()?;
    let folder = Scratch::new("sqlite")?;
    let programs = programs().find(|folder| is_version(folder, 15));
    let installed = programs.is_some();
    let server = programs.map(Server::start).transpose();
    let (server, left_out) = match server {
        Ok(Some(server)) => (Some(server), None),
        Ok(None) => (None, Some("Postgres 15 is not installed".to_owned())),
        Err(error) => (None, Some(format!("Postgres does not start: {error:#}"))),
    };
    let postgres = match &server {
        Some(server) => Some(Postgres::connect(server.socket()).await?),
        None => None,
    };
    if let Some(why) = &left_out {
        eprintln!("Postgres is left out: {why}");
    }

    let contenders = Contender::all().into_iter();
    let contenders = contenders.filter(|one| postgres.is_some() || !one.is_postgres());
    let mut lines: Vec<Line> = contenders
        .map(|contender| Line {
            contender,
            rounds: Vec::new(),
        })
        .collect();
    for round in 1..=rounds {
        let mut order: Vec<&mut Line> = lines.iter_mut().collect();
        // There and back, so that what drifts over time is no one's advantage.
        if round % 2 == 0 {
            order.reverse();
        }
        for line in order {
            let contender = &line.contender;
            let callers = contender.callers().unwrap_or(contender.connections);
            let database = if contender.is_postgres() {
                "Postgres"
            } else {
                "SQLite"
            };
            let name = format!("{database}, {contender}, {callers} at once");
            let run = contender.run(&flights, postgres.as_ref(), folder.path());
            let outcome = run.await.with_context(|| name.clone())?;
            let figures = Figures::new(&outcome);
            eprintln!(
                "round {round} of {rounds}: {name}: {:.0} rows/s, {} rows verified",
                figures.rate, contender.rows
            );
            line.rounds.push(figures);
        }
    }

    report::print(&lines);
    println!();
    match left_out {
        None => report::print_marks(&lines),
        Some(why) => println!("Postgres is left out: {why}"),
    }
    ensure!(postgres.is_some() || !installed, "Postgres is left out");
    Ok(())
}

/// `--rounds N`, or five.
fn rounds() -> anyhow::Result<usize> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => Ok(5),
        [name, rounds] if name == "--rounds" => match rounds.parse() {
            Ok(0) | Err(_) => bail!("`--rounds` takes a number from one"),
            Ok(rounds) => Ok(rounds),
        },
        _ => bail!("usage: microbatch-databases [--rounds N]"),
    }
}
