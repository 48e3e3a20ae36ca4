//! What stores that many processes share keep when a worker is killed or frozen, when their
//! server is killed, and when the network is cut. `README.md` beside has the commands and the
//! figures.
#![cfg(unix)]
#![forbid(unsafe_code)]

/// Makes tests of generic functions for each store, and the child that they start.
macro_rules! on_each_engine {
    (tests: $($test:ident),*; child: $child:ident;) => {
        on_each_engine! {
            engine: sqlite, crate::sqlite::Sqlite;
            tests: $($test),*; child: $child;
        }
        on_each_server! { tests: $($test),*; child: $child; }
    };
    (engine: $name:ident, $engine:ty; tests: $($test:ident),*; child: $child:ident;) => {
        mod $name {
            $(#[test]
            fn $test() {
                super::$test::<$engine>();
            })*

            #[test]
            #[ignore = "the child of the tests beside it"]
            fn child() {
                super::$child::<$engine>();
            }
        }
    };
}

/// The same, without the store that has no server.
macro_rules! on_each_server {
    (tests: $($test:ident),*; child: $child:ident;) => {
        #[cfg(feature = "postgres")]
        on_each_engine! {
            engine: postgres, crate::postgres::Postgres;
            tests: $($test),*; child: $child;
        }
        #[cfg(feature = "nats")]
        on_each_engine! {
            engine: jetstream, crate::jetstream::JetStream;
            tests: $($test),*; child: $child;
        }
    };
}

/// Where one on SQLite is tested by itself.
#[cfg(any(feature = "postgres", feature = "nats"))]
macro_rules! on_each_frozen {
    ($($tests:tt)*) => {
        on_each_server! { $($tests)* }
    };
}

#[path = "../support/by_seed.rs"]
mod by_seed;
#[path = "../support/child.rs"]
mod child;
mod crew;
#[path = "../support/engine.rs"]
mod engine;
#[cfg(any(feature = "postgres", feature = "nats"))]
#[path = "../support/frozen.rs"]
mod frozen;
#[cfg(feature = "nats")]
mod jetstream;
#[cfg(any(feature = "postgres", feature = "nats"))]
#[path = "../support/job.rs"]
mod job;
mod ledger;
#[cfg(any(feature = "postgres", feature = "nats"))]
mod network;
#[cfg(any(feature = "postgres", feature = "nats"))]
mod networked;
#[cfg(feature = "postgres")]
mod once;
mod poison;
#[path = "../support/poisoned.rs"]
mod poisoned;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "nats"))]
mod relay;
#[cfg(any(feature = "postgres", feature = "nats"))]
mod server;
#[path = "../support/setup.rs"]
mod setup;
#[path = "../support/sqlite.rs"]
mod sqlite;
#[path = "../../examples/sqlite_store/store.rs"]
mod store;
mod told;
mod workers;

impl crew::Shared for sqlite::Sqlite {}
