//! A store in one file.

mod engine;
mod error;
mod face;
mod holder;
mod tables;

pub use error::RedbError;
pub use face::{RedbLease, RedbStore, RedbStoreBuilder};
