//! Jobs that are withdrawn by the thousand under `cancel_on_drop`: they take no room
//! in a batch or in the queue, no time of the processor and, before long, no memory.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use microbatch::{CancellationToken, JobHandle, MicroBatch};
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::support::{
    Gate, Stack, assert_balanced, cancelling, idle, millis, results, run, secs, settle, soon,
    submit,
};

/// Withdrawn jobs used to count towards the size of a batch until it was cut, so ten
/// batches of one were made where one of ten was due.
#[tokio::test(start_paused = true)]
async fn what_is_left_of_ten_rounds_goes_in_one_batch() {
    for kept in 0..10 {
        let gate = Gate::open();
        let batcher = run(cancelling(&gate).max_batch_size(10));
        let mut handles = Vec::new();
        for round in 0..10 {
            let mut ten = submit(&batcher, round * 10..round * 10 + 10);
            handles.push(ten.remove(kept));
            drop(ten);
            if round % 2 == 0 {
                settle().await;
            }
        }
        results(handles).await;
        assert_eq!(gate.batches().len(), 1, "{:?}", gate.batches());
        assert!(gate.times()[0] < secs(1), "it was full");
        assert_balanced(batcher.stats());
        assert_eq!(batcher.stats().withdrawn, 90);
    }
}

/// A queue full of withdrawn jobs is not full.
#[tokio::test(start_paused = true)]
async fn withdrawn_jobs_take_no_room_in_the_queue() {
    let batcher = idle(cancelling(&Gate::open()).queue_capacity(100));
    for round in 0..1_000 {
        let handles: Vec<_> = (0..100)
            .map(|job| batcher.try_submit(job).expect("there is room"))
            .collect();
        assert!(batcher.try_submit(0).is_err(), "round {round}");
        drop(handles);
        assert_eq!(batcher.stats().queued, 0);
    }
    let stats = batcher.stats();
    assert_eq!((stats.accepted, stats.withdrawn), (100_000, 100_000));
    assert_balanced(stats);
}

/// Room that withdrawn jobs leave goes to the waiters, and not to the next caller.
#[tokio::test(start_paused = true)]
async fn waiters_get_the_room_of_withdrawn_jobs() {
    let gate = Gate::open();
    let batcher = idle(cancelling(&gate).queue_capacity(10).max_batch_size(10));
    let mut handles = submit(&batcher, 0..30);
    let mut last = handles.split_off(29);
    drop(handles.drain(..10));
    assert_eq!((batcher.stats().queued, batcher.stats().waiting), (10, 10));
    assert!(batcher.try_submit(99).is_err());
    tokio::spawn(batcher.start(CancellationToken::new()));
    last.extend(handles);
    results(last).await;
    assert_eq!(
        gate.batches(),
        [Vec::from_iter(10..20), Vec::from_iter(20..30)]
    );
    assert_balanced(batcher.stats());
}

/// Callers that withdraw for want of memory must get it back: there are never more
/// withdrawn jobs kept than other jobs.
#[tokio::test(start_paused = true)]
async fn the_data_of_withdrawn_jobs_is_dropped_wherever_they_are() {
    const MANY: usize = 10_000;
    for at_work in [false, true] {
        for (queue, size) in [(100, 3), (MANY, 3), (MANY, 2 * MANY), (100, 2 * MANY)] {
            let data = Arc::new(());
            let block = at_work;
            let batcher = run(MicroBatch::builder(move |jobs: Vec<Arc<()>>| async move {
                if block {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(jobs)
            })
            .cancel_on_drop(true)
            .queue_capacity(queue)
            .interval(Duration::MAX)
            .max_batch_size(size));
            let first = submit(&batcher, vec![Arc::clone(&data); 3]);
            if at_work {
                tokio::spawn(batcher.flush());
            }
            settle().await;
            let stats = batcher.stats();
            let mut handles = submit(&batcher, vec![Arc::clone(&data); MANY]);
            if queue == MANY {
                settle().await;
            }
            let mut keep = |kept: usize| {
                // Every so many, so that none of them is at an end.
                let every = handles.len() / kept;
                let mut at = 0;
                handles.retain(|_| {
                    at += 1;
                    at % every == 0
                });
                handles.len()
            };
            for kept in [MANY / 2, MANY / 10, 10] {
                let kept = keep(kept);
                settle().await;
                let held = Arc::strong_count(&data) - 1;
                assert!(
                    held <= 2 * kept + 3 + 3,
                    "{held} held for {kept}, {queue} {size}"
                );
                assert_balanced(batcher.stats());
            }
            drop(handles);
            settle().await;
            assert!(Arc::strong_count(&data) <= 4, "{stats:?}");
            drop(first);
        }
    }
}

/// The weight of withdrawn jobs fills no batch either.
#[tokio::test(start_paused = true)]
async fn withdrawn_jobs_weigh_nothing() {
    let gate = Gate::open();
    let batcher = run(cancelling(&gate)
        .max_batch_size(1_000)
        .max_batch_weight(100, |job| *job as usize));
    let mut handles = Vec::new();
    for round in 0..10 {
        drop(submit(&batcher, vec![99; 50]));
        if round % 3 == 0 {
            settle().await;
        }
        handles.extend(submit(&batcher, [10]));
    }
    results(handles).await;
    assert_eq!(gate.batches(), [[10; 10]]);
    assert!(gate.times()[0] < secs(1), "it was full");
    let stats = batcher.stats();
    assert_eq!((stats.withdrawn, stats.completed), (500, 10));
    assert_balanced(stats);
}

/// A storage with an order and limits of its own does not know which jobs are
/// withdrawn, and must neither give them nor be filled by them.
#[tokio::test(start_paused = true)]
async fn a_storage_is_cleared_of_withdrawn_jobs() {
    for in_flight in [1, 3] {
        let gate = Gate::closed();
        let batcher = run(cancelling(&gate)
            .storage(Stack::of_at_most(100))
            .queue_capacity(50)
            .max_batch_size(10)
            .max_in_flight(in_flight));
        let busy: Vec<_> = (0..in_flight).collect();
        let mut handles = Vec::new();
        for batch in &busy {
            let first = u32::try_from(batch * 10).expect("few");
            handles.extend(submit(&batcher, first..first + 10));
            settle().await;
        }
        assert_eq!(gate.inside(), in_flight);
        for round in 0..50 {
            let mut more = submit(&batcher, 1_000 + round * 40..1_040 + round * 40);
            settle().await;
            if round == 20 {
                handles.extend(more.drain(10..14));
            }
            if round == 40 {
                handles.extend(more.drain(10..12));
            }
            drop(more);
            settle().await;
        }
        gate.pass(100);
        soon(batcher.flush()).await;
        results(handles).await;
        let last = gate.batches().pop().expect("some");
        assert_eq!(last, [2611, 2610, 1813, 1812, 1811, 1810], "newest first");
        let stats = batcher.stats();
        assert_eq!((stats.abandoned, stats.withdrawn), (0, 50 * 40 - 6));
        assert_balanced(stats);
    }
}

/// A flush or a stop has nothing to wait for in withdrawn jobs.
#[tokio::test(start_paused = true)]
async fn no_flush_or_stop_waits_for_withdrawn_jobs() {
    for stop in [false, true] {
        let gate = Gate::closed();
        let batcher = run(cancelling(&gate).max_batch_size(10).queue_capacity(1_000));
        let first = submit(&batcher, 0..10);
        settle().await;
        let withdrawn = submit(&batcher, 10..2_000);
        settle().await;
        let done = if stop {
            let shutdown = batcher.shutdown();
            tokio::spawn(async move { shutdown.await.expect("drains") })
        } else {
            tokio::spawn(batcher.flush())
        };
        settle().await;
        drop(withdrawn);
        settle().await;
        gate.pass(1);
        soon(done).await.expect("no panic");
        results(first).await;
        let stats = batcher.stats();
        assert_eq!((stats.batches, stats.completed), (1, 10));
        assert_balanced(stats);
    }
}

/// Under the other two policies of waiting, too, withdrawn jobs are not timed.
#[tokio::test(start_paused = true)]
async fn withdrawn_jobs_cause_no_flush() {
    let gate = Gate::open();
    let batcher = run(cancelling(&gate)
        .max_batch_size(100)
        .interval(Duration::MAX)
        .flush_cost(secs(10)));
    let one = submit(&batcher, [0]);
    sleep(secs(1)).await;
    let withdrawn = submit(&batcher, 1..10);
    settle().await;
    drop(withdrawn);
    results(one).await;
    assert_eq!(gate.times()[0].as_secs(), 10);

    let gate = Gate::closed();
    let batcher = run(cancelling(&gate)
        .max_batch_size(100)
        .interval(Duration::MAX)
        .flush_when_idle(true));
    let first = submit(&batcher, [0]);
    settle().await;
    let withdrawn = submit(&batcher, 1..10);
    settle().await;
    drop(withdrawn);
    gate.pass(10);
    results(first).await;
    settle().await;
    assert_eq!(batcher.stats().batches, 1);
}

/// How many callers get their result in time from a server that serves batches
/// of ten in a second, first come first served among those who still wait.
fn ideal(arrivals: &[Duration], patience: &[Duration]) -> u32 {
    let mut done = 0;
    let mut free = Duration::ZERO;
    let mut waiting: VecDeque<usize> = VecDeque::new();
    let mut next = 0;
    loop {
        while next < arrivals.len() && arrivals[next] <= free {
            waiting.push_back(next);
            next += 1;
        }
        waiting.retain(|caller| arrivals[*caller] + patience[*caller] > free);
        if waiting.len() < 10 {
            let Some(arrival) = arrivals.get(next) else {
                return done;
            };
            free = free.max(*arrival);
            if waiting.len() + 1 < 10 {
                waiting.push_back(next);
                next += 1;
                continue;
            }
            continue;
        }
        let end = free + secs(1);
        for caller in waiting.drain(..10) {
            done += u32::from(arrivals[caller] + patience[caller] >= end);
        }
        free = end;
    }
}

/// At twice what can be served some callers get no result in time. A server that
/// processed withdrawn jobs would serve hardly any.
#[tokio::test(start_paused = true)]
async fn at_twice_the_capacity_the_goodput_stays() {
    const CALLERS: u32 = 4_000;
    for (queue, patience) in [(100, 8), (10, 8), (1_000, 8), (100, 3), (1_000, 100)] {
        let local = LocalSet::new();
        let done = Rc::new(Cell::new(0));
        let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
            sleep(secs(1)).await;
            Ok::<_, Infallible>(jobs)
        })
        .cancel_on_drop(true)
        .max_batch_size(10)
        .queue_capacity(queue));
        let start = Instant::now();
        let arrivals: Vec<_> = (0..CALLERS).map(|caller| millis(50) * caller).collect();
        // Between a half of it and one and a half.
        let patience: Vec<_> = (0..CALLERS)
            .map(|caller| secs(patience) * (50 + caller * 37 % 100) / 100)
            .collect();
        for caller in 0..CALLERS {
            let (batcher, done) = (batcher.clone(), Rc::clone(&done));
            let at = start + arrivals[caller as usize];
            let patience = patience[caller as usize];
            local.spawn_local(async move {
                sleep_until(at).await;
                if timeout(patience, batcher.submit(caller)).await.is_ok() {
                    done.set(done.get() + 1);
                }
            });
        }
        local.await;
        let ideal = ideal(&arrivals, &patience);
        assert!(
            done.get() * 100 >= ideal * 95,
            "{} of {ideal}, queue {queue}",
            done.get()
        );
        assert_balanced(batcher.stats());
    }
}

/// Handles of one pending batch are dropped in any order: each must not cost what is
/// in it, also where each was accepted at a moment of its own.
#[tokio::test(start_paused = true)]
async fn a_large_pending_batch_is_withdrawn_one_by_one() {
    const MANY: u32 = 100_000;
    let gate = Gate::open();
    let batcher = run(cancelling(&gate)
        .max_batch_size(MANY as usize + 1)
        .queue_capacity(MANY as usize)
        .interval(Duration::MAX));
    let mut handles = Vec::new();
    for job in 0..MANY {
        handles.extend(submit(&batcher, [job]));
        if job % 4 == 0 {
            tokio::time::advance(Duration::from_nanos(1)).await;
        }
    }
    settle().await;
    let mut at = 0;
    while !handles.is_empty() {
        at = (at + 7_919) % handles.len();
        drop(handles.swap_remove(at));
    }
    settle().await;
    let stats = batcher.stats();
    assert_eq!((stats.pending, stats.queued), (0, 0));
    assert_eq!(stats.withdrawn, u64::from(MANY));
    assert_balanced(stats);
}

/// Many threads withdraw at once, while batches are cut from among their jobs.
#[test]
fn threads_that_withdraw_at_once_leave_the_counters_at_zero() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 100;
    for (in_flight, stack, weighed) in [(1, false, false), (3, false, true), (3, true, true)] {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let entered = runtime.enter();
        let builder = MicroBatch::builder(|jobs: Vec<u32>| async move {
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(jobs)
        })
        .cancel_on_drop(true)
        .max_batch_size(10)
        .interval(millis(1))
        .max_in_flight(in_flight);
        let limit = if weighed { 30 } else { usize::MAX };
        let builder = builder.max_batch_weight(limit, |job| (*job % 7) as usize);
        let batcher = if stack {
            run(builder.storage(Stack::of_at_most(50)))
        } else {
            run(builder)
        };
        drop(entered);
        let together = Arc::new(Barrier::new(THREADS));
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (batcher, together) = (batcher.clone(), Arc::clone(&together));
                thread::spawn(move || {
                    for round in 0..ROUNDS {
                        let mut handles: Vec<JobHandle<u32>> = submit(&batcher, 0..200);
                        together.wait();
                        let mut at = 0;
                        handles.retain(|_| {
                            at += 1;
                            (at + round + thread) % 3 == 0
                        });
                        if round % 10 == 0 {
                            for handle in handles {
                                let _ = handle.blocking_wait();
                            }
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        runtime.block_on(soon(batcher.flush()));
        let stats = batcher.stats();
        assert_balanced(stats);
        assert_eq!(
            (stats.waiting, stats.queued, stats.pending, stats.processing),
            (0, 0, 0, 0),
            "{stats:?}"
        );
        assert_eq!(stats.in_flight, 0);
        assert_eq!(
            stats.accepted + stats.withdrawn_waiting,
            (THREADS * ROUNDS * 200) as u64
        );
        runtime.block_on(soon(batcher.shutdown())).expect("drains");
        assert_balanced(batcher.stats());
    }
}

/// A flush whose job is withdrawn meanwhile is done, and cuts nothing that came later.
#[tokio::test(start_paused = true)]
async fn a_flush_takes_no_more_than_it_covers_after_a_withdrawal() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .cancel_on_drop(true)
        .max_batch_size(3)
        .interval(Duration::MAX));
    let first = submit(&batcher, 0..3);
    settle().await;
    let pending = submit(&batcher, 3..6);
    settle().await;
    let covered = submit(&batcher, 6..7);
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    let later = submit(&batcher, 7..9);
    drop(covered);
    gate.pass(99);
    soon(flush).await.unwrap();
    results(first).await;
    results(pending).await;
    settle().await;
    assert_eq!(gate.batches().len(), 2, "{:?}", gate.batches());
    drop(later);
}
