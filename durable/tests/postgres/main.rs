//! The store in a PostgreSQL database, on a server of the tests' own.
#![forbid(unsafe_code)]

mod conformance;
mod server;
