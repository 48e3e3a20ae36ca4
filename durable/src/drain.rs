//! The back: leases jobs in batches, has them processed, and settles them.

mod attempts;
mod batch;
mod builder;
mod calls;
mod input;
mod report;
mod worker;

pub use builder::{Drain, DrainBuilder};
pub use input::{Delivery, Input};
pub use report::{DrainError, DrainReport, Drained};
