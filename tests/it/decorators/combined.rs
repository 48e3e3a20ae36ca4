use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backon::ConstantBuilder;
use microbatch::{BatchProcessorExt, Elapsed, JobError};
use tokio::time::{Instant, sleep};

use super::{Calls, batcher};

/// Job 13 hangs whatever batch it is in; the first call of all is refused.
#[tokio::test(start_paused = true)]
async fn bisect_over_retry_over_timeout_isolates_a_job_that_hangs() {
    let calls = Calls::new();
    let refused = Arc::new(AtomicU32::new(0));
    let insert = {
        let calls = calls.clone();
        move |jobs: Vec<u32>| {
            calls.note(&jobs);
            let refused = refused.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if refused {
                    return Err("refused");
                }
                if jobs.contains(&13) {
                    sleep(Duration::from_secs(3600)).await;
                }
                Ok(jobs)
            }
        }
    };
    let second = ConstantBuilder::default()
        .with_delay(Duration::from_secs(1))
        .with_max_times(1);
    let insert = insert
        .timeout(Duration::from_secs(10))
        .retry(second)
        .when(|error| !error.is::<Elapsed>())
        .bisect();
    let batcher = batcher(16, insert);
    let start = Instant::now();
    for (job, result) in (0..).zip(batcher.submit_all(0..16).await) {
        match result.expect("bisect never fails a batch") {
            Ok(result) => assert_eq!(result, job),
            Err(JobError::Failed(cause)) => {
                assert!(cause.is::<Elapsed>());
                assert_eq!(job, 13);
            }
            Err(error) => panic!("{error}"),
        }
    }
    // One refused call, and nine of a search in sixteen, of which the five with
    // job 13 run into the limit.
    assert_eq!(calls.count(), 1 + 9);
    assert_eq!(start.elapsed(), Duration::from_secs(1 + 5 * 10));
}

#[tokio::test(start_paused = true)]
async fn coalesce_under_bisect_gives_equal_poison_jobs_equal_errors() {
    let calls = Calls::new();
    let load = {
        let calls = calls.clone();
        move |ids: Vec<u32>| {
            calls.note(&ids);
            async move {
                if ids.contains(&3) {
                    Err("no such id")
                } else {
                    Ok(ids)
                }
            }
        }
    };
    let batcher = batcher(4, load.coalesce().bisect());
    let results = batcher.submit_all([1, 3, 1, 3]).await;
    let good: Vec<_> = results
        .into_iter()
        .map(|result| result.expect("no batch fails").ok())
        .collect();
    assert_eq!(good, [Some(1), None, Some(1), None]);
    assert_eq!(calls.all()[0], [1, 3]);
}
