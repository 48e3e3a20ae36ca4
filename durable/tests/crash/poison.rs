//! A job that ends its process, in a file: one process at a time.

use crate::engine::Engine;
use crate::poisoned::{self, WAY, Way, poison_dies_alone};
use crate::seeds;

fn repeats() -> u64 {
    seeds::count("CRASH_ROUNDS", 1)
}

fn one_poison<E: Engine>() {
    poisoned::one_poison::<E>(repeats());
}

fn two_poisons<E: Engine>() {
    poisoned::two_poisons::<E>(repeats());
}

fn few_attempts<E: Engine>() {
    for max_attempts in 1..=3 {
        let way = Way {
            max_attempts,
            ..WAY
        };
        poison_dies_alone::<E>(way, repeats());
    }
}

fn batches_side_by_side<E: Engine>() {
    for (poisons, max_batch_size) in [(1, 100), (2, 100), (1, 10), (2, 10)] {
        let way = Way {
            poisons,
            max_batch_size,
            max_in_flight: 4,
            ..WAY
        };
        poison_dies_alone::<E>(way, repeats());
    }
}

fn few_attempts_side_by_side<E: Engine>() {
    for max_attempts in 1..=3 {
        let way = Way {
            max_attempts,
            max_batch_size: 10,
            max_in_flight: 4,
            ..WAY
        };
        poison_dies_alone::<E>(way, repeats());
    }
}

use poisoned::child;

on_each_engine! {
    tests: one_poison, two_poisons, few_attempts, batches_side_by_side,
        few_attempts_side_by_side;
    child: child;
}
