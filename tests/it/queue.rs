//! Acceptance: room in the queue, the waiters for it, and permits (promise 3).

mod permits;
mod room;
mod waiters;

use microbatch::{JobHandle, MicroBatch};

use crate::support::{Gate, run, settle, submit};

/// A batcher that can take nothing more: one job is with the processor,
/// one is pending and one in the queue, which is full.
pub(crate) async fn crowded(gate: &Gate) -> (MicroBatch<u32, u32>, Vec<JobHandle<u32>>) {
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(1)
        .queue_capacity(1));
    let mut handles = Vec::new();
    for job in 0..3 {
        handles.extend(submit(&batcher, [job]));
        settle().await;
    }
    let stats = batcher.stats();
    assert_eq!((stats.processing, stats.pending, stats.queued), (1, 1, 1));
    (batcher, handles)
}
