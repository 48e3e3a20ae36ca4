//! The store in a PostgreSQL database, on a server of the tests' own.
#![forbid(unsafe_code)]

mod conformance;
mod inputs;
#[path = "../support/job.rs"]
mod job;
mod migrate;
mod model;
mod server;
#[path = "../support/model.rs"]
mod shared_model;
mod together;
mod whole;
