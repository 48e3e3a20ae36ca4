//! A job that ends its process, in a file: one process at a time.

use crate::engine::Engine;
use crate::poisoned::{WAY, Way, child, one_poison, poison_dies_alone, two_poisons};

fn few_attempts<E: Engine>() {
    for max_attempts in 1..=3 {
        let way = Way {
            max_attempts,
            ..WAY
        };
        poison_dies_alone::<E>(way);
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
        poison_dies_alone::<E>(way);
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
        poison_dies_alone::<E>(way);
    }
}

on_each_engine! {
    tests: one_poison, two_poisons, few_attempts, batches_side_by_side,
        few_attempts_side_by_side;
    child: child;
}
