//! One test crate, modules by behaviour. Time is virtual wherever no disk is involved.

mod conformance;
mod drain;
mod faulty;
mod files;
mod front;
mod model;
mod redb;
mod review;
#[path = "../support/model.rs"]
mod shared_model;
mod support;
