//! Other interfaces to a [`MicroBatch`](crate::MicroBatch): one per key, results by id,
//! streams, tower. Nothing in the engine imports them.

mod id_map;
pub(crate) mod keyed;
pub(crate) mod stream;
#[cfg(feature = "tower")]
pub(crate) mod tower;
#[cfg(feature = "tracked")]
pub(crate) mod tracked;
