//! A job that ends its process: one process at a time, and two side by side. A process that
//! ends takes the attempt of what it alone had leased, so the others need not be alone.

use crate::engine::Engine;
use crate::poisoned::{WAY, Way, child, one_poison, poison_dies_alone, two_poisons};

fn two_processes_side_by_side<E: Engine>() {
    let way = Way {
        max_batch_size: 10,
        max_in_flight: 4,
        processes: 2,
        ..WAY
    };
    poison_dies_alone::<E>(way);
}

on_each_engine! {
    tests: one_poison, two_poisons, two_processes_side_by_side;
    child: child;
}
