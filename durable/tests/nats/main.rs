//! The store on a NATS server: the suite on each server that can be had, a model, bad
//! input, and what the store promises. Without a server, tests say so and pass.

mod bad_input;
mod conformance;
#[path = "../support/job.rs"]
mod job;
mod model;
mod promises;
mod support;
