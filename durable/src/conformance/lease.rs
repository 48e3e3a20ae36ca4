//! Who gets which job, and when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{JoinSet, yield_now};
use tokio_util::sync::CancellationToken;

use super::*;

/// Jobs are leased in the order in which they were appended, whatever is appended, leased
/// and settled meanwhile.
pub async fn order<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "order";
    named(NAME, async {
        let store = make_store(NAME).await;
        let jobs = jobs(120);
        let mut appended = 0;
        let mut leased = 0;
        for (append, max) in [(30, 7), (1, 1), (50, 40), (3, 2), (36, 70)] {
            append_new(&store, &jobs[appended..appended + append]).await;
            appended += append;
            let batch = lease(&store, max).await;
            expect_next(&jobs, &mut leased, &batch);
            settle_all(&store, &batch[..batch.len() / 2], &Verdict::Done).await;
        }
        while leased < jobs.len() {
            expect_next(&jobs, &mut leased, &lease(&store, 11).await);
        }
        expect_nothing_due(&store, "all are leased").await;
        store.close().await;
    })
    .await;
}

/// Compares a batch with the next of `jobs`.
pub(super) fn expect_next<L>(jobs: &[NewJob], leased: &mut usize, batch: &[Leased<L>]) {
    let next = jobs[*leased..].iter().take(batch.len());
    let expected: Vec<_> = next.map(|job| (&*job.id, 1)).collect();
    expect_seen(batch, &expected, "in the order in which they were appended");
    *leased += batch.len();
}

/// A lease gives 1 to `max` jobs, each once.
pub async fn lease_limits<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "lease_limits";
    named(NAME, async {
        let store = make_store(NAME).await;
        append_new(&store, &jobs(40)).await;
        let mut ids = BTreeSet::new();
        // `lease` itself compares with the limit.
        for max in [1, 2, 3, 10, 1, usize::MAX]
            .into_iter()
            .chain([usize::MAX; 40])
        {
            for job in lease(&store, max).await {
                assert!(
                    ids.insert(job.id.clone()),
                    "{:?} was given twice while its lease holds",
                    job.id
                );
            }
            if ids.len() == 40 {
                break;
            }
        }
        expect_nothing_due(&store, "all 40 are leased").await;
        store.close().await;
    })
    .await;
}

/// A lease waits until a job is due, and hears of one that is appended meanwhile.
pub async fn lease_waits<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "lease_waits";
    named(NAME, async {
        let store = Arc::new(make_store(NAME).await);
        for (n, new) in jobs(20).into_iter().enumerate() {
            let mut leased = Box::pin(lease(&*store, 3));
            if let Poll::Ready(leased) = poll_once(leased.as_mut()).await {
                panic!("no job is there, and `lease` gave {:?}", seen(&leased));
            }
            let appending = tokio::spawn({
                let (store, new) = (Arc::clone(&store), new.clone());
                async move {
                    for _ in 0..n {
                        yield_now().await;
                    }
                    append_new(&*store, &[new]).await;
                }
            });
            let leased = leased.await;
            expect_seen(&leased, &[(&*new.id, 1)], "appended while `lease` waits");
            join(appending.await);
            settle_all(&*store, &leased, &Verdict::Done).await;
        }
        store.close().await;
    })
    .await;
}

/// Takes what a task came to, or its panic.
pub(super) fn join<T>(joined: Result<T, tokio::task::JoinError>) -> T {
    match joined {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => panic!("a task of the check ended: {error}"),
        },
    }
}

/// A lease that is dropped while it waits loses no job and counts no attempt, also if jobs
/// come in the same moment.
pub async fn dropped_leases<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "dropped_leases";
    named(NAME, async {
        let store = make_store(NAME).await;
        let jobs = jobs(40);
        append_new(&store, &jobs[..4]).await;
        for (n, new) in jobs.iter().enumerate().skip(4).flat_map(|job| [job; 3]) {
            let mut leased = Box::pin(store.lease(1 + n % 3));
            let mut polled = poll_once(leased.as_mut()).await;
            // All rounds but the first of each job append it again, which is a commit, too.
            expect(store.append(std::slice::from_ref(new)).await, "append");
            for _ in 0..n % 4 {
                if polled.is_pending() {
                    yield_now().await;
                    polled = poll_once(leased.as_mut()).await;
                }
            }
            drop(leased);
            if let Poll::Ready(received) = polled {
                settle_all(&store, &expect(received, "lease"), &Verdict::Release).await;
            }
            // Dropped without anything beside it.
            let mut leased = Box::pin(store.lease(2));
            if let Poll::Ready(received) = poll_once(leased.as_mut()).await {
                settle_all(&store, &expect(received, "lease"), &Verdict::Release).await;
            }
        }
        let leased = lease_all(&store, jobs.len()).await;
        let expected: BTreeSet<_> = jobs.iter().map(|job| (&*job.id, 1)).collect();
        let seen = seen_as_set(&leased);
        assert!(
            seen == expected,
            "nobody received a job before: expected each with attempt 1; `lease` gave {seen:?}"
        );
        settle_all(&store, &leased, &Verdict::Done).await;
        store.close().await;
    })
    .await;
}

/// No two live leases are of the same job, and each job comes to exactly one of those who
/// lease at the same time.
pub async fn concurrent_leases<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "concurrent_leases";
    named(NAME, async {
        let store = Arc::new(make_store(NAME).await);
        let jobs = jobs(400);
        let count = jobs.len();
        // How often each job was leased, and which are leased now.
        let ledger = Arc::new(Mutex::new((BTreeMap::<JobId, u32>::new(), BTreeSet::new())));
        let all_done = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let (store, ledger) = (Arc::clone(&store), Arc::clone(&ledger));
            let all_done = all_done.clone();
            tasks.spawn(async move {
                let lock = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    let leased = tokio::select! {
                        leased = store.lease(7) => expect(leased, "lease"),
                        () = all_done.cancelled() => return,
                    };
                    for job in &leased {
                        let (leased, live) = &mut *lock();
                        assert!(
                            live.insert(job.id.clone()),
                            "{:?} has two live leases",
                            job.id
                        );
                        *leased.entry(job.id.clone()).or_default() += 1;
                    }
                    yield_now().await;
                    for job in &leased {
                        lock().1.remove(&job.id);
                    }
                    settle_all(&*store, &leased, &Verdict::Done).await;
                    if lock().0.len() == count {
                        all_done.cancel();
                    }
                }
            });
        }
        for jobs in jobs.chunks(50) {
            append_new(&*store, jobs).await;
        }
        while let Some(joined) = tasks.join_next().await {
            join(joined);
        }
        let (leased, _) =
            std::mem::take(&mut *ledger.lock().unwrap_or_else(PoisonError::into_inner));
        let twice: Vec<_> = leased.iter().filter(|(_, times)| **times > 1).collect();
        assert!(
            leased.len() == count && twice.is_empty(),
            "each of {count} jobs is leased once; {} were leased, more than once {twice:?}",
            leased.len()
        );
        expect_nothing_due(&*store, "all are done").await;
        store.close().await;
    })
    .await;
}

/// A job whose lease ended unsettled, with its time or with its process, is due again and
/// its attempt is counted.
pub async fn redelivery<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "redelivery";
    named(NAME, async {
        let mut store = make_store(NAME).await;
        append_new(&store, &["a", "b", "c"].map(job)).await;
        let leased = lease_all(&store, 3).await;
        settle_all(&store, &leased[..1], &Verdict::Done).await;
        settle_all(&store, &leased[1..2], &retry(Duration::ZERO)).await;
        lease_all(&store, 1).await;
        for attempt in 2..=3 {
            store = lose_leases(store, &make_store, NAME).await;
            let expected = BTreeSet::from([("b", attempt + 1), ("c", attempt)]);
            let leased = lease_all(&store, 2).await;
            let seen = seen_as_set(&leased);
            assert!(
                seen == expected,
                "after leases that ended unsettled: expected {expected:?}; `lease` gave {seen:?}"
            );
            if attempt == 3 {
                settle_all(&store, &leased, &Verdict::Done).await;
            }
        }
        let store = reopen(store, &make_store, NAME).await;
        expect_nothing_due(&store, "all are done").await;
        store.close().await;
    })
    .await;
}

/// A call with nothing in it answers with nothing.
pub async fn empty_calls<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "empty_calls";
    named(NAME, async {
        let store = make_store(NAME).await;
        for jobs in [0, 1] {
            append_new(&store, &super::jobs(jobs)).await;
            append(&store, &[]).await;
            settle(&store, &[]).await;
            expect_count(expect(store.extend(&[]).await, "extend"), 0, "extend");
            expect_count(expect(store.revive(&[]).await, "revive"), 0, "revive");
            expect_count(expect(store.discard(&[]).await, "discard"), 0, "discard");
            expect_count(expect(store.list(None, 9).await, "list"), 0, "list");
            let found = expect(store.depth().await, "depth");
            assert!(
                found.pending() == jobs as u64 && found.dead == 0,
                "{jobs} jobs are in the store; `depth` says {found:?}"
            );
        }
        store.close().await;
    })
    .await;
}
