//! The batches of a key start in order, however many are in flight, and their
//! futures may be as large as they like.

use microbatch::{CancellationToken, Keyed};

use crate::support::{StartLog, large, on_a_small_stack, one_by_one, soon, uneven};

/// The processor was called in the first poll of each batch's future, which
/// tasks on several threads come to in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_of_a_key_start_in_order_with_several_in_flight() {
    for overall in [1, 3, 100] {
        let logs = [(); 3].map(|()| StartLog::default());
        let started = logs.clone();
        let keyed = Keyed::builder(move |key: usize, jobs: Vec<u32>| {
            started[key].note(&jobs);
            uneven(jobs)
        })
        .max_in_flight_overall(overall)
        .options(one_by_one)
        .build_running(CancellationToken::new())
        .expect("valid");
        let jobs = (0..2000).flat_map(|n| (0..3).map(move |key| (key, n)));
        let handles: Vec<_> = jobs.map(|(key, n)| (keyed.submit(key, n), n)).collect();
        for (handle, n) in handles {
            assert_eq!(soon(handle).await.expect("processed"), n);
        }
        logs.iter().for_each(|log| log.assert_in_order(2000));
    }
}

#[test]
fn a_future_of_256_kib_is_processed_on_a_small_stack() {
    on_a_small_stack(|| async {
        let keyed = Keyed::new_running(CancellationToken::new(), |_key, jobs| large(jobs));
        assert_eq!(soon(keyed.submit(1, 1)).await.expect("processed"), 1);
    });
}
