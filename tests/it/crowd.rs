//! Crowds before a small queue: hundreds of thousands of waiters, each of
//! which costs what one alone would. A cost that grew with the crowd would never end.

use std::task::Poll;
use std::thread;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use microbatch::{CancellationToken, JobError, JobHandle, MicroBatch, TrySubmitError};
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::support::{
    Gate, assert_balanced, millis, poll_once, results, run, settle, soon, submit,
};

const CROWD: u32 = 300_000;

/// The defaults but for the size of a batch.
fn before(gate: &Gate) -> MicroBatch<u32, u32> {
    run(MicroBatch::builder(gate.clone()).max_batch_size(100))
}

/// Numbers that look like chance, the same in each run.
fn chance() -> impl FnMut(u32) -> u32 {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(state % u64::from(below)).expect("below")
    }
}

fn assert_all_done(batcher: &MicroBatch<u32, u32>, completed: u32) {
    let stats = batcher.stats();
    assert_balanced(stats);
    assert_eq!(stats.completed, u64::from(completed), "{stats:?}");
    assert_eq!(
        (stats.waiting, stats.queued, stats.pending, stats.processing),
        (0, 0, 0, 0)
    );
}

/// A loop over the handles is what most users write first. Where waiting was up
/// to the handle, those not yet awaited were not even waiters.
#[tokio::test(start_paused = true)]
async fn a_crowd_is_collected_from_either_end() {
    for reversed in [false, true] {
        let gate = Gate::open();
        let batcher = before(&gate);
        let mut handles = submit(&batcher, 0..CROWD);
        assert_eq!(batcher.stats().waiting, CROWD as usize - 100);
        if reversed {
            handles.reverse();
        }
        let mut collected = results(handles).await;
        if reversed {
            collected.reverse();
        }
        assert!(collected.into_iter().eq(0..CROWD));
        assert!(gate.batches().concat().into_iter().eq(0..CROWD));
        assert_eq!(gate.batches().len(), CROWD as usize / 100);
        assert_all_done(&batcher, CROWD);
    }
}

/// `join_all` polls all of a small crowd at each wake-up, and each of a large one
/// by its own waker; so does `FuturesUnordered`.
#[tokio::test(start_paused = true)]
async fn a_crowd_is_collected_by_the_combinators() {
    let gate = Gate::open();
    let batcher = before(&gate);
    let joined = soon(join_all(submit(&batcher, 0..CROWD))).await;
    assert!(
        joined
            .into_iter()
            .map(|result| result.expect("ok"))
            .eq(0..CROWD)
    );
    assert_all_done(&batcher, CROWD);

    let mut unordered: FuturesUnordered<_> = submit(&batcher, 0..CROWD).into_iter().collect();
    let mut sum = 0;
    while let Some(result) = soon(unordered.next()).await {
        sum += u64::from(result.expect("ok"));
    }
    assert_eq!(sum, u64::from(CROWD) * u64::from(CROWD - 1) / 2);
    assert_all_done(&batcher, 2 * CROWD);
}

/// A waiter that leaves in the middle leaves a gap, and closing each gap at once
/// would move all waiters behind it.
#[tokio::test(start_paused = true)]
async fn half_a_crowd_may_go_in_any_order() {
    let mut chance = chance();
    let gate = Gate::open();
    let batcher = before(&gate);
    let mut handles: Vec<_> = (0..CROWD).zip(submit(&batcher, 0..CROWD)).collect();
    let mut left_waiting = 0;
    for _ in 0..CROWD / 2 {
        let at = chance(u32::try_from(handles.len()).expect("few")) as usize;
        let (job, handle) = handles.swap_remove(at);
        drop(handle);
        left_waiting += u64::from(job >= 100);
    }
    let stats = batcher.stats();
    assert_eq!(stats.withdrawn_waiting, left_waiting);
    assert_eq!(stats.waiting as u64, u64::from(CROWD) - 100 - left_waiting);
    assert_balanced(stats);

    let mut kept: Vec<_> = handles.iter().map(|(job, _)| *job).collect();
    let collected = results(handles.into_iter().map(|(_, handle)| handle).collect()).await;
    assert_eq!(collected, kept);
    kept.extend(0..100);
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(gate.batches().concat(), kept, "first come, first served");
    assert_all_done(&batcher, u32::try_from(kept.len()).expect("few"));
}

/// One order for jobs and reservations alike: no waiter may be passed over by a
/// mixture of both, nor by `try_submit`.
#[tokio::test(start_paused = true)]
async fn jobs_and_reservations_are_served_in_one_order() {
    const MIXED: u32 = 20_000;
    let gate = Gate::open();
    let batcher = before(&gate);
    let mut handles = Vec::new();
    let mut reservations = Vec::new();
    for job in 0..MIXED {
        if job % 2 == 0 {
            handles.push(batcher.submit(job));
        } else {
            let mut reservation = Box::pin(batcher.reserve());
            match poll_once(&mut reservation) {
                Poll::Ready(permit) => handles.push(permit.expect("open").submit(job)),
                Poll::Pending => reservations.push((job, reservation)),
            }
        }
        if job >= 100 {
            assert!(matches!(
                batcher.try_submit(u32::MAX),
                Err(TrySubmitError::Full(u32::MAX))
            ));
        }
    }
    assert_eq!(batcher.stats().waiting, MIXED as usize - 100);
    let reserving = join_all(
        reservations
            .into_iter()
            .map(|(job, reservation)| async move {
                let permit = reservation.await.expect("open");
                permit.submit(job).await.expect("succeeds")
            }),
    );
    let (reserved, submitted) = soon(futures::future::join(reserving, results(handles))).await;
    assert_eq!(reserved.len() + submitted.len(), MIXED as usize);
    // A permit is used when its task runs, so only waiting jobs are in the order
    // of the waiters.
    let order = gate.batches().concat();
    let jobs = order.iter().filter(|job| **job % 2 == 0);
    assert!(jobs.copied().eq((0..MIXED).step_by(2)));
    assert_all_done(&batcher, MIXED);
}

/// `select!` and timeouts poll a handle, leave it and come back, from one task
/// or another: neither its turn nor the result may be lost by it.
#[tokio::test(start_paused = true)]
async fn a_crowd_that_polls_now_and_then_keeps_its_order() {
    const FEW: u32 = 20_000;
    let gate = Gate::closed();
    let batcher = before(&gate);
    let mut handles = submit(&batcher, 0..FEW);
    for handle in &mut handles {
        assert!(poll_once(handle).is_pending());
        tokio::select! {
            biased;
            _ = handle => panic!("nothing is processed"),
            () = async {} => {}
        }
    }
    for handle in handles.iter_mut().step_by(1_000) {
        assert!(timeout(millis(10), handle).await.is_err());
    }
    gate.pass(usize::MAX >> 4);
    assert!(results(handles).await.into_iter().eq(0..FEW));
    assert!(gate.batches().concat().into_iter().eq(0..FEW));
    assert_all_done(&batcher, FEW);
}

/// Fire and forget with backpressure: what was accepted is done though its handle
/// is gone, and nothing else is.
#[tokio::test(start_paused = true)]
async fn a_crowd_that_goes_once_it_is_accepted_is_served() {
    const FEW: u32 = 50_000;
    let gate = Gate::open();
    let batcher = before(&gate);
    for mut handle in submit(&batcher, 0..FEW) {
        soon(handle.accepted()).await.expect("open");
    }
    soon(batcher.flush()).await;
    assert!(gate.batches().concat().into_iter().eq(0..FEW));
    assert_all_done(&batcher, FEW);
}

/// A stop refuses all waiters at once, whatever they wait with.
#[tokio::test(start_paused = true)]
async fn a_stop_refuses_a_crowd() {
    const WAITING: u32 = 100_000;
    let gate = Gate::closed();
    let batcher = before(&gate);
    let mut handles = submit(&batcher, 0..WAITING + 100);
    for handle in handles.iter_mut().step_by(2) {
        assert!(poll_once(handle).is_pending());
    }
    settle().await;
    let accepted = usize::try_from(batcher.stats().accepted).expect("few");
    let stop = tokio::spawn(batcher.shutdown());
    settle().await;
    let stats = batcher.stats();
    assert_eq!((stats.waiting, batcher.is_closed()), (0, true));
    // Half of them say so, and half are dropped.
    let refused = handles.split_off(accepted);
    for (at, mut handle) in refused.into_iter().enumerate() {
        if at % 2 == 0 {
            let answer = poll_once(&mut handle);
            assert!(matches!(answer, Poll::Ready(Err(JobError::Closed))));
        }
    }
    gate.pass(99_999);
    soon(stop).await.expect("no panic").expect("drains");
    results(handles).await;
    let stats = batcher.stats();
    assert_balanced(stats);
    assert_eq!(stats.completed, accepted as u64);
    assert_eq!(stats.withdrawn_waiting, 0, "they were refused first");
}

/// From threads each caller's own jobs keep their order, as waiters too.
#[test]
fn a_crowd_of_threads_is_served_thread_by_thread_in_order() {
    const EACH: u32 = 20_000;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let gate = {
        let _entered = runtime.enter();
        Gate::open()
    };
    let batcher = MicroBatch::builder(gate.clone())
        .max_batch_size(100)
        .interval(millis(1));
    let batcher = {
        let _entered = runtime.enter();
        batcher
            .build_running(CancellationToken::new())
            .expect("valid")
    };
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let batcher = batcher.clone();
            thread::spawn(move || {
                let jobs = thread * EACH..(thread + 1) * EACH;
                let handles: Vec<JobHandle<u32>> = submit(&batcher, jobs.clone());
                for (job, handle) in jobs.zip(handles) {
                    assert_eq!(handle.blocking_wait().expect("succeeds"), job);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    let mut next = [0, EACH, 2 * EACH, 3 * EACH];
    for job in gate.batches().concat() {
        let next = &mut next[(job / EACH) as usize];
        assert_eq!(job, *next);
        *next += 1;
    }
    assert_all_done(&batcher, 4 * EACH);
}

/// Room is freed many times while there are many waiters, and a `try_submit` just
/// then must not get it.
#[tokio::test(start_paused = true)]
async fn try_submit_never_overtakes_a_waiter() {
    let gate = Gate::closed();
    let batcher = before(&gate);
    let handles = submit(&batcher, 0..5_000);
    let trying = batcher.clone();
    let tries = tokio::spawn(async move {
        let mut tries = 0_u32;
        while trying.stats().waiting > 0 {
            assert!(trying.try_submit(u32::MAX).is_err());
            tries += 1;
            assert!(tries < 1_000_000, "no waiter is served");
            tokio::task::yield_now().await;
        }
    });
    for _ in 0..60 {
        gate.pass(1);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    soon(tries).await.expect("none overtook");
    results(handles).await;
    assert!(gate.batches().concat().into_iter().eq(0..5_000));
}
