//! One test crate, modules by behaviour. Time is virtual wherever no disk is involved.

mod drain;
mod files;
mod front;
mod redb;
