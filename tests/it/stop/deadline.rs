//! A stop that runs out of time.

use microbatch::{
    BatchProcessor, CancellationToken, JobError, MicroBatch, MicroBatchBuilder, ShutdownTimeout,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::{Running, WAYS, Way};
use crate::support::{
    AGES, Fate, Gate, answers, assert_balanced, decide, idle, millis, poll_once, results, run,
    secs, settle, soon, submit,
};

fn brief(gate: &Gate) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone()).shutdown_timeout(secs(2))
}

#[tokio::test(start_paused = true)]
async fn a_stop_out_of_time_abandons_what_is_left() {
    for way in WAYS {
        let gate = Gate::closed();
        let mut running = Running::new(idle(brief(&gate)));
        // Three run, three are pending, four are queued.
        let handles = submit(running.batcher(), 0..10);
        settle().await;
        assert_eq!(gate.inside(), 1);
        let began = Instant::now();
        running.stop(way);
        let ended = running.end().await;
        assert_eq!(
            ended,
            Err(ShutdownTimeout { abandoned: 10 }.into()),
            "{way:?}"
        );
        assert_eq!(began.elapsed(), secs(2));
        assert_eq!(gate.inside(), 0, "the future is gone");
        let answers = answers(handles).await;
        assert!(
            answers
                .iter()
                .all(|answer| matches!(answer, Err(JobError::Abandoned)))
        );
        assert_eq!(gate.batches(), [[0, 1, 2]], "nothing more was begun");
    }
}

#[tokio::test(start_paused = true)]
async fn every_caller_of_shutdown_is_told_how_many_were_abandoned() {
    let gate = Gate::closed();
    let batcher = run(brief(&gate));
    let _handles = submit(&batcher, 0..10);
    let stops: Vec<_> = (0..9).map(|_| tokio::spawn(batcher.shutdown())).collect();
    for stop in stops {
        let stopped = soon(stop).await.expect("no panic");
        assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 10 }));
    }
    let late = soon(batcher.shutdown()).await;
    assert_eq!(late, Err(ShutdownTimeout { abandoned: 10 }));
    let stats = batcher.stats();
    assert_eq!((stats.abandoned, stats.in_flight), (10, 0));
    assert_balanced(stats);
}

#[tokio::test(start_paused = true)]
async fn what_was_done_in_time_is_not_abandoned() {
    let gate = Gate::closed();
    let batcher = run(brief(&gate));
    let mut handles = submit(&batcher, 0..8);
    let stop = tokio::spawn(batcher.shutdown());
    sleep(secs(1)).await;
    gate.pass(2);
    let stopped = soon(stop).await.expect("no panic");
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 2 }));
    let late = handles.split_off(6);
    assert!(results(handles).await.into_iter().eq(0..6));
    let late = answers(late).await;
    assert!(
        late.iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
}

#[tokio::test(start_paused = true)]
async fn several_batches_in_flight_are_all_abandoned() {
    let gate = Gate::closed();
    let batcher = run(brief(&gate).max_in_flight(3));
    let handles = submit(&batcher, 0..9);
    settle().await;
    assert_eq!(gate.inside(), 3);
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 9 }));
    assert_eq!(gate.inside(), 0);
    answers(handles).await;
}

#[tokio::test(start_paused = true)]
async fn only_what_hangs_is_abandoned() {
    let batcher = run(MicroBatch::builder(decide)
        .max_batch_size(1)
        .max_in_flight(2));
    let mut handles = submit(&batcher, [Fate::Hang]);
    handles.extend(submit(&batcher, (1..50).map(Fate::Answer)));
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 1 }));
    let hung = soon(handles.remove(0)).await;
    assert!(matches!(hung, Err(JobError::Abandoned)));
    assert!(results(handles).await.into_iter().eq(1..50));
}

#[tokio::test(start_paused = true)]
async fn waiters_are_not_among_the_abandoned() {
    let gate = Gate::closed();
    let batcher = run(brief(&gate).queue_capacity(1).max_batch_size(1));
    let mut stuck = Vec::new();
    for job in 0..3 {
        stuck.extend(submit(&batcher, [job]));
        settle().await;
    }
    let mut waiting = batcher.submit(9);
    assert!(poll_once(&mut waiting).is_pending());
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 3 }));
    assert!(matches!(soon(waiting).await, Err(JobError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_ends_in_time_is_none_out_of_time() {
    let gate = Gate::closed();
    let batcher = run(brief(&gate));
    let handles = submit(&batcher, 0..5);
    let stop = tokio::spawn(batcher.shutdown());
    sleep(millis(1_999)).await;
    gate.pass(2);
    assert_eq!(soon(stop).await.expect("no panic"), Ok(()));
    results(handles).await;
    sleep(AGES).await;
    assert_eq!(soon(batcher.shutdown()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_the_first_stop() {
    let gate = Gate::closed();
    let mut running = Running::new(idle(brief(&gate)));
    let _handles = submit(running.batcher(), 0..3);
    settle().await;
    let began = Instant::now();
    running.stop(Way::Cancel);
    sleep(secs(1)).await;
    running.stop(Way::Shutdown);
    running.end().await.expect_err("the gate is closed");
    assert_eq!(began.elapsed(), secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_stop_out_of_time_leaves_no_task_behind() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let batcher = run(brief(&Gate::closed()).max_in_flight(3));
    let _handles = submit(&batcher, 0..20);
    soon(batcher.shutdown())
        .await
        .expect_err("the gate is closed");
    assert_eq!(tasks(), before);
}

/// Nothing runs between the end of the loop and the assertion, so what the loop
/// has not waited for is still there.
#[tokio::test(start_paused = true)]
async fn a_start_that_returns_out_of_time_has_waited_for_its_batches_to_be_gone() {
    let gate = Gate::closed();
    let batcher = idle(brief(&gate).max_in_flight(2));
    let _handles = submit(&batcher, 0..9);
    let cancel = CancellationToken::new();
    let later = async {
        settle().await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(batcher.start(cancel.clone()), later);
    assert_eq!(gate.inside(), 0);
    assert_eq!(ended, Err(ShutdownTimeout { abandoned: 9 }.into()));
}
