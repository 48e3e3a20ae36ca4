//! Visits every state that the worker can be in, within small bounds, by the code
//! that runs: the crate's own schedule and queue, with everything that can happen to
//! them in any order.
//!
//! A policy by its name as the argument visits that one alone.

#![forbid(unsafe_code)]

mod model;
mod real_queue;
mod replay;
mod rules;
mod setup;
mod state;

/// The sources of the crate that are visited, and what they need.
#[path = "../../../src"]
#[allow(dead_code, unused_imports)]
mod sources {
    pub mod error;
    pub mod job;
    pub mod report;
    pub mod settings;

    pub mod engine {
        pub mod departures;
        mod oneshot;
        pub mod panics;
        mod peak;
        pub mod queue;
        pub mod reply;
        pub mod schedule;
        pub mod withdrawal;
    }
}

use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use sources::{engine, error, job, report, settings};
use stateright::{Checker, Expectation, Model};

use model::{Sights, WorkerModel};
use rules::REASONS;
use setup::Setup;
use state::{Action, State};

/// So many distinct states must be met.
const ENOUGH: usize = 1_000_000;

/// Of each policy, with the crate alongside.
const WALKS: u64 = 1000;

fn main() -> ExitCode {
    let start = Instant::now();
    let only = std::env::args().nth(1);
    let mut setups = setup::all();
    setups.retain(|setup| only.as_ref().is_none_or(|only| setup.name == only));
    if setups.is_empty() {
        eprintln!("error: no policy has this name");
        return ExitCode::FAILURE;
    }
    let sights = Arc::new(Sights::default());
    let (mut states, mut steps, mut passed) = (0, 0, true);
    println!("| policy | distinct states | transitions | depth | properties | steps replayed |");
    println!("| --- | ---: | ---: | ---: | --- | ---: |");
    for setup in setups {
        let setup = Arc::new(setup);
        let (visited, holds) = visit(&setup, &sights);
        states += visited;
        if !holds {
            println!(" |");
            passed = false;
            continue;
        }
        match replay::walks(&setup, WALKS) {
            Ok(walked) => {
                steps += walked;
                println!(" {walked} |");
            }
            Err(wrong) => {
                println!(" {wrong} |");
                passed = false;
            }
        }
    }
    let seconds = start.elapsed().as_secs();
    println!("\n{states} distinct states and {steps} steps replayed in {seconds} s\n");
    println!("| batches cut for | |\n| --- | ---: |");
    for reason in REASONS {
        println!("| {reason} | {} |", sights.count(reason));
    }
    let all = REASONS.into_iter().all(|reason| sights.count(reason) > 0);
    if passed && (only.is_some() || (all && states >= ENOUGH)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Visits all states, and returns how many, and whether all properties hold.
fn visit(setup: &Arc<Setup>, sights: &Arc<Sights>) -> (usize, bool) {
    let model = WorkerModel {
        setup: Arc::clone(setup),
        sights: Arc::clone(sights),
    };
    let threads = available_parallelism().map_or(1, usize::from);
    let checker = model.checker().threads(threads).spawn_bfs().join();
    let properties = checker.model().properties();
    let total = properties.len();
    let mut discoveries = checker.discoveries();
    let mut broken = Vec::new();
    for property in properties {
        let path = discoveries.remove(property.name);
        match (property.expectation, path) {
            (Expectation::Always, Some(path)) => {
                eprintln!("{}: not so: {}", setup.name, property.name);
                show(path.into_vec());
                broken.push(property.name);
            }
            (Expectation::Sometimes, None) => broken.push(property.name),
            _ => {}
        }
    }
    let states = checker.unique_state_count();
    print!(
        "| {} | {states} | {} | {} | ",
        setup.name,
        checker.state_count(),
        checker.max_depth()
    );
    if broken.is_empty() {
        print!("all {total} hold |");
    } else {
        print!("not so: {} |", broken.join(", "));
    }
    (states, broken.is_empty())
}

/// Shows what led to a state, and the state.
fn show(path: Vec<(State, Option<Action>)>) {
    for (state, action) in path {
        let (now, phase) = (state.now, state.phase);
        match action {
            Some(action) => eprintln!("{now:>4} ms, {phase:?}: {action:?}"),
            None => eprintln!("{now:>4} ms, {phase:?}: {state:#?}"),
        }
    }
}
