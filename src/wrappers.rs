//! What wraps a [`MicroBatch`](crate::MicroBatch) in another interface: one per key,
//! results by id, streams, tower. Each is built on its methods alone.

mod id_map;
pub(crate) mod keyed;
pub(crate) mod stream;
#[cfg(feature = "tower")]
pub(crate) mod tower;
#[cfg(feature = "tracked")]
pub(crate) mod tracked;
