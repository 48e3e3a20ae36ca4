//! What the tests that run on several stores ask of each.

use std::future::Future;
use std::time::Duration;

use microbatch_durable::{DeadLetters, Store};

/// A store that this process makes and its children open.
pub(crate) trait Engine: Sized {
    type Store: Store + DeadLetters + Clone;

    /// The module of its tests.
    const NAME: &'static str;

    /// Makes an empty one. `None` if a program is missing for it, which has been said.
    fn make() -> Option<Self>;

    /// Where a child finds it.
    fn place(&self) -> String;

    /// Opens the store at a place. Its leases hold for this time, if they have one.
    fn open(place: &str, lease_time: Duration) -> impl Future<Output = Self::Store> + Send;
}
