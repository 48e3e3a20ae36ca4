//! The real `MicroBatch` in virtual time, with hostile everything, against a
//! small model of the contract.
//!
//! A scenario comes from a seed, from proptest or from a fuzzer: options, what
//! becomes of each batch, and what the callers do. Any promise that does not
//! hold fails the run, and so does a run that does not end.
//!
//! - `SIM_SEEDS=1000000 cargo test --release --test it ten_thousand_seeds`
//!   runs a million seeds, from `SIM_FIRST` on.
//! - `SIM_SEED=42 cargo test --test it seed_from_the_environment` shows one
//!   scenario and runs it.

mod callers;
mod doubles;
#[cfg(test)]
mod found;
mod model;
mod panics;
mod run;
mod scenario;
#[cfg(test)]
mod seeds;
mod seen;
#[cfg(test)]
mod sights;
mod start;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use scenario::{Scenario, Words};
use seen::Seen;

/// Runs a scenario, and returns what was seen or all that went wrong, panics
/// included.
fn run(scenario: &Scenario, seed: Option<u64>) -> Result<Seen, String> {
    panics::watch(seed);
    catch_unwind(AssertUnwindSafe(|| run::run(scenario))).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>();
        Err(format!("panicked: {message:?}"))
    })
}

/// Runs the scenario that the bytes stand for.
pub(crate) fn run_bytes(bytes: &[u8]) -> Result<(), String> {
    let scenario = Scenario::decode(&Words::from_bytes(bytes));
    match run(&scenario, None) {
        Ok(_) => Ok(()),
        Err(wrong) => Err(format!("{wrong}\n\n{scenario}")),
    }
}
