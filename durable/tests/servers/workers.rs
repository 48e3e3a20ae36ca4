//! Three worker processes on one store, of which one is killed again and again.

use std::time::{Duration, Instant};

use crate::crew::{Crew, Shared, child};
use crate::setup::count;

const WORKERS: usize = 3;

/// Killed at random moments, and replaced.
fn killed_at_any_moment<E: Shared>() {
    let Some(engine) = E::make() else {
        return;
    };
    let rounds = count("SERVER_ROUNDS", 6);
    let started = Instant::now();
    let longest = Duration::from_millis(20);
    let mut crew = Crew::start(engine, "workers", WORKERS, longest);
    for round in 0..rounds {
        let callers = crew.submit_for(Duration::from_millis(700));
        let moment = Duration::from_micros(crew.rng.u64(..700_000));
        std::thread::sleep(moment);
        let killed = crew.rng.usize(..WORKERS);
        crew.kill_worker(killed);
        crew.start_worker();
        crew.settle(callers);
        let figures = crew.ledger.lock().unwrap().figures();
        println!(
            "{}, round {round}: killed after {moment:?}; {figures}, {:?}",
            E::NAME,
            started.elapsed(),
        );
    }
    crew.stop();
}

/// Killed while it processes a batch: the others do its jobs, each at the next attempt.
fn killed_in_the_middle_of_a_batch<E: Shared>() {
    let Some(engine) = E::make() else {
        return;
    };
    let started = Instant::now();
    let longest = Duration::from_millis(200);
    let mut crew = Crew::start(engine, "workers", WORKERS, longest);
    let callers = crew.submit_for(Duration::from_secs(1));
    let number = crew.workers[0].number;
    while crew.ledger.lock().unwrap().held_by(number) < 4 {
        let line = crew.workers[0].running.line();
        let line = line.expect("it runs until it is killed");
        crew.ledger.lock().unwrap().hear(number, &line);
    }
    crew.kill_worker(0);
    let held = crew.ledger.lock().unwrap().held_by(number);
    assert!(held > 0, "it was killed in the middle of a batch");
    crew.settle(callers);
    let ledger = crew.ledger.lock().unwrap();
    assert!(ledger.lapsed >= held, "the others did what it had begun");
    println!(
        "{}: killed with {held} jobs; {}, {:?}",
        E::NAME,
        ledger.figures(),
        started.elapsed()
    );
    drop(ledger);
    crew.stop();
}

on_each_engine! {
    tests: killed_at_any_moment, killed_in_the_middle_of_a_batch;
    child: child;
}
