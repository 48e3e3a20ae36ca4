//! Everything that is compared, by name.

mod add_one;
mod batch_aint_one;
#[cfg(feature = "batchy")]
mod batchy;
mod dataloader;
mod microbatch;
mod references;
mod scuffle_batching;
mod tower_batch;
mod tower_batch_control;
mod traced;
mod ultra_batch;

use crate::load::Load;
use crate::subject::{Outcome, run as go};

use ::batch_aint_one::{BatchingPolicy, OnFull};
use traced::{Listener, Traced};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This crate.
    Own,
    Peer,
    /// What a user would write without a crate.
    HandWritten,
    /// No batching: what is left when a batcher costs nothing.
    Floor,
}

#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub role: Role,
}

const fn entry(name: &'static str, role: Role) -> Entry {
    Entry { name, role }
}

/// The rows of the table, in this order.
pub const SUBJECTS: &[Entry] = &[
    entry("floor", Role::Floor),
    entry("microbatch", Role::Own),
    entry("microbatch, idle", Role::Own),
    #[cfg(feature = "batchy")]
    entry("batchy", Role::Peer),
    entry("hand-written", Role::HandWritten),
    entry("scuffle-batching", Role::Peer),
    entry("scuffle-batching, 50 at once", Role::Peer),
    entry("dataloader", Role::Peer),
    entry("tower-batch", Role::Peer),
    entry("tower-batch-control", Role::Peer),
    entry("batch-aint-one, Immediate", Role::Peer),
    entry("batch-aint-one, Immediate, 10 at once", Role::Peer),
    entry("batch-aint-one, Balanced", Role::Peer),
    entry("batch-aint-one, Duration", Role::Peer),
    entry("ultra-batch", Role::Peer),
];

/// The processor, called with no batcher in between: what a lone caller cannot
/// do without.
pub const BARE: &str = "bare processor";

/// Runs the subject of that name, if there is one.
pub(crate) fn run(name: &str, load: Load) -> Option<Outcome> {
    let half = load.case.batch.div_ceil(2);
    let interval = load.interval;
    Some(match name {
        "floor" if load.case.threads == 1 => go(load, |_| references::Floor::start()),
        "floor" => go(load, |_| references::SharedFloor::start()),
        BARE => go(load, |_| references::Bare),
        "hand-written" => go(load, references::HandWritten::start),
        "microbatch" => go(load, |load| microbatch::start(load, false)),
        "microbatch, idle" => go(load, |load| microbatch::start(load, true)),
        "floor, no subscriber" => floor_under(load, Listener::None),
        "floor, log" => floor_under(load, Listener::Log),
        "floor, OpenTelemetry" => floor_under(load, Listener::OpenTelemetry),
        "microbatch, no subscriber" => own_under(load, Listener::None),
        "microbatch, log" => own_under(load, Listener::Log),
        "microbatch, OpenTelemetry" => own_under(load, Listener::OpenTelemetry),
        #[cfg(feature = "batchy")]
        "batchy" => go(load, batchy::start),
        "scuffle-batching" => go(load, |load| scuffle_batching::start(load, 1)),
        "scuffle-batching, 50 at once" => go(load, |load| scuffle_batching::start(load, 50)),
        "dataloader" => go(load, dataloader::start),
        "tower-batch" => go(load, tower_batch::start),
        "tower-batch-control" => go(load, tower_batch_control::start),
        "batch-aint-one, Immediate" => go(load, |load| {
            batch_aint_one::start(load, 1, BatchingPolicy::Immediate)
        }),
        "batch-aint-one, Immediate, 10 at once" => go(load, |load| {
            batch_aint_one::start(load, 10, BatchingPolicy::Immediate)
        }),
        "batch-aint-one, Balanced" => go(load, |load| {
            batch_aint_one::start(
                load,
                1,
                BatchingPolicy::Balanced {
                    min_size_hint: half,
                },
            )
        }),
        "batch-aint-one, Duration" => go(load, |load| {
            batch_aint_one::start(load, 1, BatchingPolicy::Duration(interval, OnFull::Process))
        }),
        "ultra-batch" => go(load, ultra_batch::start),
        _ => return None,
    })
}

fn floor_under(load: Load, listener: Listener) -> Outcome {
    go(load, |_| Traced::start(listener, references::Floor::start))
}

fn own_under(load: Load, listener: Listener) -> Outcome {
    go(load, |load| {
        Traced::start(listener, || microbatch::start(load, false))
    })
}
