//! Handles that keep nothing running.

use std::sync::{Arc, OnceLock};

use microbatch::{CancellationToken, JobError, MicroBatch, WeakMicroBatch};

use crate::support::{Gate, run, settle, soon};

#[tokio::test(start_paused = true)]
async fn a_weak_handle_upgrades_while_there_is_a_strong_one() {
    let batcher = run(MicroBatch::builder(Gate::open()).flush_when_idle(true));
    let weak = batcher.downgrade();
    let again = weak.clone().upgrade().expect("it is alive");
    drop(batcher);
    assert_eq!(soon(again.submit(7)).await.expect("it runs"), 7);
    drop(again);
    assert!(weak.upgrade().is_none());
}

/// A processor that submits to its own micro-batcher holds it; with a strong handle
/// the loop would never end.
#[tokio::test(start_paused = true)]
async fn a_processor_that_holds_its_own_micro_batcher_weakly_does_not_keep_it_alive() {
    let own = Arc::new(OnceLock::<WeakMicroBatch<u32, u32>>::new());
    let processor = {
        let own = own.clone();
        move |jobs: Vec<u32>| {
            let own = own.get().and_then(WeakMicroBatch::upgrade);
            async move {
                // Each job leads to the next one, down to zero.
                if let Some(own) = own {
                    for job in jobs.iter().filter(|job| **job > 0) {
                        drop(own.submit(job - 1));
                    }
                }
                Ok::<_, JobError>(jobs)
            }
        }
    };
    let batcher = MicroBatch::builder(processor)
        .flush_when_idle(true)
        .build()
        .expect("valid");
    assert!(own.set(batcher.downgrade()).is_ok());
    let run = tokio::spawn(batcher.start(CancellationToken::new()));
    assert_eq!(soon(batcher.submit(3)).await.expect("it runs"), 3);
    settle().await;
    assert_eq!(batcher.stats().completed, 4);
    drop(batcher);
    assert!(matches!(soon(run).await, Ok(Ok(()))));
}
