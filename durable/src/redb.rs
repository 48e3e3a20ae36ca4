//! A store in one file.

mod builder;
mod engine;
mod error;
mod face;
mod holder;
mod leases;
mod tables;
mod unmade;

pub use builder::RedbStoreBuilder;
pub use error::RedbError;
pub use face::{RedbLease, RedbStore};
