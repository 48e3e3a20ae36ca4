use std::time::Duration;

use microbatch::{BatchProcessorExt, Elapsed, JobError};
use tokio::time::{Instant, sleep};

use super::batcher;

const LIMIT: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn a_batch_that_takes_too_long_is_dropped_and_says_so() {
    let sleepy = |jobs: Vec<u64>| async move {
        sleep(Duration::from_secs(jobs[0])).await;
        Ok::<_, String>(jobs)
    };
    let batcher = batcher(1, sleepy.timeout(LIMIT));
    let start = Instant::now();
    assert_eq!(batcher.submit(1).await.expect("in time"), 1);
    let Err(JobError::Failed(cause)) = batcher.submit(60).await else {
        panic!("not in time");
    };
    assert_eq!(
        cause.downcast_ref::<Elapsed>().map(|elapsed| elapsed.limit),
        Some(LIMIT)
    );
    assert_eq!(cause.to_string(), "the batch took longer than 2s");
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(batcher.submit(1).await.expect("the next one is on time"), 1);
}

#[tokio::test(start_paused = true)]
async fn errors_and_panics_pass_through() {
    let failing = |jobs: Vec<u64>| async move {
        assert!(jobs[0] != 0, "zero");
        Err::<Vec<u64>, _>(std::io::Error::other("disk"))
    };
    let batcher = batcher(1, failing.timeout(Duration::MAX));
    let Err(JobError::Failed(cause)) = batcher.submit(1).await else {
        panic!("fails");
    };
    assert!(cause.is::<std::io::Error>());
    let panicked = batcher.submit(0).await.expect_err("panics");
    assert!(matches!(panicked, JobError::Panicked(message) if &*message == "zero"));
}
