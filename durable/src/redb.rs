//! A store in one file.

mod engine;
mod error;
mod face;
mod holder;
mod tables;
mod unfinished;

pub use error::RedbError;
pub use face::{RedbLease, RedbStore, RedbStoreBuilder};
