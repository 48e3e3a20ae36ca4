//! Batches start in order, however many are in flight, and their futures may be
//! as large as they like.

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use microbatch::{CancellationToken, Tracked};
use tokio::task::yield_now;

use crate::keyed::on_a_small_stack;
use crate::support::{lock, soon};

/// The processor was called in the first poll of each batch's future, which
/// tasks on several threads come to in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_with_several_in_flight() {
    let started: Arc<Mutex<Vec<u32>>> = Arc::default();
    let log = Arc::clone(&started);
    let tracked = Tracked::builder(move |jobs: Vec<u32>| {
        lock(&log).extend(&jobs);
        async move {
            if jobs[0] % 3 == 0 {
                yield_now().await;
            }
            Ok::<_, String>(jobs)
        }
    })
    .options(|options| {
        options
            .max_batch_size(1)
            .max_in_flight(8)
            .queue_capacity(10_000)
    })
    .build_running(CancellationToken::new())
    .expect("valid");
    let handles: Vec<_> = (0..5000).map(|n| (tracked.submit(n, n), n)).collect();
    for (handle, n) in handles {
        assert_eq!(soon(handle).await.expect("processed"), n);
    }
    let in_order: Vec<_> = (0..5000).collect();
    assert_eq!(*lock(&started), in_order);
}

#[test]
fn a_future_of_256_kib_is_processed_on_a_small_stack() {
    on_a_small_stack(|| async {
        let tracked = Tracked::new_running(CancellationToken::new(), |jobs: Vec<u8>| async move {
            let large = black_box([1_u8; 256 * 1024]);
            yield_now().await;
            Ok::<_, String>(jobs.iter().map(|job| job + black_box(&large)[7]).collect())
        });
        assert_eq!(soon(tracked.submit("a", 1)).await.expect("processed"), 2);
    });
}
