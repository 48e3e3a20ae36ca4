//! A job that ends its process: one process at a time, and two side by side. A process that
//! ends takes the attempt of what it alone had leased, so the others need not be alone.

use crate::crew::count;
use crate::engine::Engine;
use crate::poisoned::{self, WAY, Way, child, poison_dies_alone};

fn repeats() -> u64 {
    count("POISON_ROUNDS", 1)
}

fn one_poison<E: Engine>() {
    poisoned::one_poison::<E>(repeats());
}

fn two_poisons<E: Engine>() {
    poisoned::two_poisons::<E>(repeats());
}

fn two_processes_side_by_side<E: Engine>() {
    let way = Way {
        max_batch_size: 10,
        max_in_flight: 4,
        processes: 2,
        ..WAY
    };
    poison_dies_alone::<E>(way, repeats());
}

on_each_engine! {
    tests: one_poison, two_poisons, two_processes_side_by_side;
    child: child;
}
