//! The real `MicroBatch` in virtual time, with hostile everything, against a
//! small model of the contract.
//!
//! A scenario comes from a seed or from proptest: options, what becomes of each
//! batch, and what the callers do. Any promise that does not hold fails the
//! run, and so does a run that does not end.
//!
//! - `SIM_SEEDS=1000000 cargo test --release --test it ten_thousand_seeds`
//!   runs a million seeds, from `SIM_FIRST` on.
//! - `SIM_SEED=42 cargo test --test it seed_from_the_environment` shows one
//!   scenario and runs it.

mod callers;
mod doubles;
mod found;
mod model;
mod panics;
mod run;
mod scenario;
mod seen;
mod sights;
mod start;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use scenario::{Scenario, Words};
use seen::Seen;
use sights::Sights;

/// A scenario takes less than a millisecond.
const STUCK: Duration = Duration::from_secs(60);

/// Runs a scenario, and returns what was seen or all that went wrong, panics
/// included.
fn run(scenario: &Scenario, seed: Option<u64>) -> Result<Seen, String> {
    panics::watch(seed);
    catch_unwind(AssertUnwindSafe(|| run::run(scenario))).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>();
        Err(format!("panicked: {message:?}"))
    })
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect(name))
}

/// A debug build runs fewer of them by default.
#[test]
fn ten_thousand_seeds_hold() {
    let default = if cfg!(debug_assertions) {
        3_000
    } else {
        10_000
    };
    let count = from_environment("SIM_SEEDS").unwrap_or(default);
    let first = from_environment("SIM_FIRST").unwrap_or(0);
    // A run that blocks its thread can be reported only by another.
    let (progress, seeds) = channel();
    thread::spawn(move || {
        let mut current = first;
        loop {
            match seeds.recv_timeout(STUCK) {
                Ok(seed) => current = seed,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let command = panics::replay(current);
                    panics::tell(&format!("seed {current} is stuck, replay with\n{command}"));
                    std::process::exit(101);
                }
            }
        }
    });
    let mut sights = Sights::default();
    for seed in first..first.saturating_add(count) {
        progress.send(seed).expect("the watch lives");
        let scenario = Scenario::from_seed(seed);
        match run(&scenario, Some(seed)) {
            Ok(seen) => sights.add(&seen),
            Err(wrong) => {
                let command = panics::replay(seed);
                panic!("seed {seed}:\n{wrong}\n\n{scenario}\n\nreplay with\n{command}");
            }
        }
    }
    println!("{count} seeds have shown {sights:#?}");
    if count >= 3_000 {
        let missing = sights.missing();
        assert!(missing.is_empty(), "never seen: {missing:?}");
    }
}

/// Replays `SIM_SEED`, and reduces it where it fails.
#[test]
fn seed_from_the_environment() {
    let Some(seed) = from_environment("SIM_SEED") else {
        return;
    };
    let scenario = Scenario::from_seed(seed);
    println!("{scenario}");
    let Err(wrong) = run(&scenario, None) else {
        return;
    };
    println!("\nseed {seed}:\n{wrong}\n");
    let words = Words::from_seed(seed).shrink(|words| run(&Scenario::decode(words), None).is_err());
    let scenario = Scenario::decode(&words);
    let wrong = run(&scenario, None).err().unwrap_or_default();
    panic!("seed {seed}, reduced:\n{wrong}\n\n{scenario}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_scenario_holds(words in Words::any()) {
        let scenario = Scenario::decode(&words);
        if let Err(wrong) = run(&scenario, None) {
            return Err(TestCaseError::fail(format!("{wrong}\n\n{scenario}")));
        }
    }
}
