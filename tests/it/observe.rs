//! What can be seen from outside.

mod on_batch;
mod stats;
mod trace;
