//! The batches of a key start in order, however many are in flight, and their
//! futures may be as large as they like.

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use microbatch::{CancellationToken, Keyed};
use tokio::task::yield_now;

use super::on_a_small_stack;
use crate::support::{lock, soon};

/// The processor was called in the first poll of each batch's future, which
/// tasks on several threads come to in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_of_a_key_start_in_order_with_several_in_flight() {
    for overall in [1, 3, 100] {
        let started: Arc<Mutex<Vec<Vec<u32>>>> = Arc::new(Mutex::new(vec![vec![]; 3]));
        let log = Arc::clone(&started);
        let keyed = Keyed::builder(move |key: usize, jobs: Vec<u32>| {
            lock(&log)[key].extend(&jobs);
            async move {
                if jobs[0] % 3 == 0 {
                    yield_now().await;
                }
                Ok::<_, String>(jobs)
            }
        })
        .max_in_flight_overall(overall)
        .options(|options| {
            options
                .max_batch_size(1)
                .max_in_flight(8)
                .queue_capacity(10_000)
        })
        .build_running(CancellationToken::new())
        .expect("valid");
        let jobs = (0..2000).flat_map(|n| (0..3).map(move |key| (key, n)));
        let handles: Vec<_> = jobs.map(|(key, n)| (keyed.submit(key, n), n)).collect();
        for (handle, n) in handles {
            assert_eq!(soon(handle).await.expect("processed"), n);
        }
        let in_order: Vec<_> = (0..2000).collect();
        for of_key in &*lock(&started) {
            assert_eq!(*of_key, in_order, "{overall}");
        }
    }
}

#[test]
fn a_future_of_256_kib_is_processed_on_a_small_stack() {
    on_a_small_stack(|| async {
        let keyed =
            Keyed::new_running(CancellationToken::new(), |_key, jobs: Vec<u8>| async move {
                let large = black_box([1_u8; 256 * 1024]);
                yield_now().await;
                Ok::<_, String>(jobs.iter().map(|job| job + black_box(&large)[7]).collect())
            });
        assert_eq!(soon(keyed.submit(1, 1)).await.expect("processed"), 2);
    });
}
