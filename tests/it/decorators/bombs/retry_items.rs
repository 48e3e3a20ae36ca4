//! The same under `retry_items`: what was done stays done, and a job that cannot be
//! tried again keeps its error.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use microbatch::BatchProcessor;

use super::retry::{Pauses, deaf, pauses};
use super::*;
use crate::support::lock;

type Item<E> = Result<u32, E>;

/// Refuses odd jobs once, with such an error.
fn refusing<E>(
    error: impl Fn() -> E + Send + Sync + 'static,
) -> impl BatchProcessor<Bomb, Item<E>, Error = Touchy>
where
    E: Send + 'static,
{
    let refused = Mutex::new(HashSet::new());
    move |jobs: Vec<Bomb>| {
        let mut refused = lock(&refused);
        let put = |job: Bomb| {
            let number = job.0;
            std::mem::forget(job);
            match number % 2 == 1 && refused.insert(number) {
                true => Err(error()),
                false => Ok(number),
            }
        };
        let results: Vec<_> = jobs.into_iter().map(put).collect();
        async move { Ok(results) }
    }
}

/// The numbers of the jobs that were done; errors are not dropped, since that may panic.
fn done<E>(results: Vec<Item<E>>) -> Vec<Option<u32>> {
    let number = |result| match result {
        Ok(number) => Some(number),
        Err(error) => {
            std::mem::forget(error);
            None
        }
    };
    results.into_iter().map(number).collect()
}

#[tokio::test(start_paused = true)]
async fn results_stand_whatever_the_drop_of_the_future_does() {
    struct Explosive(Option<Vec<Item<String>>>);
    impl Future for Explosive {
        type Output = Result<Vec<Item<String>>, String>;

        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Ready(Ok(self.0.take().expect("polled once")))
        }
    }
    impl Drop for Explosive {
        fn drop(&mut self) {
            assert!(thread::panicking(), "drop of the future");
        }
    }
    let calls = AtomicU32::new(0);
    let explosive = move |jobs: Vec<u32>| {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        let put = |job| match first && job == 1 {
            true => Err("refused".to_owned()),
            false => Ok(job),
        };
        Explosive(Some(jobs.into_iter().map(put).collect()))
    };
    let batcher = batcher(2, explosive.retry_items(pauses(At::Nowhere)));
    assert_eq!(done(good(&batcher, [1, 2]).await), [Some(1), Some(2)]);
}

#[tokio::test(start_paused = true)]
async fn the_drop_of_kept_jobs_fails_no_job() {
    let batcher = batcher(4, refusing(|| "refused").retry_items(pauses(At::Nowhere)));
    let jobs = (0..4).map(|job| Bomb(job, At::DropOfClone));
    let results = good(&batcher, jobs).await;
    assert_eq!(done(results), [Some(0), Some(1), Some(2), Some(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_cloned_keeps_its_error() {
    let batcher = batcher(4, refusing(|| "refused").retry_items(pauses(At::Nowhere)));
    let at = |job| match job {
        2 | 3 => At::Clone,
        _ => At::DropOfClone,
    };
    let results = good(&batcher, (0..4).map(|job| Bomb(job, at(job)))).await;
    assert_eq!(done(results), [Some(0), Some(1), Some(2), None]);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_dropped_is_replaced_by_the_result() {
    let batcher = batcher(
        2,
        refusing(|| Touchy::Drop).retry_items(pauses(At::Nowhere)),
    );
    let results = good(&batcher, [harmless(1), harmless(3)]).await;
    assert_eq!(done(results), [Some(1), Some(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_error_makes_when_panic_keeps_it_alone() {
    let number = AtomicU32::new(0);
    let error = move || number.fetch_add(1, Ordering::SeqCst);
    // Panics on the first error of all.
    let when = |error: &u32| {
        assert!(*error != 0, "predicate");
        true
    };
    let retried = refusing(error).retry_items(pauses(At::Nowhere)).when(when);
    let batcher = batcher(4, retried);
    let jobs = [1, 2, 3, 5].map(|job| Bomb(job, At::DropOfClone));
    let results = good(&batcher, jobs).await;
    assert_eq!(done(results), [None, Some(2), Some(3), Some(5)]);
}

#[tokio::test(start_paused = true)]
async fn a_backoff_that_panics_ends_the_attempts_and_no_more() {
    for at in [At::Hash, At::Clone] {
        let batcher = batcher(2, refusing(|| Touchy::Drop).retry_items(pauses(at)));
        let jobs = || [1, 2].map(|job| Bomb(job, At::DropOfClone));
        assert_eq!(done(good(&batcher, jobs()).await), [None, Some(2)]);
        assert_eq!(done(good(&batcher, jobs()).await), [Some(1), Some(2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_drop_of_a_backoff_fails_no_job() {
    let batcher = batcher(2, refusing(|| "refused").retry_items(pauses(At::Drop)));
    for _ in 0..2 {
        let results = good(&batcher, [harmless(1), harmless(2)]).await;
        assert_eq!(done(results), [Some(1), Some(2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_call_may_fail_with_an_error_that_panics() {
    for error in [|| Touchy::Drop, || Touchy::Into] {
        let calls = AtomicU32::new(0);
        let inner = Arc::new(refusing(|| Touchy::Drop));
        let once = move |jobs: Vec<Bomb>| {
            let later = calls.fetch_add(1, Ordering::SeqCst) > 0;
            let inner = Arc::clone(&inner);
            async move {
                let results = inner.process(jobs).await;
                if later { Err(error()) } else { results }
            }
        };
        let batcher = batcher(2, once.retry_items(pauses(At::Nowhere)));
        let jobs = [1, 2].map(|job| Bomb(job, At::DropOfClone));
        assert_eq!(done(good(&batcher, jobs).await), [None, Some(2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn results_of_a_wrong_number_may_panic_when_a_later_call_returns_them() {
    let calls = AtomicU32::new(0);
    let double = move |jobs: Vec<u32>| {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            let results = jobs.iter().map(|job| match (first, job) {
                (true, 1) => Err("refused"),
                (true, job) => Ok(harmless(*job)),
                (false, job) => Ok(Bomb(*job, At::Drop)),
            });
            let mut results: Vec<_> = results.collect();
            if !first {
                results.push(Ok(Bomb(9, At::Drop)));
            }
            Ok::<_, String>(results)
        }
    };
    let batcher = batcher(2, double.retry_items(pauses(At::Nowhere)));
    let results = good(&batcher, [1, 2]).await;
    assert!(matches!(
        results[..],
        [Err("refused"), Ok(Bomb(2, At::Nowhere))]
    ));
}

#[tokio::test(start_paused = true)]
async fn a_batch_given_up_in_its_pause_may_panic_in_every_drop() {
    let results = |jobs: Vec<Bomb>| async move {
        let put = |job: Bomb| {
            let number = job.0;
            std::mem::forget(job);
            match number {
                1 => Err(Touchy::Drop),
                _ => Ok(Bomb(number, At::Drop)),
            }
        };
        Ok::<_, String>(jobs.into_iter().map(put).collect())
    };
    let backoff: Pauses = pauses(At::Drop);
    let retried = results.retry_items(backoff);
    let batcher = batcher(2, retried.timeout(Duration::from_millis(500)));
    let jobs = [1, 2].map(|job| Bomb(job, At::DropOfClone));
    for result in all(&batcher, jobs).await {
        let Err(error) = result else {
            panic!("the batch is given up");
        };
        assert_eq!(cause(&error), "the batch took longer than 500ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_does_not_stop_an_attempt() {
    let (subscriber, heard) = deaf("retry_items");
    let _default = tracing::subscriber::set_default(subscriber);
    let batcher = batcher(1, refusing(|| "refused").retry_items(pauses(At::Nowhere)));
    assert_eq!(done(good(&batcher, [harmless(1)]).await), [Some(1)]);
    assert!(heard.load(Ordering::SeqCst));
}
