//! The store as a whole: its counts, a drain over it, a large backlog.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use backon::ConstantBuilder;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::drain::Drain;

async fn expect_depth<S: Store>(store: &S, counts: [u64; 4], oldest: Option<SystemTime>) {
    let found = expect(store.depth().await, "depth");
    compare(found, counts, oldest);
}

/// The same of a store that was opened again after jobs were delayed.
async fn expect_depth_again<S: Store>(store: &S, counts: [u64; 4], oldest: Option<SystemTime>) {
    let found = expect(store.depth().await, "depth");
    compare(with_delays(store, found, counts[2]), counts, oldest);
}

fn compare(found: Depth, counts: [u64; 4], oldest: Option<SystemTime>) {
    let [ready, leased, delayed, dead] = counts;
    let expected = Depth {
        ready,
        leased,
        delayed,
        dead,
        oldest,
    };
    assert!(
        found == expected,
        "expected {expected:?}; `depth` says {found:?}"
    );
}

/// Jobs are counted by their state, and the oldest one that is not dead is known.
pub async fn depth<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "depth";
    named(NAME, async {
        let store = make_store(NAME).await;
        expect_depth(&store, [0; 4], None).await;
        append_new(&store, &["a", "b", "c", "d", "e"].map(job)).await;
        let first = lease(&store, 1).await;
        let oldest = Some(first[0].appended);
        expect_depth(&store, [4, 1, 0, 0], oldest).await;
        let mut leased = lease_all(&store, 4).await;
        expect_depth(&store, [0, 5, 0, 0], oldest).await;
        settle_all(&store, &first, &retry(LATER)).await;
        settle_all(&store, &leased[3..], &Verdict::Release).await;
        expect_depth(&store, [1, 3, 1, 0], oldest).await;
        settle_all(&store, &leased[2..3], &dead("no")).await;
        settle_all(&store, &leased[..1], &Verdict::Done).await;
        expect_depth(&store, [1, 1, 1, 1], oldest).await;
        settle_all(&store, &leased[1..2], &Verdict::Done).await;
        leased = lease(&store, 1).await;
        expect_seen(&leased, &[("e", 1)], "released");
        settle_all(&store, &leased, &Verdict::Done).await;
        expect_depth(&store, [0, 0, 1, 1], oldest).await;
        let store = reopen(store, &make_store, NAME).await;
        expect_depth_again(&store, [0, 0, 1, 1], oldest).await;
        expect(store.discard(&["d".into()]).await, "discard");
        expect_depth_again(&store, [0, 0, 1, 0], oldest).await;
        append_new(&store, &["f", "g"].map(job)).await;
        expect_depth_again(&store, [2, 0, 1, 0], oldest).await;
        store.close().await;

        const AGE: &str = "depth_age";
        let store = make_store(AGE).await;
        for id in ["a", "b", "c"] {
            append_new(&store, &[job(id)]).await;
            // Another moment for each, by any clock that counts milliseconds.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let leased = lease_all(&store, 3).await;
        let ages: Vec<_> = leased.iter().map(|job| job.appended).collect();
        assert!(
            ages.is_sorted() && ages[0] < ages[2],
            "appended one after another; `lease` gave {ages:?}"
        );
        expect_depth(&store, [0, 3, 0, 0], Some(ages[0])).await;
        settle_all(&store, &leased[..1], &Verdict::Done).await;
        expect_depth(&store, [0, 2, 0, 0], Some(ages[1])).await;
        settle_all(&store, &leased[1..2], &dead("no")).await;
        expect_depth(&store, [0, 1, 0, 1], Some(ages[2])).await;
        settle_all(&store, &leased[2..], &Verdict::Done).await;
        expect_depth(&store, [0, 0, 0, 1], None).await;
        store.close().await;
    })
    .await;
}

/// Of the jobs that a [`Drain`] has from the store, the one that always fails is dead after
/// its last attempt, with a reason. All others are done, also those that shared its batch.
pub async fn drain<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "drain";
    const MAX_ATTEMPTS: u32 = 3;
    named(NAME, async {
        let store = Arc::new(make_store(NAME).await);
        let mut jobs = jobs(20);
        let poison = "poison";
        jobs[7] = job(poison);
        append_new(&*store, &jobs).await;
        let processed = Arc::new(Mutex::new(BTreeSet::new()));
        let process = {
            let processed = Arc::clone(&processed);
            move |jobs: Vec<String>| {
                let fails = jobs.iter().any(|job| job == poison);
                let results = vec![(); jobs.len()];
                if !fails {
                    let mut processed = processed.lock().unwrap_or_else(PoisonError::into_inner);
                    processed.extend(jobs);
                }
                async move {
                    if fails {
                        Err("it is poison")
                    } else {
                        Ok(results)
                    }
                }
            }
        };
        let cancel = CancellationToken::new();
        let settled = Mutex::new(0);
        let (all, all_settled) = (jobs.len(), cancel.clone());
        let drain = Drain::builder(Arc::clone(&store), process)
            .max_batch_size(8)
            .max_attempts(MAX_ATTEMPTS)
            .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(1)))
            .on_batch(move |report| {
                let mut settled = settled.lock().unwrap_or_else(PoisonError::into_inner);
                *settled += report.done + report.dead + report.unknown;
                if *settled >= all {
                    all_settled.cancel();
                }
            })
            .build();
        let drained = expect(expect(drain, "build").run(cancel).await, "run");
        let expected = jobs.iter().filter(|job| &*job.id != poison);
        let expected: BTreeSet<_> = expected.map(|job| job.id.to_string()).collect();
        let processed =
            std::mem::take(&mut *processed.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(
            processed == expected,
            "expected all but the poison to be processed; these were: {processed:?}"
        );
        let letters = expect(store.list(None, 99).await, "list");
        assert!(
            letters.len() == 1
                && &*letters[0].id == poison
                && letters[0].attempt == MAX_ATTEMPTS
                && letters[0].reason.contains("it is poison"),
            "expected the poison dead after attempt {MAX_ATTEMPTS} with its reason; `list` gave \
             {letters:?}"
        );
        expect_depth(&*store, [0, 0, 0, 1], None).await;
        assert!(
            drained.store_errors == 0,
            "the store did not fail; {drained:?}"
        );
        store.close().await;
    })
    .await;
}

/// A backlog of 100 000 jobs is appended, leased in order, and settled.
pub async fn backlog<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "backlog";
    const JOBS: u64 = 100_000;
    named(NAME, async {
        let store = make_store(NAME).await;
        let jobs = jobs(JOBS as usize);
        for jobs in jobs.chunks(1000) {
            append_new(&store, jobs).await;
        }
        let found = expect(store.depth().await, "depth");
        assert!(
            found.ready == JOBS && found.pending() == JOBS,
            "{JOBS} jobs are ready; `depth` says {found:?}"
        );
        let mut leased = 0;
        while leased < jobs.len() {
            let batch = lease(&store, 1000).await;
            super::lease::expect_next(&jobs, &mut leased, &batch);
            settle_all(&store, &batch, &Verdict::Done).await;
        }
        expect_depth(&store, [0; 4], None).await;
        store.close().await;
    })
    .await;
}
