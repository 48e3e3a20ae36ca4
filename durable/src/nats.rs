//! The store on a NATS server with JetStream.
//!
//! `face` is the store, `builder` its options, `setup` what is made on the server, `append`,
//! `pull` and `settle` the calls, `leases` what this process has, `dead` the dead letters,
//! `client` the requests, `names` the names on the server.
//!
//! # Invariants
//!
//! - A live job is one message of the stream `NAME`, on a subject of its own, so that the
//!   server refuses another one of its id. The stream is a work queue: what is acknowledged
//!   is gone. A dead job is one message of the stream `NAME_DEAD`, on a subject of its own.
//! - Every call ends by itself: each waits for the server within `call_timeout`.
//! - What a pull brings belongs to a task of the store, not to the caller.

mod append;
mod builder;
mod client;
mod dead;
mod error;
mod face;
mod leases;
mod names;
mod pull;
mod settle;
mod setup;

pub use builder::JetStreamStoreBuilder;
pub use error::JetStreamError;
pub use face::{JetStreamLease, JetStreamStore};
