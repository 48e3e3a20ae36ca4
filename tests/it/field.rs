//! The failures of the field: what other libraries of this kind get wrong or
//! leave out, what their users ask for, and the traps that everyone who writes
//! such a loop by hand falls into. One test each.

use std::error::Error;
use std::time::Duration;

use microbatch::{
    BatchProcessor, CancellationToken, FlushReason, JobError, MicroBatch, MicroBatchBuilder,
    ShutdownTimeout, TrySubmitError,
};
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, sleep};

use crate::support::{
    AGES, Cause, Counted, Fate, Gate, Reports, answers, decide, idle, millis, poll_once, results,
    run, secs, settle, soon, submit,
};

fn through(gate: &Gate) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone())
}

fn fated() -> MicroBatchBuilder<Fate, u32, impl BatchProcessor<Fate, u32>> {
    MicroBatch::builder(decide)
}

/// ultra-batch hands out results by position without counting them: a query
/// that finds no row for one key gives every caller behind it another's row.
#[tokio::test(start_paused = true)]
async fn no_caller_gets_the_row_of_another() {
    let batcher = run(MicroBatch::builder(|keys: Vec<u32>| async move {
        let rows = keys.into_iter().filter(|key| *key != 2);
        Ok::<Vec<u32>, String>(rows.collect())
    }));
    for answer in answers(submit(&batcher, [1, 2, 3])).await {
        assert!(matches!(
            answer,
            Err(JobError::ResultCount {
                expected: 3,
                actual: 2
            })
        ));
    }
}

/// In batchy a caller whose result is missing panics in the library's own code,
/// on a channel that it takes for open.
#[tokio::test(start_paused = true)]
async fn a_caller_without_a_result_does_not_panic() {
    let batcher = run(fated());
    let callers = submit(&batcher, [Fate::Answer(1), Fate::Short, Fate::Answer(2)]);
    for caller in callers.into_iter().map(tokio::spawn) {
        assert!(soon(caller).await.expect("no panic").is_err());
    }
}

/// ultra-batch checks the size after a bulk was added, so `execute_many` makes
/// batches of any size.
#[tokio::test(start_paused = true)]
async fn a_bulk_does_not_exceed_the_size_limit() {
    let gate = Gate::open();
    let batcher = run(through(&gate));
    soon(batcher.submit_all(0..10)).await;
    assert!(gate.batches().iter().all(|batch| batch.len() <= 3));
}

/// tower-batch-control adds a job's weight first and compares then, so a batch
/// overshoots its limit by nearly one job.
#[tokio::test(start_paused = true)]
async fn the_job_that_would_overshoot_the_weight_opens_the_next_batch() {
    let gate = Gate::open();
    let batcher = run(through(&gate).max_batch_weight(10, |job| *job as usize));
    results(submit(&batcher, [9, 9])).await;
    assert_eq!(gate.batches(), [[9], [9]]);
}

/// ultra-batch, batchy and scuffle-batching make a lone caller wait for the
/// timer, and Tokio's timer makes a wait of 1 ms one of 2.1 ms.
#[tokio::test(start_paused = true)]
async fn a_lone_caller_need_not_pay_the_interval() {
    let batcher = run(through(&Gate::open())
        .interval(millis(1))
        .flush_when_idle(true));
    let began = Instant::now();
    for job in 0..100 {
        batcher.submit(job).await.expect("succeeds");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// batch-aint-one rejects what does not fit, and every caller has to write its
/// own waiting.
#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_callers_wait_and_refuses_none() {
    let batcher = run(through(&Gate::open()).queue_capacity(2));
    let answers = answers(submit(&batcher, 0..100)).await;
    assert!(answers.iter().all(Result::is_ok));
}

/// scuffle-batching and dataloader take in without bound: where the processor
/// is slow the memory is what gives way.
#[tokio::test(start_paused = true)]
async fn a_slow_processor_does_not_fill_the_memory() {
    let batcher = run(through(&Gate::closed()).queue_capacity(10));
    for caller in submit(&batcher, 0..1_000) {
        tokio::spawn(caller);
        settle().await;
    }
    let stats = batcher.stats();
    assert_eq!(stats.accepted, 3 + 3 + 10);
    assert_eq!(stats.waiting, 1_000 - 16);
}

/// No peer gives a refused job back, so who may be refused has to clone each.
#[tokio::test(start_paused = true)]
async fn a_refused_job_comes_back() {
    let batcher = idle(
        MicroBatch::builder(|jobs: Vec<Box<u32>>| async move { Ok::<_, String>(jobs) })
            .queue_capacity(1)
            .max_batch_weight(10, |job| **job as usize),
    );
    let refused = batcher.try_submit(Box::new(11)).expect_err("too heavy");
    assert_eq!(*refused.into_job(), 11);
    let _queued = batcher.submit(Box::new(1));
    let refused = batcher.try_submit(Box::new(2)).expect_err("full");
    assert_eq!(*refused.into_job(), 2);
    soon(batcher.shutdown()).await.expect("nothing runs");
    let refused = batcher.try_submit(Box::new(3)).expect_err("closed");
    assert_eq!(*refused.into_job(), 3);
}

/// batch-aint-one allows ten batches per key and has no limit over all, and
/// most others allow exactly one.
#[tokio::test(start_paused = true)]
async fn the_number_of_batches_in_flight_is_the_users_choice() {
    for limit in [1, 2, 7] {
        let gate = Gate::closed();
        let batcher = run(through(&gate).max_batch_size(1).max_in_flight(limit));
        let _handles = submit(&batcher, 0..50);
        settle().await;
        assert_eq!(gate.inside(), limit);
    }
}

/// ultra-batch makes a string of the error, and with its type goes all that a
/// caller could decide by.
#[tokio::test(start_paused = true)]
async fn the_type_of_the_processors_error_survives() {
    let batcher = run(fated().max_batch_size(1));
    let error = soon(batcher.submit(Fate::Fail(7)))
        .await
        .expect_err("fails");
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<Cause>());
    assert_eq!(cause, Some(&Cause(7)));
}

/// In tower-batch one failed batch fails the service: every later call gets the
/// error of the first.
#[tokio::test(start_paused = true)]
async fn one_failed_batch_does_not_end_the_worker() {
    let batcher = run(fated().max_batch_size(1));
    assert!(soon(batcher.submit(Fate::Fail(7))).await.is_err());
    assert_eq!(
        soon(batcher.submit(Fate::Answer(1)))
            .await
            .expect("succeeds"),
        1
    );
}

/// A panic ends the worker of ultra-batch and of batchy, and every later caller
/// panics on the closed channel that it left.
#[tokio::test(start_paused = true)]
async fn a_panic_neither_ends_the_worker_nor_spreads_to_callers() {
    let batcher = run(fated().max_batch_size(1));
    for fate in [Fate::Panic, Fate::PanicEarly] {
        let caller = tokio::spawn(batcher.submit(fate));
        assert!(soon(caller).await.expect("no panic").is_err());
        let later = tokio::spawn(batcher.submit(Fate::Answer(1)));
        assert_eq!(soon(later).await.expect("no panic").expect("succeeds"), 1);
    }
}

/// batch-aint-one isolates a panic and loses its message.
#[tokio::test(start_paused = true)]
async fn the_message_of_a_panic_reaches_the_callers() {
    let batcher = run(fated().max_batch_size(1));
    let error = soon(batcher.submit(Fate::Panic)).await.expect_err("panics");
    assert!(error.to_string().contains("panicked on 1 jobs"), "{error}");
}

/// In dataloader a caller that goes away takes the batch with it that it was to
/// run, and its neighbours wait for ever.
#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_does_not_break_its_neighbours() {
    for cancel in [false, true] {
        for gone in 0..3 {
            let batcher = run(through(&Gate::open()).cancel_on_drop(cancel));
            let mut handles = submit(&batcher, 0..3);
            assert!(poll_once(&mut handles[gone]).is_pending());
            drop(handles.remove(gone));
            assert_eq!(results(handles).await.len(), 2);
        }
    }
}

/// In ultra-batch, batchy and scuffle-batching a job runs though no caller
/// waits for it any more, and there is no way to have it otherwise.
#[tokio::test(start_paused = true)]
async fn a_job_whose_handle_is_dropped_need_not_run() {
    let gate = Gate::open();
    let batcher = run(through(&gate).cancel_on_drop(true));
    drop(batcher.submit(0));
    results(submit(&batcher, 1..3)).await;
    assert_eq!(gate.batches(), [[1, 2]]);
}

/// The shutdown of batch-aint-one waits while its queue stays open, so under
/// load it waits for ever.
#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_keep_accepting() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        sleep(secs(1)).await;
        Ok::<_, String>(jobs)
    }));
    let callers: Vec<_> = (0..10)
        .map(|caller| {
            let batcher = batcher.clone();
            tokio::spawn(async move { while batcher.submit(caller).await.is_ok() {} })
        })
        .collect();
    sleep(secs(10)).await;
    assert_eq!(soon(batcher.shutdown()).await, Ok(()));
    for caller in callers {
        soon(caller).await.expect("no panic");
    }
}

/// ultra-batch has no shutdown; when its process ends, so do the jobs.
/// batchy drains, and no caller can wait for it.
#[tokio::test(start_paused = true)]
async fn when_a_shutdown_returns_everything_is_processed() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        sleep(secs(1)).await;
        Ok::<_, String>(jobs)
    }));
    let handles = submit(&batcher, 0..8);
    soon(batcher.shutdown()).await.expect("drains");
    assert!(handles.iter().all(|handle| handle.is_finished()));
    assert_eq!(batcher.stats().completed, 8);
}

/// scuffle-batching leaves its task behind when it is dropped.
#[tokio::test(start_paused = true)]
async fn nothing_is_left_behind_by_a_batcher_that_is_dropped() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..10 {
        let batcher = run(through(&Gate::open()));
        results(submit(&batcher, 0..3)).await;
    }
    settle().await;
    assert_eq!(tasks(), before);
}

/// tower-batch drops the batch in flight when its last handle goes.
#[tokio::test(start_paused = true)]
async fn a_batch_in_flight_outlives_the_last_batcher() {
    let gate = Gate::closed();
    let batcher = run(through(&gate));
    let handles = submit(&batcher, 0..3);
    settle().await;
    drop(batcher);
    settle().await;
    gate.pass(1);
    assert_eq!(results(handles).await, [0, 1, 2]);
}

/// With its runtime gone scuffle-batching leaves callers hanging, and others
/// make them panic.
#[test]
fn a_dropped_runtime_is_an_answer() {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let batcher = runtime.block_on(async { run(through(&Gate::open())) });
    let handle = batcher.submit(1);
    drop(runtime);
    assert!(matches!(handle.blocking_wait(), Err(JobError::Abandoned)));
    assert!(matches!(
        batcher.submit(2).blocking_wait(),
        Err(JobError::Closed)
    ));
}

/// "Why did it flush?" No other batcher's metrics tell, and most have none.
#[tokio::test(start_paused = true)]
async fn a_user_can_see_why_it_flushed() {
    let reports = Reports::default();
    let batcher = run(through(&Gate::open()).on_batch(reports.hook()));
    results(submit(&batcher, 0..4)).await;
    assert_eq!(
        reports.reasons(),
        [FlushReason::Size, FlushReason::Interval]
    );
    let stats = batcher.stats();
    assert_eq!((stats.accepted, stats.completed, stats.batches), (4, 4, 2));
}

/// A naive waiting path wakes each caller for its room and again for its
/// result, which doubles the cost where ten thousand callers share a queue of
/// a thousand.
#[tokio::test(start_paused = true)]
async fn callers_that_outnumber_the_queue_are_woken_once() {
    let batcher = run(through(&Gate::open())
        .max_batch_size(100)
        .queue_capacity(1_024)
        .interval(Duration::MAX));
    let callers = submit(&batcher, 0..10_000).into_iter().map(|handle| {
        let (handle, polls) = Counted::new(handle);
        (tokio::spawn(handle), polls)
    });
    for (job, (caller, polls)) in (0..).zip(callers.collect::<Vec<_>>()) {
        assert_eq!(
            soon(caller).await.expect("no panic").expect("succeeds"),
            job
        );
        assert!(polls.get() <= 2);
    }
}

/// A fixed wait is a tax on callers who await: 64 of them, a service of 1 s and
/// 10 ms a job, and a wait of 5 s leave a quarter of what is possible.
#[tokio::test(start_paused = true)]
async fn flushing_when_idle_beats_a_fixed_wait_fourfold() {
    let mut took = Vec::new();
    for idle in [false, true] {
        let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
            sleep(secs(1) + millis(10) * u32::try_from(jobs.len()).expect("few")).await;
            Ok::<_, String>(jobs)
        })
        .max_batch_size(1_000)
        .interval(secs(5))
        .flush_when_idle(idle));
        let began = Instant::now();
        let callers: Vec<_> = (0..64)
            .map(|caller| {
                let batcher = batcher.clone();
                tokio::spawn(async move {
                    for _ in 0..20 {
                        batcher.submit(caller).await.expect("succeeds");
                    }
                })
            })
            .collect();
        for caller in callers {
            soon(caller).await.expect("no panic");
        }
        took.push(began.elapsed());
    }
    assert!(took[0] > took[1] * 39 / 10, "{took:?}");
}

/// A loop that ends when its channel closes loses the batch it was filling.
#[tokio::test(start_paused = true)]
async fn a_partial_batch_is_not_lost_on_close() {
    let gate = Gate::open();
    let batcher = run(through(&gate).max_batch_size(100));
    let handles = submit(&batcher, 0..2);
    settle().await;
    drop(batcher);
    assert_eq!(results(handles).await, [0, 1]);
}

/// `sleep(interval)` inside the `select!` begins anew with every job, so a
/// steady trickle is never flushed.
#[tokio::test(start_paused = true)]
async fn a_steady_trickle_does_not_put_the_flush_off() {
    let gate = Gate::open();
    let batcher = run(through(&gate).max_batch_size(1_000));
    let mut handles = Vec::new();
    for job in 0..10 {
        handles.extend(submit(&batcher, [job]));
        sleep(millis(900)).await;
    }
    assert_eq!(gate.times()[0], secs(1));
    results(handles).await;
}

/// A bare `tokio::time::interval` ticks at once, and after a long batch makes
/// up for every tick it has missed.
#[tokio::test(start_paused = true)]
async fn no_tick_comes_at_once_or_in_a_burst() {
    let gate = Gate::closed();
    let batcher = run(through(&gate).max_batch_size(100));
    let mut handles = submit(&batcher, [0]);
    sleep(secs(60)).await;
    assert_eq!(gate.times(), [secs(1)]);
    gate.pass(9);
    settle().await;
    for job in 1..4 {
        handles.extend(submit(&batcher, [job]));
        sleep(millis(300)).await;
    }
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0], vec![1, 2, 3]]);
}

/// A loop that awaits its processor inside a `select!` arm sees a
/// cancellation when the batch is done, if ever.
#[tokio::test(start_paused = true)]
async fn a_cancellation_does_not_wait_for_the_batch() {
    let cancel = CancellationToken::new();
    let batcher = fated().build_running(cancel.clone()).expect("valid");
    let _hung = submit(&batcher, [Fate::Hang; 3]);
    settle().await;
    cancel.cancel();
    settle().await;
    assert!(batcher.is_closed());
    assert!(matches!(
        soon(batcher.submit(Fate::Answer(1))).await,
        Err(JobError::Closed)
    ));
}

/// `Instant::now() + Duration::MAX` panics.
#[tokio::test(start_paused = true)]
async fn never_is_an_interval() {
    let batcher = run(through(&Gate::open())
        .interval(Duration::MAX)
        .shutdown_timeout(Duration::MAX));
    let handles = submit(&batcher, 0..2);
    sleep(AGES).await;
    soon(batcher.shutdown()).await.expect("drains");
    results(handles).await;
}

/// `Vec::with_capacity(usize::MAX)` aborts.
#[tokio::test(start_paused = true)]
async fn no_limit_is_allocated_in_advance() {
    let batcher = run(through(&Gate::open())
        .max_batch_size(usize::MAX)
        .queue_capacity(usize::MAX)
        .max_in_flight(usize::MAX));
    results(submit(&batcher, 0..2)).await;
}

/// A limit of zero hangs the first caller.
#[test]
fn a_limit_of_zero_is_refused_before_it_can_hang() {
    let gate = Gate::open();
    assert!(through(&gate).max_batch_size(0).build().is_err());
    assert!(through(&gate).queue_capacity(0).build().is_err());
    assert!(through(&gate).max_in_flight(0).build().is_err());
}

/// `#[from]` together with `{0}` tells every cause twice.
#[tokio::test(start_paused = true)]
async fn a_chain_of_errors_tells_each_once() {
    let batcher = run(fated().max_batch_size(1));
    let error = soon(batcher.submit(Fate::Fail(7)))
        .await
        .expect_err("fails");
    let told = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(told.matches("cause 7").count(), 1, "{told}");
}

/// A `Debug` that shows nothing is of no use in a failed assertion.
#[tokio::test(start_paused = true)]
async fn debug_shows_the_state() {
    let batcher = run(through(&Gate::open()));
    results(submit(&batcher, 0..3)).await;
    let shown = format!("{batcher:?}");
    assert!(
        shown.contains("completed: 3") && shown.contains("closed: false"),
        "{shown}"
    );
}

/// Handles that never resolve were a bug of the Go bundler, of gax, of Java's
/// Pub/Sub, of Ray, of OpenTelemetry and of Hystrix.
#[tokio::test(start_paused = true)]
async fn there_is_no_end_without_an_answer() {
    let ends: [fn(MicroBatch<Fate, u32>, CancellationToken); 4] = [
        |batcher, _| drop(tokio::spawn(batcher.shutdown())),
        |batcher, _| drop(batcher),
        |_, cancel| cancel.cancel(),
        |batcher, cancel| {
            tokio::spawn(async move {
                soon(batcher.flush()).await;
                cancel.cancel();
            });
        },
    ];
    for end in ends {
        let cancel = CancellationToken::new();
        let batcher = idle(fated().queue_capacity(4));
        let loop_task = tokio::spawn(batcher.start(cancel.clone()));
        let fates = [
            Fate::Answer(1),
            Fate::Fail(2),
            Fate::Panic,
            Fate::Long,
            Fate::Hang,
        ];
        let callers = submit(&batcher, fates.repeat(3))
            .into_iter()
            .map(tokio::spawn);
        let callers: Vec<_> = callers.collect();
        settle().await;
        end(batcher, cancel.clone());
        sleep(secs(60)).await;
        cancel.cancel();
        for caller in callers {
            let _ = soon(caller).await.expect("no panic");
        }
        let _ = soon(loop_task).await.expect("no panic");
    }
}

/// A shutdown that waits the interval out keeps every deployment waiting.
#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_the_interval_out() {
    let batcher = run(through(&Gate::open()).interval(secs(3_600)));
    let handles = submit(&batcher, 0..2);
    let began = Instant::now();
    soon(batcher.shutdown()).await.expect("drains");
    assert_eq!(began.elapsed(), Duration::ZERO);
    results(handles).await;
}

/// Users ask for a way to give a long shutdown up.
#[tokio::test(start_paused = true)]
async fn a_long_shutdown_has_an_end() {
    let gate = Gate::closed();
    let batcher = run(through(&gate).shutdown_timeout(secs(30)));
    let _hung = submit(&batcher, 0..3);
    let began = Instant::now();
    let stopped = soon(batcher.shutdown()).await;
    assert_eq!(stopped, Err(ShutdownTimeout { abandoned: 3 }));
    assert_eq!((began.elapsed(), gate.inside()), (secs(30), 0));
}

/// One bad row fails ninety-nine good ones wherever a batch has one outcome.
#[tokio::test(start_paused = true)]
async fn one_bad_row_need_not_fail_the_others() {
    let batcher = run(MicroBatch::builder(|rows: Vec<u32>| async move {
        let check = |row| if row == 42 { Err("bad row") } else { Ok(row) };
        Ok::<_, String>(rows.into_iter().map(check).collect())
    })
    .max_batch_size(100));
    let rows = results(submit(&batcher, 0..100)).await;
    assert_eq!(rows.iter().filter(|row| row.is_ok()).count(), 99);
    assert_eq!(rows[42], Err("bad row"));
}

/// Backpressure that drops silently: what is not accepted must be known to whom
/// it belongs.
#[tokio::test(start_paused = true)]
async fn no_job_is_dropped_silently() {
    let gate = Gate::closed();
    let batcher = run(through(&gate).queue_capacity(3));
    let (mut accepted, mut returned) = (Vec::new(), Vec::new());
    for job in 0..50 {
        match batcher.try_submit(job) {
            Ok(handle) => accepted.push(handle),
            Err(TrySubmitError::Full(job)) => returned.push(job),
            Err(other) => panic!("{other:?}"),
        }
        if job % 10 == 0 {
            settle().await;
        }
    }
    gate.pass(99);
    let mut all = results(accepted).await;
    assert_eq!(batcher.stats().completed, all.len() as u64);
    all.extend(returned);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..50));
}

/// Users ask for a limit in bytes, tokens or parameters beside the one in jobs.
#[tokio::test(start_paused = true)]
async fn a_batch_can_be_limited_by_weight() {
    let sizes = Reports::default();
    let batcher = run(MicroBatch::builder(|texts: Vec<String>| async move {
        Ok::<_, String>(texts.iter().map(String::len).collect())
    })
    .max_batch_size(100)
    .max_batch_weight(64, String::len)
    .on_batch(sizes.hook()));
    let texts = (0..40).map(|at| "x".repeat(at % 30));
    soon(batcher.submit_all(texts)).await;
    assert!(sizes.weights().iter().all(|bytes| *bytes <= 64));
}

/// Users ask for a flush by hand, before a commit or at the end of a request.
#[tokio::test(start_paused = true)]
async fn a_user_can_flush_by_hand() {
    let batcher = run(through(&Gate::open()).interval(Duration::MAX));
    let handle = batcher.submit(1);
    soon(batcher.flush()).await;
    assert!(handle.is_finished());
}
