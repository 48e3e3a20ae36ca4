//! What a burst leaves: tasks of the order of the work at hand, whatever there
//! was at once before.

use std::sync::Arc;

use microbatch::MicroBatch;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::support::{Gate, assert_balanced, results, run, settle, soon, submit};

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// A task was kept for each of the most batches that were ever in flight.
#[tokio::test(start_paused = true)]
async fn a_burst_of_batches_gives_its_tasks_back() {
    let before = tasks();
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(10)
        .max_in_flight(1_000));
    let handles = submit(&batcher, 0..10_000);
    settle().await;
    // Where the queue is short the loop needs a few turns.
    for _ in 0..200 {
        settle().await;
    }
    assert_eq!((gate.inside(), tasks() - before), (1_000, 1_001));
    gate.pass(1_000_000);
    results(handles).await;
    for job in 0..30 {
        results(submit(&batcher, job * 10..job * 10 + 10)).await;
    }
    settle().await;
    assert!(tasks() - before <= 4, "{} tasks", tasks() - before);
    assert_balanced(batcher.stats());
    soon(batcher.shutdown()).await.expect("drains");
    assert_eq!(tasks(), before);
}

/// A crowd that went by, and a queue that was long, start no tasks at all.
#[tokio::test(start_paused = true)]
async fn a_crowd_and_a_long_queue_leave_no_tasks() {
    let before = tasks();
    for capacity in [100, 1_000_000] {
        let batcher = run(MicroBatch::builder(|jobs: Vec<[u8; 256]>| async move {
            Ok::<_, String>(jobs.iter().map(|job| u32::from(job[7])).collect())
        })
        .queue_capacity(capacity)
        .max_batch_size(1_000));
        let jobs = if capacity == 100 { 300_000 } else { 1_000_000 };
        let handles = submit(&batcher, (0..jobs).map(|_| [1; 256]));
        assert_eq!(results(handles).await.into_iter().sum::<u32>(), jobs);
        for _ in 0..10 {
            results(submit(&batcher, vec![[1; 256]; 30])).await;
        }
        assert!(tasks() - before <= 3, "{} tasks", tasks() - before);
        assert_balanced(batcher.stats());
        soon(batcher.shutdown()).await.expect("drains");
        assert_eq!(tasks(), before);
    }
}

/// The data goes with the jobs: nothing of a burst stays in a buffer.
#[tokio::test(start_paused = true)]
async fn a_burst_leaves_no_job_behind() {
    let data = Arc::new(());
    let passes = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&passes);
    let batcher = run(MicroBatch::builder(move |jobs: Vec<Arc<()>>| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.expect("open").forget();
            Ok::<_, String>(jobs)
        }
    })
    .max_in_flight(100));
    let handles = submit(&batcher, vec![Arc::clone(&data); 50_000]);
    settle().await;
    passes.add_permits(100_000);
    for handle in handles {
        drop(soon(handle).await);
    }
    assert_eq!(Arc::strong_count(&data), 1);
}
