//! Settings and pauses of tracked jobs.

use std::time::Duration;

use microbatch::{BuildError, JobStatus, ReconfigureError, Tracked};
use tokio::time::sleep;

use super::running;
use crate::support::{Gate, secs, soon};

#[tokio::test(start_paused = true)]
async fn a_change_is_the_micro_batchers() {
    let tracked =
        running(Tracked::builder(Gate::open()).options(|options| options.interval(Duration::MAX)));
    let handle = tracked.submit("a", 1);
    sleep(secs(10)).await;
    let refused = tracked.reconfigure(|settings| settings.interval = Duration::ZERO);
    let error = ReconfigureError::Invalid(BuildError::Zero("interval"));
    assert_eq!(refused, Err(error));
    let now = tracked.reconfigure(|settings| settings.interval = secs(1));
    assert_eq!(now, Ok(tracked.settings()));
    assert_eq!(soon(handle).await.expect("its interval is over"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_keeps_a_job_submitted() {
    let tracked =
        running(Tracked::builder(Gate::open()).options(|options| options.flush_when_idle(true)));
    tracked.pause();
    let handle = tracked.submit("a", 1);
    sleep(secs(10)).await;
    assert!(tracked.is_paused());
    assert!(matches!(tracked.status("a"), Some(JobStatus::Submitted)));
    tracked.resume();
    assert!(!tracked.is_paused());
    assert_eq!(soon(handle).await.expect("it goes"), 1);
}
