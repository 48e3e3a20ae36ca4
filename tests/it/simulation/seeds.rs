//! Scenarios by the thousand.

use proptest::collection::vec;
use proptest::prelude::*;

use super::scenario::{BatchWords, OptionWords, Scenario, StepWords, Words};
use super::sights::Sights;
use super::{panics, run};
use crate::watch::Watch;

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
    let watch = Watch::start();
    let mut sights = Sights::default();
    for seed in first..first.saturating_add(count) {
        watch.at(format!(
            "seed {seed}, replay with\n{}",
            panics::replay(seed)
        ));
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
    fn any_scenario_holds(words in any_words()) {
        let scenario = Scenario::decode(&words);
        if let Err(wrong) = run(&scenario, None) {
            return Err(TestCaseError::fail(format!("{wrong}\n\n{scenario}")));
        }
    }
}

/// Any words, which shrink to fewer steps and plainer choices.
fn any_words() -> impl Strategy<Value = Words> {
    let options = any::<OptionWords>();
    let batches = vec(any::<BatchWords>(), 0..12);
    let steps = vec(any::<StepWords>(), 1..30);
    (options, batches, steps).prop_map(|(options, batches, steps)| Words {
        options,
        batches,
        steps,
    })
}
