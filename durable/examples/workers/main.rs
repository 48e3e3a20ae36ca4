//! Jobs on a server, shared by workers on many machines, to be seen: a producer submits
//! real records, three processes write them, and one of them is killed halfway, without a
//! warning. The others do its jobs, and at the end every record is there once.
//!
//! ```text
//! cargo run --release -p microbatch-durable --features postgres --example workers
//! cargo run --release -p microbatch-durable --features nats --example workers
//!
//!  parent                          a server              workers (the same program, 3 times)
//!  ┌──────────────────────┐     ┌────────────────┐     ┌─────────────────────────────────┐
//!  │ records ─▶ Durable ──┼────▶│ PostgresStore  │◀───▶│ Drain ─▶ one insert for a batch │
//!  │ starts, kills,       │     │ JetStreamStore │     └─────────────────────────────────┘
//!  │ counts and checks    │     └────────────────┘       ▲ killed: its leases lapse, and the
//!  └──────────────────────┘                              │ others get its jobs
//! ```
//!
//! To see how such jobs are used, read `program/postgres.rs`, where a batch and its
//! settlement are one transaction, or `program/nats.rs`, where a batch may be written again
//! and that does no harm. The rest is the stage.

#[cfg(all(unix, any(feature = "nats", feature = "postgres")))]
mod program;

use std::process::ExitCode;

#[cfg(all(unix, any(feature = "nats", feature = "postgres")))]
fn main() -> ExitCode {
    program::run()
}

/// Either feature will do, which a manifest cannot require.
#[cfg(not(all(unix, any(feature = "nats", feature = "postgres"))))]
fn main() -> ExitCode {
    let why = match cfg!(unix) {
        true => "it needs a store: add `--features postgres` or `--features nats`",
        false => "it needs Unix",
    };
    eprintln!("error: {why}");
    ExitCode::FAILURE
}
