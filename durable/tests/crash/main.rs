//! What the store in a file keeps when its process is killed, the power fails, or the disk
//! does. `tests/README.md` has the commands and the figures.
#![cfg(feature = "redb")]
#![forbid(unsafe_code)]

/// Makes tests of generic functions, and the child that they start.
macro_rules! on_each_engine {
    (tests: $($test:ident),*; child: $child:ident;) => {
        mod redb {
            use crate::redb::Redb;

            $(#[test]
            fn $test() {
                super::$test::<Redb>();
            })*

            #[test]
            #[ignore = "the child of the tests beside it"]
            fn child() {
                super::$child::<Redb>();
            }
        }
    };
}

mod alone;
#[path = "../support/by_seed.rs"]
mod by_seed;
#[path = "../support/child.rs"]
mod child;
mod disk;
#[path = "../support/engine.rs"]
mod engine;
mod io_errors;
mod kill;
mod ledger;
mod poison;
#[path = "../support/poisoned.rs"]
mod poisoned;
mod power;
mod redb;
mod seeds;
#[path = "../support/setup.rs"]
mod setup;
mod work;
