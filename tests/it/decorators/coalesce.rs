use microbatch::{BatchProcessorExt, JobError};

use super::{Calls, batcher};

#[tokio::test(start_paused = true)]
async fn equal_jobs_are_processed_once_and_all_callers_get_the_result() {
    let calls = Calls::new();
    let load = {
        let calls = calls.clone();
        move |ids: Vec<&'static str>| {
            calls.note(&ids);
            async move { Ok::<_, String>(ids.iter().map(|id| format!("<{id}>")).collect()) }
        }
    };
    let batcher = batcher(6, load.coalesce());
    let results = batcher.submit_all(["b", "a", "b", "c", "a", "b"]).await;
    let results: Vec<_> = results
        .into_iter()
        .map(|result| result.expect("loaded"))
        .collect();
    assert_eq!(results, ["<b>", "<a>", "<b>", "<c>", "<a>", "<b>"]);
    assert_eq!(calls.all(), [["b", "a", "c"]]);
    assert_eq!(batcher.stats().completed, 6);
}

#[tokio::test(start_paused = true)]
async fn as_many_results_as_callers_but_not_as_jobs_are_not_misdelivered() {
    // Two distinct jobs of four callers, and four results.
    let wrong = |_: Vec<u8>| async move { Ok::<_, String>(vec![0_u8; 4]) };
    let batcher = batcher(4, wrong.coalesce());
    for result in batcher.submit_all([1, 2, 1, 2]).await {
        let error = result.expect_err("the count is wrong");
        assert!(
            matches!(
                error,
                JobError::ResultCount {
                    expected: 2,
                    actual: 4
                }
            ),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn errors_and_panics_reach_all_callers() {
    let failing = |jobs: Vec<u8>| async move {
        assert!(jobs != [0], "zero");
        Err::<Vec<u8>, _>("down")
    };
    let batcher = batcher(2, failing.coalesce());
    for result in batcher.submit_all([1, 1]).await {
        assert!(matches!(result, Err(JobError::Failed(cause)) if cause.to_string() == "down"));
    }
    for result in batcher.submit_all([0, 0]).await {
        assert!(matches!(result, Err(JobError::Panicked(message)) if &*message == "zero"));
    }
}
