//! Callers who make jobs durable.

use std::time::{Duration, Instant};

use microbatch::JobError;
use microbatch_durable::Durable;
use tokio::task::JoinSet;

use crate::raw::PAYLOAD;

/// Jobs that so many callers have made durable, each awaiting its own, and in how many
/// appends.
pub(crate) async fn call(
    front: &Durable<Vec<u8>>,
    callers: u64,
    next_id: impl Fn() -> String + Clone + Send + 'static,
    time: Duration,
) -> Result<(u64, u64), JobError> {
    let before = front.stats();
    let started = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..callers {
        let (front, next_id) = (front.clone(), next_id.clone());
        all.spawn(async move {
            while started.elapsed() < time {
                front.submit(next_id(), vec![7; PAYLOAD]).await?;
            }
            Ok(())
        });
    }
    for caller in all.join_all().await {
        caller?;
    }
    let after = front.stats();
    Ok((
        after.completed - before.completed,
        after.batches - before.batches,
    ))
}
