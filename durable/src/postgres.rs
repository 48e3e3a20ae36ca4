//! Jobs in a PostgreSQL database, for many machines.
//!
//! # Invariants
//!
//! - One column says when a job is to be seen: `due`. A lease moves it forward by the lease
//!   time, a retry by its delay. So a lease that lapsed is due again by itself: there is no
//!   state to set back, nobody who sweeps, and no name of a worker.
//! - A lease is fenced by its number, which no other delivery of its job has, and by its time
//!   on the server's clock. What is settled or extended was held at that moment, and its row is
//!   locked.
//! - Every call is one statement, and one transaction that is on disk before the answer, whatever
//!   `synchronous_commit` is by default; an append of more than 64 MiB is several, in one
//!   transaction. No transaction is open while jobs are processed.
//! - Nothing depends on a notice. Whoever waits for jobs asks now and then.
//!
//! The statements are in `statements`, the tables in `schema.sql`.

mod builder;
mod error;
mod face;
mod leases;
mod link;
mod notices;
mod said;
mod schema;
mod statements;

pub use builder::PostgresStoreBuilder;
pub use error::PostgresError;
pub use face::PostgresStore;
pub use leases::PostgresLease;
