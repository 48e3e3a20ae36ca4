//! What can be seen from outside.

mod loss;
mod on_batch;
mod stats;
mod trace;
