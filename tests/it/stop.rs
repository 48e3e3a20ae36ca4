//! Stopping (promise 8).

mod deadline;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use microbatch::{
    CancellationToken, FlushReason, JobError, MicroBatch, ShutdownTimeout, StartError,
    TrySubmitError,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::support::{
    Gate, Reports, answers, assert_balanced, idle, poll_once, results, run, secs, settle, soon,
    submit,
};

/// The three ways to stop a running batcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Shutdown,
    Cancel,
    DropLast,
}

const WAYS: [Way; 3] = [Way::Shutdown, Way::Cancel, Way::DropLast];

/// A batcher under way, and all that a test needs to see of its end.
struct Running {
    batcher: Option<MicroBatch<u32, u32>>,
    cancel: CancellationToken,
    end: tokio::task::JoinHandle<Result<(), StartError>>,
}

impl Running {
    fn new(batcher: MicroBatch<u32, u32>) -> Self {
        let cancel = CancellationToken::new();
        let end = tokio::spawn(batcher.start(cancel.clone()));
        Self {
            batcher: Some(batcher),
            cancel,
            end,
        }
    }

    fn batcher(&self) -> &MicroBatch<u32, u32> {
        self.batcher.as_ref().expect("not yet dropped")
    }

    fn stop(&mut self, way: Way) {
        match way {
            Way::Shutdown => {
                let stopping = self.batcher().shutdown();
                tokio::spawn(stopping);
            }
            Way::Cancel => self.cancel.cancel(),
            Way::DropLast => self.batcher = None,
        }
    }

    /// How the loop ended.
    async fn end(self) -> Result<(), StartError> {
        soon(self.end).await.expect("no panic")
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_flushes_what_is_pending_at_once() {
    for way in WAYS {
        let (gate, reports) = (Gate::open(), Reports::default());
        let mut running = Running::new(idle(
            MicroBatch::builder(gate.clone())
                .interval(Duration::MAX)
                .on_batch(reports.hook()),
        ));
        let handles = submit(running.batcher(), 0..2);
        settle().await;
        let began = Instant::now();
        running.stop(way);
        assert_eq!(results(handles).await, [0, 1]);
        assert_eq!(running.end().await, Ok(()));
        assert_eq!(began.elapsed(), Duration::ZERO, "{way:?}");
        assert_eq!(reports.reasons(), [FlushReason::Shutdown]);
    }
}

/// A request to flush that had to wait for another was received when the stop had
/// begun. It once kept the jobs behind it in the queue, so that a batch with room
/// for them went without.
#[tokio::test(start_paused = true)]
async fn a_stop_fills_its_batches_whatever_flushes_go_on() {
    for early in [false, true] {
        a_stop_fills_its_batches(early).await;
    }
}

/// With the stop, the worker receives that a batch has ended, or does not.
async fn a_stop_fills_its_batches(early: bool) {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(10));
    let mut handles = submit(&batcher, [0]);
    let mut flushes = vec![tokio::spawn(batcher.flush())];
    settle().await;
    handles.extend(submit(&batcher, [1]));
    for _ in 0..2 {
        flushes.push(tokio::spawn(batcher.flush()));
        settle().await;
    }
    handles.extend(submit(&batcher, 2..4));
    if early {
        gate.pass(9);
    }
    let stop = tokio::spawn(batcher.shutdown());
    settle().await;
    gate.pass(9);
    soon(stop).await.expect("no panic").expect("drains");
    assert_eq!(gate.batches(), [vec![0], vec![1, 2, 3]]);
    for flush in flushes {
        soon(flush).await.expect("no panic");
    }
    assert!(results(handles).await.into_iter().eq(0..4));
}

#[tokio::test(start_paused = true)]
async fn a_stop_processes_everything_accepted_in_order() {
    for way in WAYS {
        let (gate, reports) = (Gate::closed(), Reports::default());
        let mut running = Running::new(idle(
            MicroBatch::builder(gate.clone()).on_batch(reports.hook()),
        ));
        let handles = submit(running.batcher(), 0..11);
        settle().await;
        running.stop(way);
        gate.pass(9);
        results(handles).await;
        assert_eq!(running.end().await, Ok(()));
        assert!(gate.batches().concat().into_iter().eq(0..11), "{way:?}");
        use FlushReason::{Shutdown, Size};
        assert_eq!(reports.reasons(), [Size, Size, Size, Shutdown]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_a_running_batch_closes_the_queue_and_lets_it_finish() {
    for way in [Way::Shutdown, Way::Cancel] {
        let gate = Gate::closed();
        let mut running = Running::new(idle(MicroBatch::builder(gate.clone())));
        let handles = submit(running.batcher(), 0..3);
        settle().await;
        running.stop(way);
        settle().await;
        let batcher = running.batcher().clone();
        assert!(batcher.is_closed(), "{way:?}: the batch delays the stop");
        assert!(batcher.is_running());
        assert_eq!(gate.inside(), 1);
        gate.pass(1);
        assert_eq!(results(handles).await, [0, 1, 2]);
        assert_eq!(running.end().await, Ok(()));
        assert!(!batcher.is_running());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_with_nothing_to_do_ends_at_once() {
    for way in WAYS {
        let mut running = Running::new(idle(MicroBatch::builder(Gate::open())));
        settle().await;
        let began = Instant::now();
        running.stop(way);
        assert_eq!(running.end().await, Ok(()));
        assert_eq!(began.elapsed(), Duration::ZERO, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_accepted_after_a_stop() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..3);
    settle().await;
    let mut stop = Box::pin(batcher.shutdown());
    assert!(poll_once(&mut stop).is_pending());
    for _ in 0..2 {
        // Closed at once, and still closed when all is over.
        assert!(batcher.is_closed());
        assert!(matches!(
            soon(batcher.submit(7)).await,
            Err(JobError::Closed)
        ));
        assert_eq!(
            batcher.try_submit(7).expect_err("closed"),
            TrySubmitError::Closed(7)
        );
        assert!(soon(batcher.reserve()).await.is_err());
        let all = soon(batcher.submit_all(0..3)).await;
        assert!(
            all.iter()
                .all(|answer| matches!(answer, Err(JobError::Closed)))
        );
        gate.pass(1);
        settle().await;
    }
    assert_eq!(soon(stop).await, Ok(()));
    assert_eq!(results(handles).await, [0, 1, 2]);
    assert_eq!(batcher.stats().accepted, 3);
    assert_eq!(gate.batches(), [[0, 1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_may_be_called_any_number_of_times() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone()));
    let handles = submit(&batcher, 0..5);
    let stops: Vec<_> = (0..50).map(|_| tokio::spawn(batcher.shutdown())).collect();
    settle().await;
    assert!(stops.iter().all(|stop| !stop.is_finished()));
    gate.pass(2);
    for stop in stops {
        assert_eq!(soon(stop).await.expect("no panic"), Ok(()));
    }
    assert_eq!(soon(batcher.shutdown()).await, Ok(()));
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_goes_on_when_its_future_is_dropped() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone()).interval(Duration::MAX));
    let handles = submit(&batcher, 0..2);
    drop(batcher.shutdown());
    settle().await;
    assert!(!batcher.is_closed(), "not even asked for");
    let mut stop = Box::pin(batcher.shutdown());
    assert!(poll_once(&mut stop).is_pending());
    drop(stop);
    assert_eq!(results(handles).await, [0, 1]);
    settle().await;
    assert!(!batcher.is_running());
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_the_callers_token_alone() {
    let cancel = CancellationToken::new();
    let batcher = MicroBatch::new_running(cancel.clone(), Gate::open());
    soon(batcher.shutdown()).await.expect("drains");
    assert!(!cancel.is_cancelled());
    cancel.cancel();
    assert_eq!(soon(batcher.shutdown()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_no_task_behind() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let batcher = run(MicroBatch::builder(Gate::open()).max_in_flight(3));
    let handles = submit(&batcher, 0..10);
    soon(batcher.shutdown()).await.expect("drains");
    assert_eq!(tasks(), before);
    results(handles).await;
}

/// A processor may own a connection that must be closed, or a sender whose
/// receiver waits for its end.
#[tokio::test(start_paused = true)]
async fn the_processor_is_dropped_when_the_stop_is_done() {
    let owned = Arc::new(());
    let used = Arc::clone(&owned);
    let batcher = run(MicroBatch::builder(move |jobs: Vec<u32>| {
        let used = Arc::clone(&used);
        async move {
            let _used = used;
            Ok::<_, String>(jobs)
        }
    }));
    let handles = submit(&batcher, 0..5);
    soon(batcher.shutdown()).await.expect("drains");
    assert_eq!(Arc::strong_count(&owned), 1);
    results(handles).await;
}

#[tokio::test(start_paused = true)]
async fn only_the_last_batcher_stops_the_loop() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let clones: Vec<_> = (0..5).map(|_| batcher.clone()).collect();
    drop(batcher);
    for clone in clones {
        settle().await;
        assert!(clone.is_running());
        assert_eq!(soon(clone.submit(1)).await.expect("succeeds"), 1);
    }
}

/// A batcher whose batches each do something to it before they end.
fn acting_on_itself<Fut>(
    act: impl Fn(MicroBatch<u32, u32>) -> Fut + Send + Sync + 'static,
) -> MicroBatch<u32, u32>
where
    Fut: Future<Output = ()> + Send + 'static,
{
    let slot = Arc::new(OnceLock::<MicroBatch<u32, u32>>::new());
    let own = Arc::clone(&slot);
    let batcher = run(MicroBatch::builder(move |jobs: Vec<u32>| {
        let acted = act(own.get().expect("set before the first job").clone());
        async move {
            acted.await;
            Ok::<_, String>(jobs)
        }
    }));
    assert!(slot.set(batcher.clone()).is_ok());
    batcher
}

#[tokio::test(start_paused = true)]
async fn a_stop_may_be_asked_for_from_inside_a_batch() {
    let batcher = acting_on_itself(|own| async move {
        tokio::spawn(own.shutdown());
    });
    let handles = submit(&batcher, 0..7);
    assert!(results(handles).await.into_iter().eq(0..7));
    soon(batcher.shutdown()).await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_awaits_its_own_stop_waits_until_the_deadline() {
    let batcher = acting_on_itself(|own| async move {
        let _ = own.shutdown().await;
    });
    let began = Instant::now();
    let answers = answers(submit(&batcher, 0..3)).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    assert_eq!(began.elapsed(), secs(5));
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 3 }));
}

#[tokio::test(start_paused = true)]
async fn shutting_down_unstarted_answers_every_job() {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).queue_capacity(3));
    let queued = submit(&batcher, 0..3);
    let mut waiting = batcher.submit(3);
    assert!(poll_once(&mut waiting).is_pending());
    assert_eq!(soon(batcher.shutdown()).await, Ok(()));
    let answers = answers(queued).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    assert!(matches!(soon(waiting).await, Err(JobError::Closed)));
    assert!(batcher.is_closed() && !batcher.is_running());
    let stats = batcher.stats();
    assert_eq!((stats.accepted, stats.abandoned), (3, 3));
    assert_balanced(stats);
    assert_eq!(soon(batcher.shutdown()).await, Ok(()));
    assert!(gate.batches().is_empty());
}

#[tokio::test(start_paused = true)]
async fn dropping_an_unstarted_batcher_answers_every_job() {
    let batcher = idle(MicroBatch::builder(Gate::open()).queue_capacity(2));
    let queued = submit(&batcher, 0..2);
    let mut waiting = batcher.submit(2);
    assert!(poll_once(&mut waiting).is_pending());
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    drop(batcher);
    let answers = answers(queued).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(JobError::Abandoned)))
    );
    assert!(matches!(soon(waiting).await, Err(JobError::Closed)));
    soon(flush).await.expect("no panic");
}

/// The worker receives the flush, the job and the stop in its first turn, and the
/// flush covers nothing that came after it.
#[tokio::test(start_paused = true)]
async fn a_stop_processes_what_came_after_a_flush() {
    let batcher = idle(MicroBatch::builder(Gate::open()));
    let mut flush = Box::pin(batcher.flush());
    assert!(poll_once(&mut flush).is_pending());
    let handles = submit(&batcher, 0..2);
    let start = batcher.start(CancellationToken::new());
    let mut stop = Box::pin(batcher.shutdown());
    assert!(poll_once(&mut stop).is_pending());
    assert_eq!(soon(start).await, Ok(()));
    assert_eq!(results(handles).await, [0, 1]);
    soon(flush).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_received_while_batches_follow_one_another() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    let endless = tokio::spawn({
        let batcher = batcher.clone();
        async move { while batcher.submit(0).accepted().await.is_ok() {} }
    });
    soon(batcher.shutdown()).await.expect("drains");
    soon(endless).await.expect("no panic");
    sleep(secs(1)).await;
    assert_balanced(batcher.stats());
}
