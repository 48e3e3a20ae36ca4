//! What can be seen from outside.

mod loss;
#[cfg(feature = "metrics")]
mod metrics;
mod on_batch;
mod stats;
mod trace;

use std::sync::OnceLock;

use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, set_default};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

/// Shows the layer what this thread traces.
fn subscribe(layer: impl Layer<Registry> + Send + Sync) -> DefaultGuard {
    // Where there is but one subscriber, the thread that first reaches a span or an
    // event decides for all whether it is of interest, and that may be a test
    // without one. A second makes `tracing` ask both.
    static SECOND: OnceLock<Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| Dispatch::new(Registry::default()));
    set_default(Registry::default().with(layer))
}
