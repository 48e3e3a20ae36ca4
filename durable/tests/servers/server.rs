//! The server is killed again and again under load, and started again on its folder and
//! port. The front and the workers live on: they go on by themselves. So do workers that are
//! stopped for longer than their leases hold.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::crew::{Crew, LEASE_TIME, child};
use crate::networked::Networked;
use crate::setup::count;
use crate::told::now;

const WORKERS: usize = 2;

fn killed_under_load<E: Networked>() {
    let Some(engine) = E::make_own() else {
        return;
    };
    let rounds = count("SERVER_ROUNDS", 20);
    let started = Instant::now();
    let longest = Duration::from_millis(20);
    let mut crew = Crew::start(engine, "server", WORKERS, longest);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let callers = crew.submit_for(Duration::from_millis(700));
        let moment = Duration::from_micros(crew.rng.u64(..600_000));
        // Also while it starts, and while its clients come back.
        let kills = crew.rng.u32(1..=2);
        std::thread::sleep(moment);
        for _ in 0..kills {
            crew.ledger.lock().unwrap().kills.push(now());
            crew.engine.kill();
            std::thread::sleep(Duration::from_millis(crew.rng.u64(..200)));
            crew.engine.restart();
        }
        let restarted = Instant::now();
        crew.settle(callers);
        slowest = slowest.max(restarted.elapsed());
        let figures = crew.ledger.lock().unwrap().figures();
        println!(
            "{}, round {round}: killed {kills} times after {moment:?}; {figures}; all done {:?} \
             after it was back, {:?}",
            E::NAME,
            restarted.elapsed(),
            started.elapsed(),
        );
    }
    println!("{}: {rounds} rounds, the slowest {slowest:?}", E::NAME);
    crew.stop();
}

/// Stops a worker for some time, at a moment of its own.
pub(crate) fn freeze<E: Networked>(crew: &mut Crew<E>, worker: usize, time: Duration) {
    let worker = &crew.workers[worker];
    let pid = Pid::from_child(&worker.running.child);
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(time);
    let thawed = now();
    kill_process(pid, Signal::CONT).unwrap();
    let mut ledger = crew.ledger.lock().unwrap();
    ledger.freezes.push((worker.number, thawed));
}

/// Workers are stopped at any moment, and others take over; what they settle afterwards
/// changes nothing.
fn workers_are_frozen_under_load<E: Networked>() {
    let Some(engine) = E::make() else {
        return;
    };
    let rounds = count("SERVER_ROUNDS", 8);
    let started = Instant::now();
    let longest = Duration::from_millis(400);
    let mut crew = Crew::start(engine, "server", WORKERS + 1, longest);
    for round in 0..rounds {
        let callers = crew.submit_for(Duration::from_millis(700));
        std::thread::sleep(Duration::from_micros(crew.rng.u64(..600_000)));
        let worker = crew.rng.usize(..=WORKERS);
        // Often it goes on while another has what it had.
        let time = LEASE_TIME.mul_f64(0.6 + 0.7 * crew.rng.f64());
        freeze(&mut crew, worker, time);
        crew.settle(callers);
        let figures = crew.ledger.lock().unwrap().figures();
        println!(
            "{}, round {round}: {figures}, {:?}",
            E::NAME,
            started.elapsed()
        );
    }
    let ledger = crew.ledger.lock().unwrap();
    assert!(ledger.lapsed > 0, "no worker was stopped with a lease");
    drop(ledger);
    crew.stop();
}

on_each_server! {
    tests: killed_under_load, workers_are_frozen_under_load;
    child: child;
}
