//! A store in one file.

mod engine;
mod error;
mod face;
mod holder;
mod tables;
mod unmade;

pub use error::RedbError;
pub use face::{RedbLease, RedbStore, RedbStoreBuilder};
