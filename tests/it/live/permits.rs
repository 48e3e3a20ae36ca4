//! Batches that are cut once they hold a permit.

use std::sync::Arc;

use microbatch::{FlushReason, JobError, MicroBatch};
use tokio::sync::{AcquireError, Semaphore};
use tokio::time::sleep;

use crate::support::{Counted, Gate, Reports, millis, results, run, secs, settle, soon, submit};

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_batch_waits_for_its_permit_joins_it() {
    let (gate, permits) = (Gate::open(), Arc::new(Semaphore::new(0)));
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(10)
        .flush_when_idle(true)
        .permits(permits.clone()));
    let mut handles = submit(&batcher, [1]);
    sleep(secs(1)).await;
    handles.extend(submit(&batcher, 2..5));
    sleep(secs(1)).await;
    assert!(gate.batches().is_empty());
    permits.add_permits(1);
    soon(results(handles)).await;
    assert_eq!(gate.batches(), [[1, 2, 3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_waits_keeps_its_limits() {
    let (gate, permits) = (Gate::open(), Arc::new(Semaphore::new(0)));
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(4)
        .queue_capacity(4)
        .flush_when_idle(true)
        .permits(permits.clone()));
    let mut handles = submit(&batcher, [0]);
    settle().await;
    handles.extend(submit(&batcher, 1..10));
    settle().await;
    permits.add_permits(1);
    soon(results(handles)).await;
    assert_eq!(
        gate.batches(),
        [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]
    );
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_given_back_when_its_batch_ends() {
    let (gate, permits) = (Gate::closed(), Arc::new(Semaphore::new(2)));
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_in_flight(5)
        .permits(permits.clone()));
    let handles = submit(&batcher, 0..9);
    settle().await;
    assert_eq!((gate.batches().len(), permits.available_permits()), (2, 0));
    gate.pass(1);
    settle().await;
    assert_eq!(gate.batches().len(), 3);
    gate.pass(2);
    soon(results(handles)).await;
    settle().await;
    assert_eq!(permits.available_permits(), 2);
}

#[tokio::test(start_paused = true)]
async fn several_micro_batchers_share_a_limit_in_turn() {
    let (gate, permits) = (Gate::closed(), Arc::new(Semaphore::new(1)));
    let make = || {
        run(MicroBatch::builder(gate.clone())
            .flush_when_idle(true)
            .permits(permits.clone()))
    };
    let (one, two) = (make(), make());
    let mut handles = submit(&one, 0..9);
    settle().await;
    handles.extend(submit(&two, 10..19));
    settle().await;
    for _ in 0..6 {
        gate.pass(1);
        settle().await;
        assert!(gate.inside() <= 1);
    }
    soon(results(handles)).await;
    let firsts: Vec<_> = gate.batches().iter().map(|batch| batch[0]).collect();
    assert_eq!(firsts, [0, 10, 3, 13, 6, 16], "they take turns");
}

#[tokio::test(start_paused = true)]
async fn an_idle_micro_batcher_neither_holds_nor_waits() {
    let permits = Arc::new(Semaphore::new(1));
    let batcher = run(MicroBatch::builder(Gate::open())
        .interval(secs(1))
        .permits(permits.clone()));
    let handles = submit(&batcher, [1]);
    settle().await;
    assert_eq!(permits.available_permits(), 1, "nothing is due");
    soon(results(handles)).await;
    settle().await;
    assert_eq!(permits.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_no_longer_due_stops_waiting() {
    let (gate, permits) = (Gate::open(), Arc::new(Semaphore::new(0)));
    let batcher = run(MicroBatch::builder(gate.clone())
        .flush_when_idle(true)
        .cancel_on_drop(true)
        .permits(permits.clone()));
    let handles = submit(&batcher, [1]);
    settle().await;
    drop(handles);
    settle().await;
    permits.add_permits(1);
    settle().await;
    assert_eq!(permits.available_permits(), 1);
    assert!(gate.batches().is_empty());
    assert_eq!(batcher.stats().withdrawn, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_gives_permits_back() {
    let permits = Arc::new(Semaphore::new(0));
    let batcher = run(MicroBatch::builder(Gate::open())
        .flush_when_idle(true)
        .permits(permits.clone()));
    let handles = submit(&batcher, [1]);
    settle().await;
    batcher.pause();
    settle().await;
    permits.add_permits(1);
    settle().await;
    assert_eq!(permits.available_permits(), 1);
    batcher.resume();
    soon(results(handles)).await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_semaphore_fails_what_is_due_and_hangs_nothing() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let permits = Arc::new(Semaphore::new(0));
    let batcher = run(MicroBatch::builder(gate.clone())
        .permits(permits.clone())
        .on_batch(reports.hook()));
    let handles = submit(&batcher, 0..7);
    settle().await;
    permits.close();
    for handle in handles {
        let Err(JobError::Failed(cause)) = soon(handle).await else {
            panic!("it fails");
        };
        assert!(cause.is::<AcquireError>());
    }
    assert!(gate.batches().is_empty(), "the processor is not called");
    let sizes: Vec<_> = reports.all().iter().map(|report| report.size).collect();
    assert_eq!(sizes, [3, 3, 1]);
    assert_eq!(batcher.stats().failed, 7);
    soon(batcher.shutdown()).await.expect("nothing is left");
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_what_fails_for_want_of_permits_returns() {
    let permits = Arc::new(Semaphore::new(0));
    let batcher = run(MicroBatch::builder(Gate::open()).permits(permits.clone()));
    let handles = submit(&batcher, [1]);
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    permits.close();
    soon(flush).await.expect("it does not panic");
    assert!(handles.iter().all(|handle| handle.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_gets_no_permit_runs_out_of_time() {
    let permits = Arc::new(Semaphore::new(0));
    let batcher = run(MicroBatch::builder(Gate::open())
        .shutdown_timeout(secs(3))
        .permits(permits.clone()));
    let handles = submit(&batcher, 0..4);
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped.map_err(|timeout| timeout.abandoned), Err(4));
    for handle in handles {
        assert!(matches!(handle.await, Err(JobError::Abandoned)));
    }
    permits.add_permits(1);
    settle().await;
    assert_eq!(permits.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_aborted_batch_gives_its_permit_back() {
    let permits = Arc::new(Semaphore::new(1));
    let batcher = run(MicroBatch::builder(Gate::closed())
        .shutdown_timeout(secs(3))
        .permits(permits.clone()));
    let _handles = submit(&batcher, 0..3);
    settle().await;
    assert!(soon(batcher.shutdown()).await.is_err());
    settle().await;
    assert_eq!(permits.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_reason_is_that_of_the_moment_of_the_cut() {
    let (reports, permits) = (Reports::default(), Arc::new(Semaphore::new(0)));
    let batcher = run(MicroBatch::builder(Gate::open())
        .interval(millis(100))
        .permits(permits.clone())
        .on_batch(reports.hook()));
    let mut handles = submit(&batcher, [1]);
    sleep(secs(1)).await;
    handles.extend(submit(&batcher, [2, 3]));
    settle().await;
    permits.add_permits(1);
    soon(results(handles)).await;
    assert_eq!(reports.all()[0].reason, FlushReason::Size);
    assert!(reports.all()[0].waited >= secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_waits_for_a_permit_does_not_spin() {
    let permits = Arc::new(Semaphore::new(0));
    let batcher = MicroBatch::builder(Gate::open())
        .interval(millis(1))
        .permits(permits.clone())
        .build()
        .expect("valid");
    let handles = submit(&batcher, [1]);
    let (run, polls) = Counted::new(batcher.start(Default::default()));
    tokio::spawn(run);
    sleep(secs(100)).await;
    assert!(polls.get() < 20, "{}", polls.get());
    permits.add_permits(1);
    soon(results(handles)).await;
}
