//! The store on SQLite that the examples show: what it does, and two processes on one file
//! of which one is frozen for longer than its lease.

#[path = "../../examples/sqlite_store/store.rs"]
mod store;

mod direct;
#[cfg(unix)]
mod worker;
