//! The interval, its clock and its timer (promise 5).

use std::time::Duration;

use microbatch::{BatchProcessor, FlushReason, MicroBatch, MicroBatchBuilder};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::{
    AGES, Counted, Gate, Polls, Reports, idle, millis, results, run, secs, settle, submit,
};

fn large(gate: &Gate) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone()).max_batch_size(100)
}

#[tokio::test(start_paused = true)]
async fn a_lone_job_waits_the_whole_interval() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(large(&gate).interval(secs(7)).on_batch(reports.hook()));
    results(submit(&batcher, [1])).await;
    assert_eq!(gate.times(), [secs(7)]);
    assert_eq!(reports.reasons(), [FlushReason::Interval]);
}

#[tokio::test(start_paused = true)]
async fn the_clock_starts_with_the_first_pending_job() {
    let gate = Gate::open();
    let batcher = run(large(&gate));
    sleep(millis(2_700)).await;
    let mut handles = submit(&batcher, [1]);
    sleep(millis(600)).await;
    handles.extend(submit(&batcher, [2]));
    results(handles).await;
    assert_eq!(gate.batches(), [[1, 2]]);
    assert_eq!(gate.times(), [millis(3_700)]);
}

#[tokio::test(start_paused = true)]
async fn later_jobs_do_not_reset_the_clock() {
    let gate = Gate::open();
    let batcher = run(large(&gate));
    let mut handles = Vec::new();
    for job in 0..30 {
        handles.extend(submit(&batcher, [job]));
        sleep(millis(100)).await;
    }
    results(handles).await;
    // Job n came after n tenths of a second, and the first of a batch waits.
    let firsts = gate.batches().into_iter().map(|batch| batch[0]);
    let due: Vec<_> = firsts.map(|first| secs(1) + millis(100) * first).collect();
    assert_eq!(gate.times(), due);
}

#[tokio::test(start_paused = true)]
async fn the_next_batch_has_a_clock_of_its_own() {
    let gate = Gate::open();
    let batcher = run(large(&gate).max_batch_size(2));
    let mut handles = submit(&batcher, [0]);
    sleep(millis(900)).await;
    handles.extend(submit(&batcher, [1]));
    sleep(millis(50)).await;
    // A timer left over from the first batch would go off in 50 ms.
    handles.extend(submit(&batcher, [2]));
    results(handles).await;
    assert_eq!(gate.times(), [millis(900), millis(1_950)]);
}

#[tokio::test(start_paused = true)]
async fn jobs_left_over_by_size_keep_their_own_clock() {
    let gate = Gate::open();
    let batcher = run(large(&gate).max_batch_size(3));
    let mut handles = submit(&batcher, [0]);
    sleep(millis(500)).await;
    handles.extend(submit(&batcher, [1, 2, 3]));
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3]]);
    assert_eq!(gate.times(), [millis(500), millis(1_500)]);
}

#[tokio::test(start_paused = true)]
async fn jobs_left_over_by_weight_keep_their_own_clock() {
    let gate = Gate::open();
    let batcher = run(large(&gate).max_batch_weight(10, |job| *job as usize));
    let mut handles = submit(&batcher, [5]);
    sleep(millis(300)).await;
    handles.extend(submit(&batcher, [4, 6, 1]));
    sleep(millis(200)).await;
    handles.extend(submit(&batcher, [2]));
    results(handles).await;
    assert_eq!(gate.batches(), [vec![5, 4], vec![6, 1, 2]]);
    assert_eq!(gate.times(), [millis(300), millis(1_300)]);
}

#[tokio::test(start_paused = true)]
async fn the_clock_runs_while_the_processor_is_busy() {
    let gate = Gate::closed();
    let batcher = run(large(&gate));
    let mut handles = submit(&batcher, [0]);
    sleep(millis(1_200)).await;
    handles.extend(submit(&batcher, [1]));
    sleep(secs(5)).await;
    gate.pass(2);
    results(handles).await;
    assert_eq!(
        gate.times(),
        [secs(1), millis(6_200)],
        "overdue, so at once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_is_free_again_does_not_cut_the_interval_short() {
    let gate = Gate::closed();
    let batcher = run(large(&gate));
    let mut handles = submit(&batcher, [0]);
    sleep(millis(1_200)).await;
    handles.extend(submit(&batcher, [1]));
    sleep(millis(300)).await;
    gate.pass(2);
    results(handles).await;
    assert_eq!(gate.times(), [secs(1), millis(2_200)]);
}

#[tokio::test(start_paused = true)]
async fn an_endless_interval_leaves_flushing_to_size() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone())
        .interval(Duration::MAX)
        .on_batch(reports.hook()));
    let mut handles = submit(&batcher, 0..2);
    sleep(AGES).await;
    assert!(gate.batches().is_empty());
    handles.extend(submit(&batcher, [2]));
    results(handles).await;
    assert_eq!(reports.reasons(), [FlushReason::Size]);
    assert_eq!(reports.all()[0].waited, AGES);
}

/// A batcher whose loop's polls are counted.
fn counted(
    builder: MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32>>,
) -> (MicroBatch<u32, u32>, Polls) {
    let batcher = idle(builder);
    let (start, polls) = Counted::new(batcher.start(Default::default()));
    tokio::spawn(start);
    (batcher, polls)
}

/// How often the loop is polled until a timer far off. The runtime sleeps
/// straight through to it where nothing else has set one.
async fn polls_in_ages(polls: &Polls) -> usize {
    settle().await;
    let (before, far) = (polls.get(), Instant::now() + AGES);
    sleep_until(far).await;
    assert_eq!(Instant::now(), far);
    polls.get() - before
}

#[tokio::test(start_paused = true)]
async fn with_nothing_pending_there_is_no_wake_up() {
    let (batcher, polls) = counted(large(&Gate::open()));
    assert_eq!(polls_in_ages(&polls).await, 0, "nothing yet");
    results(submit(&batcher, 0..100)).await;
    assert_eq!(polls_in_ages(&polls).await, 0, "after a full batch");
    results(submit(&batcher, 0..10)).await;
    assert_eq!(polls_in_ages(&polls).await, 0, "after an interval");
    let handles = submit(&batcher, 0..10);
    batcher.flush().await;
    assert_eq!(polls_in_ages(&polls).await, 0, "after a flush");
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_can_only_wait_for_the_processor_is_not_woken() {
    let gate = Gate::closed();
    let (batcher, polls) = counted(large(&gate).max_batch_size(3));
    let _handles = submit(&batcher, 0..5);
    assert_eq!(polls_in_ages(&polls).await, 0);
    assert_eq!(gate.batches(), [[0, 1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn an_endless_interval_sets_no_timer() {
    let (batcher, polls) = counted(large(&Gate::open()).interval(Duration::MAX));
    let _handles = submit(&batcher, 0..5);
    assert_eq!(polls_in_ages(&polls).await, 0);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_interval_is_one_wake_up() {
    let (batcher, polls) = counted(large(&Gate::open()).interval(secs(1_000)));
    let handles = submit(&batcher, 0..5);
    settle().await;
    let before = polls.get();
    sleep(secs(999)).await;
    assert_eq!(polls.get(), before);
    results(handles).await;
}

/// The interval started when the loop took a job up: batches started at 0, 10 and
/// 11 s, and the last was told to have waited for 1 s.
#[tokio::test(start_paused = true)]
async fn the_interval_counts_from_acceptance_also_behind_a_busy_batch() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(MicroBatch::builder(gate.clone()).on_batch(reports.hook()));
    let handles = submit(&batcher, 0..7);
    sleep(secs(10)).await;
    gate.pass(3);
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    assert_eq!(gate.times(), [Duration::ZERO, secs(10), secs(10)]);
    assert_eq!(reports.waits(), [Duration::ZERO, secs(10), secs(10)]);
}

/// Each job that may become the first of its batch is timed by itself.
#[tokio::test(start_paused = true)]
async fn jobs_queued_up_one_by_one_wait_for_their_own_interval() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = MicroBatch::builder(gate.clone()).interval(secs(8));
    let batcher = run(batcher.on_batch(reports.hook()));
    let mut handles = submit(&batcher, 0..6);
    for job in 6..10 {
        sleep(secs(1)).await;
        handles.extend(submit(&batcher, [job]));
    }
    // The batch in hand ends at 5 s, the next one too; then three make a batch,
    // and the last, of the fourth second, waits to the twelfth.
    sleep(secs(1)).await;
    gate.pass(9);
    results(handles).await;
    let times = [0, 5, 5, 12].map(secs);
    assert_eq!(gate.times(), times);
    assert_eq!(reports.waits(), [0, 5, 4, 8].map(secs));
}
