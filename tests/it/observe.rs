//! What can be seen from outside.

mod loss;
#[cfg(feature = "metrics")]
mod metrics;
mod on_batch;
mod stats;
mod trace;
