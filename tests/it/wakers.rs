//! Callers on executors of their own, whose wakers are users' code: they panic
//! when cloned, woken or dropped, and no other caller may be affected.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use microbatch::{CancellationToken, MicroBatch};
use tokio::time::timeout;

use crate::support::{
    AGES, Bomb, Gate, LIVE, assert_balanced, poll_once, results, run, secs, settle, soon, submit,
};

/// Panics when it is woken.
struct Grump;

impl Wake for Grump {
    fn wake(self: Arc<Self>) {
        panic!("woken");
    }
}

/// Panics when the last of its kind is dropped.
struct Fragile(#[expect(dead_code, reason = "it is dropped")] Bomb);

impl Wake for Fragile {
    fn wake(self: Arc<Self>) {}
}

fn hostile(which: u8) -> Waker {
    match which {
        0 => Waker::from(Arc::new(Grump)),
        _ => Waker::from(Arc::new(Fragile(Bomb(LIVE)))),
    }
}

/// Polls with the waker, and outlives what that throws.
fn poll_with<F: Future + ?Sized>(future: Pin<&mut F>, waker: Waker) {
    let polled = catch_unwind(AssertUnwindSafe(|| {
        let _ = future.poll(&mut Context::from_waker(&waker));
    }));
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(waker)));
    let _ = (polled, dropped);
}

/// One waker that panics took the replies of all that came after it in its batch.
#[tokio::test(start_paused = true)]
async fn a_handles_waker_spares_its_neighbours() {
    for which in 0..2 {
        let gate = Gate::closed();
        let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(9));
        let mut handles = submit(&batcher, 0..9);
        for handle in handles.iter_mut().step_by(2) {
            poll_with(Pin::new(handle), hostile(which));
        }
        gate.pass(1);
        settle().await;
        assert_eq!(results(handles).await, Vec::from_iter(0..9));
        gate.pass(1);
        assert_eq!(results(submit(&batcher, 9..18)).await.len(), 9);
        let stats = batcher.stats();
        assert_eq!((stats.completed, stats.in_flight), (18, 0));
        assert_balanced(stats);
    }
}

/// Room is granted by the loop, which would die of the waker of who waits for it.
#[tokio::test(start_paused = true)]
async fn a_panicking_waker_of_a_waiter_spares_the_worker_and_other_waiters() {
    for which in 0..2 {
        let gate = Gate::closed();
        let batcher = run(MicroBatch::builder(gate.clone()).queue_capacity(4));
        let mut handles = submit(&batcher, 0..9);
        let mut reservations: Vec<_> = (0..4).map(|_| Box::pin(batcher.reserve())).collect();
        for reservation in &mut reservations {
            poll_with(reservation.as_mut(), hostile(which));
        }
        for handle in &mut handles {
            let mut accepted = Box::pin(handle.accepted());
            poll_with(accepted.as_mut(), hostile(which));
        }
        handles.extend(submit(&batcher, 9..12));
        gate.pass(99);
        settle().await;
        for (job, reservation) in (20..).zip(reservations) {
            let permit = soon(reservation).await.expect("open");
            drop(permit.submit(job));
        }
        assert_eq!(results(handles).await, Vec::from_iter(0..12));
        soon(batcher.flush()).await;
        let stats = batcher.stats();
        assert_eq!((stats.completed, stats.waiting), (16, 0));
        assert_balanced(stats);
    }
}

/// The same for those who are refused by a stop, and for who has called it.
#[tokio::test(start_paused = true)]
async fn the_waker_of_who_is_refused_spares_the_stop() {
    for which in 0..2 {
        let gate = Gate::closed();
        let batcher = run(MicroBatch::builder(gate.clone()).queue_capacity(3));
        let mut handles = submit(&batcher, 0..30);
        for handle in handles.iter_mut().step_by(2) {
            poll_with(Pin::new(handle), hostile(which));
            let mut accepted = Box::pin(handle.accepted());
            poll_with(accepted.as_mut(), hostile(which));
        }
        let mut reservation = Box::pin(batcher.reserve());
        poll_with(reservation.as_mut(), hostile(which));
        gate.pass(99);
        soon(batcher.shutdown()).await.expect("drains");
        assert!(soon(reservation).await.is_err());
        let mut refused = 0;
        for handle in handles {
            refused += u64::from(soon(handle).await.is_err());
        }
        let stats = batcher.stats();
        assert_eq!(stats.completed + refused, 30);
        assert_balanced(stats);
    }
}

/// A flush is answered by the loop.
#[tokio::test(start_paused = true)]
async fn the_waker_of_who_flushes_spares_the_loop() {
    for which in 0..2 {
        let gate = Gate::closed();
        let batcher = run(MicroBatch::builder(gate.clone()));
        let handles = submit(&batcher, 0..2);
        let mut flushes: Vec<_> = (0..5).map(|_| Box::pin(batcher.flush())).collect();
        for flush in flushes.iter_mut().step_by(2) {
            poll_with(flush.as_mut(), hostile(which));
        }
        let last = tokio::spawn(batcher.flush());
        settle().await;
        gate.pass(99);
        soon(last).await.expect("no panic");
        for flush in flushes {
            soon(flush).await;
        }
        results(handles).await;
        assert_eq!(results(submit(&batcher, 2..5)).await, [2, 3, 4]);
    }
}

/// Streams are polled by any executor, too.
#[tokio::test(start_paused = true)]
async fn the_waker_of_a_stream_spares_the_batch() {
    use futures::stream::{self, Stream, StreamExt};
    for which in 0..2 {
        let gate = Gate::closed();
        let batcher = run(MicroBatch::builder(gate.clone()).max_batch_size(9));
        let mut ordered = Box::pin(batcher.submit_stream(stream::iter(0..3), 3));
        let mut unordered = Box::pin(batcher.submit_stream_unordered(stream::iter(3..6), 3));
        let mut next = std::future::poll_fn(|cx| ordered.as_mut().poll_next(cx));
        poll_with(Pin::new(&mut next), hostile(which));
        let mut next = std::future::poll_fn(|cx| unordered.as_mut().poll_next(cx));
        poll_with(Pin::new(&mut next), hostile(which));
        let handles = submit(&batcher, 6..9);
        gate.pass(99);
        settle().await;
        assert_eq!(results(handles).await, [6, 7, 8]);
        assert_eq!(
            soon(ordered.map(Result::unwrap).collect::<Vec<_>>()).await,
            [0, 1, 2]
        );
        assert_eq!(soon(unordered.count()).await, 3);
    }
}

/// A result whose caller is gone is dropped where it is sent, and an answer with a
/// panic in its drop must not cost the others theirs.
#[tokio::test(start_paused = true)]
async fn results_without_handles_may_panic_all_together() {
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        Ok::<_, Infallible>(jobs.into_iter().map(Bomb).collect::<Vec<_>>())
    })
    .max_batch_size(100)
    .max_in_flight(3));
    for _ in 0..10 {
        let mut handles = submit(
            &batcher,
            (0..100).map(|job| if job % 3 == 0 { LIVE } else { job + LIVE }),
        );
        let mut at = 0;
        handles.retain_mut(|handle| {
            at += 1;
            assert!(poll_once(handle).is_pending());
            at % 3 != 1
        });
        for bomb in results(handles).await {
            assert_ne!(bomb.0, LIVE);
        }
    }
    timeout(secs(1), batcher.flush()).await.expect("done");
    let stats = batcher.stats();
    assert_eq!((stats.completed, stats.in_flight), (1_000, 0));
}

/// Who waits for the end is woken by the loop as its last act.
#[tokio::test(start_paused = true)]
async fn the_waker_of_who_waits_for_the_end_spares_the_others() {
    for which in 0..2 {
        let gate = Gate::closed();
        let batcher = MicroBatch::builder(gate.clone()).build().expect("valid");
        let handles = submit(&batcher, 0..2);
        let run = tokio::spawn(batcher.start(CancellationToken::new()));
        settle().await;
        let mut first: Vec<_> = (0..70).map(|_| Box::pin(batcher.shutdown())).collect();
        for shutdown in first.iter_mut().step_by(2) {
            poll_with(shutdown.as_mut(), hostile(which));
        }
        let others: Vec<_> = (0..70).map(|_| tokio::spawn(batcher.shutdown())).collect();
        settle().await;
        gate.pass(99);
        results(handles).await;
        for other in others {
            let other = timeout(AGES, other).await.expect("is woken");
            assert_eq!(other.expect("no panic"), Ok(()));
        }
        let run = timeout(AGES, run).await.expect("ends");
        run.expect("no panic").expect("drains");
        for shutdown in first {
            assert_eq!(soon(shutdown).await, Ok(()));
        }
    }
}
