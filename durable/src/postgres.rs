//! Jobs in a PostgreSQL database, for many machines.

mod builder;
mod error;
mod face;
mod leases;
mod link;
mod notices;
mod schema;
mod statements;

pub use builder::PostgresStoreBuilder;
pub use error::PostgresError;
pub use face::PostgresStore;
pub use leases::PostgresLease;
