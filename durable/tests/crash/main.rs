//! What the store in a file keeps when its process is killed, the power fails, or the disk
//! does. `tests/README.md` has the commands and the figures.
#![cfg(feature = "redb")]
#![forbid(unsafe_code)]

mod alone;
mod child;
mod disk;

mod io_errors;
mod kill;
mod ledger;

mod poison;
mod power;
mod seeds;
mod work;
