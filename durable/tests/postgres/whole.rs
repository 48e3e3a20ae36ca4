//! A front and drains on it.

use std::time::Duration;

use microbatch_durable::{
    Appended, CancellationToken, Durable, PostgresStore, Settled, Store, Verdict,
};
use tokio::time::Instant;

use crate::job::job;
use crate::server::{connect, open, server};

/// A store that waits hears of what another appends; without notices it asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_lease_hears_of_others() {
    let Some(server) = server() else {
        return;
    };
    for (notify, longest) in [(true, 60), (false, 1)] {
        let queue = format!("hears-{notify}");
        let builder = PostgresStore::builder().notify(notify).queue(&queue);
        // With notices, hours would pass without one.
        let drain = builder.clone().poll_interval(Duration::from_secs(
            longest * 3600 * u64::from(notify) + longest,
        ));
        let drain = open(&server, "hears", drain).await;
        let front = open(&server, "hears", builder).await;
        for n in 0..5 {
            let waiting = tokio::spawn({
                let drain = drain.clone();
                async move { drain.lease(1).await }
            });
            // It may be anywhere on its way to wait.
            tokio::time::sleep(Duration::from_millis(n * 20)).await;
            front.append(&[job(&format!("{n}"))]).await.unwrap();
            let leased = tokio::time::timeout(Duration::from_secs(30), waiting).await;
            let leased = leased
                .expect("it is heard of, or asked for")
                .unwrap()
                .unwrap();
            let done = [(leased[0].lease.clone(), Verdict::Done)];
            drain.settle(&done).await.unwrap();
        }
    }
}

/// A lease ends with its time, also if nobody else has asked for the job yet.
#[tokio::test]
async fn a_lease_that_has_lapsed_settles_and_extends_nothing() {
    let Some(server) = server() else {
        return;
    };
    let builder = PostgresStore::builder().lease_time(Duration::from_millis(100));
    let store = open(&server, "lapsed", builder).await;
    store.append(&[job("a")]).await.unwrap();
    let lease = store.lease(1).await.unwrap().remove(0).lease;
    while store.depth().await.unwrap().ready == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let done = [(lease.clone(), Verdict::Done)];
    assert_eq!(store.settle(&done).await.unwrap(), [Settled::Lost]);
    assert_eq!(store.extend(&[lease]).await.unwrap(), [Settled::Lost]);
    assert_eq!(store.lease(1).await.unwrap()[0].attempt.get(), 2);
}

#[tokio::test]
async fn ids_that_are_free_are_forgotten() {
    let Some(server) = server() else {
        return;
    };
    let builder = || PostgresStore::builder().dedup_window(Duration::from_millis(1));
    let store = open(&server, "forgotten", builder()).await;
    let jobs: Vec<_> = (0..25_000).map(|n| job(&format!("{n}"))).collect();
    store.append(&jobs).await.unwrap();
    let leased = store.lease(jobs.len()).await.unwrap();
    let verdicts: Vec<_> = leased
        .into_iter()
        .map(|job| (job.lease, Verdict::Done))
        .collect();
    store.settle(&verdicts).await.unwrap();
    // A new one does it with its first lease, in as many parts as it needs.
    let other = open(&server, "forgotten", builder()).await;
    let client = connect(&server).await;
    let started = Instant::now();
    loop {
        let _ = tokio::time::timeout(Duration::from_millis(50), other.lease(1)).await;
        let left = client
            .query_one("SELECT count(*) FROM forgotten.ids", &[])
            .await
            .unwrap();
        if left.get::<_, i64>(0) == 0 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{left:?}");
    }
}

/// Ids that are settled and appended at the same time: each job is processed once, as the
/// window says, and never twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_meets_the_settlement_of_its_job_is_a_duplicate() {
    let Some(server) = server() else {
        return;
    };
    let store = open(&server, "meets", PostgresStore::builder()).await;
    for round in 0..300 {
        let jobs: Vec<_> = (0..8).map(|n| job(&format!("{round}-{n}"))).collect();
        store.append(&jobs).await.unwrap();
        let leased = store.lease(8).await.unwrap();
        let verdicts: Vec<_> = leased
            .into_iter()
            .map(|job| (job.lease, Verdict::Done))
            .collect();
        let (settled, first, second) = tokio::join!(
            store.settle(&verdicts),
            store.append(&jobs),
            store.append(&jobs)
        );
        settled.unwrap();
        for answers in [first.unwrap(), second.unwrap()] {
            assert_eq!(answers, vec![Appended::Duplicate; 8]);
        }
    }
    assert_eq!(store.depth().await.unwrap().pending(), 0);
}

/// Many callers over few ids and many stores: nothing hangs, and each id is new once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_of_the_same_ids_do_not_lock_each_other_out() {
    let Some(server) = server() else {
        return;
    };
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8_u64 {
        let store = open(&server, "deadlock", PostgresStore::builder()).await;
        callers.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(caller);
            let mut new = 0;
            for round in 0..50 {
                let mut jobs: Vec<_> = (0..60).map(|n| job(&format!("{round}-{n}"))).collect();
                rng.shuffle(&mut jobs);
                let answers = store.append(&jobs).await.unwrap();
                new += answers
                    .iter()
                    .filter(|answer| **answer == Appended::New)
                    .count();
            }
            new
        });
    }
    assert_eq!(callers.join_all().await.iter().sum::<usize>(), 50 * 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_with_a_limit_of_jobs_waits_for_the_drain() {
    let Some(server) = server() else {
        return;
    };
    let store = open(&server, "limit", PostgresStore::builder()).await;
    let front = Durable::<u32>::builder(store.clone())
        .max_pending(10)
        .build_running(CancellationToken::new())
        .unwrap();
    let stop = CancellationToken::new();
    let drain = microbatch_durable::Drain::builder(store.clone(), |jobs: Vec<u32>| async move {
        Ok::<_, std::io::Error>(vec![(); jobs.len()])
    });
    let draining = tokio::spawn(drain.build().unwrap().run(stop.clone()));
    for n in 0..200 {
        front.submit(format!("{n}"), n).await.unwrap();
    }
    while store.depth().await.unwrap().pending() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    assert_eq!(draining.await.unwrap().unwrap().done, 200);
}
