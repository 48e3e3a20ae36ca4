#![doc = include_str!("engine/README.md")]

pub(crate) mod batch;
pub(crate) mod departures;
mod in_flight;
mod oneshot;
pub(crate) mod panics;
mod peak;
mod pending_jobs;
pub(crate) mod permits;
pub(crate) mod queue;
pub(crate) mod reply;
pub(crate) mod schedule;
mod task_pool;
mod timer;
pub(crate) mod withdrawal;
pub(crate) mod worker;
