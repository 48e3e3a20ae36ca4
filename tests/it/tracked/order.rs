//! Batches start in order, however many are in flight, and their futures may be
//! as large as they like.

use microbatch::{CancellationToken, Tracked};

use crate::support::{StartLog, large, on_a_small_stack, one_by_one, soon, uneven};

/// The processor was called in the first poll of each batch's future, which
/// tasks on several threads come to in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_start_in_order_with_several_in_flight() {
    let log = StartLog::default();
    let started = log.clone();
    let tracked = Tracked::builder(move |jobs: Vec<u32>| {
        started.note(&jobs);
        uneven(jobs)
    })
    .options(one_by_one)
    .build_running(CancellationToken::new())
    .expect("valid");
    let handles: Vec<_> = (0..5000).map(|n| (tracked.submit(n, n), n)).collect();
    for (handle, n) in handles {
        assert_eq!(soon(handle).await.expect("processed"), n);
    }
    log.assert_in_order(5000);
}

#[test]
fn a_future_of_256_kib_is_processed_on_a_small_stack() {
    on_a_small_stack(|| async {
        let tracked = Tracked::new_running(CancellationToken::new(), large);
        assert_eq!(soon(tracked.submit("a", 1)).await.expect("processed"), 1);
    });
}
