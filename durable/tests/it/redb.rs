//! What is particular to the store in a file.

use std::time::Duration;

use microbatch_durable::{Appended, DeadLetters, RedbError, RedbStore, Settled, Store, Verdict};

use crate::support::job;

#[tokio::test]
async fn what_is_unsettled_comes_back_at_open_with_its_attempt_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let store = RedbStore::open(&path).await.unwrap();
    store
        .append(&[job("a"), job("b"), job("c"), job("d")])
        .await
        .unwrap();
    let leased = store.lease(3).await.unwrap();
    let verdicts = [
        (leased[0].lease.clone(), Verdict::Done),
        (
            leased[1].lease.clone(),
            Verdict::Dead {
                reason: "no".to_owned(),
            },
        ),
    ];
    assert_eq!(store.settle(&verdicts).await.unwrap(), [Settled::Held; 2]);
    store.close().await;
    let error = store.depth().await.unwrap_err();
    assert!(matches!(error, RedbError::Closed { .. }), "{error:?}");

    let store = RedbStore::open(&path).await.unwrap();
    let depth = store.depth().await.unwrap();
    assert_eq!((depth.ready, depth.leased, depth.dead), (2, 0, 1));
    let again = store
        .append(&[job("a"), job("b"), job("c"), job("e")])
        .await
        .unwrap();
    assert_eq!(again[..3], [const { Appended::Duplicate }; 3]);
    let leased = store.lease(9).await.unwrap();
    let seen: Vec<_> = leased
        .iter()
        .map(|job| (&*job.id, job.attempt.get()))
        .collect();
    assert_eq!(seen, [("c", 2), ("d", 1), ("e", 1)]);
    assert_eq!(store.list(None, 9).await.unwrap()[0].reason, "no");
    store.close().await;
}

#[tokio::test]
async fn the_lease_of_an_earlier_opening_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let store = RedbStore::open(&path).await.unwrap();
    store.append(&[job("a")]).await.unwrap();
    let old = store.lease(1).await.unwrap().remove(0).lease;
    store.close().await;
    let store = RedbStore::open(&path).await.unwrap();
    let new = store.lease(1).await.unwrap().remove(0).lease;
    assert_eq!(
        store.settle(&[(old, Verdict::Done)]).await.unwrap(),
        [Settled::Lost]
    );
    assert_eq!(
        store.settle(&[(new, Verdict::Done)]).await.unwrap(),
        [Settled::Held]
    );
    store.close().await;
}

#[tokio::test]
async fn a_second_store_on_the_same_file_is_told_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let store = RedbStore::open(&path).await.unwrap();
    let error = RedbStore::open(&path).await.unwrap_err();
    let expected = format!("this process ({})", std::process::id());
    assert!(
        matches!(&error, RedbError::InUse { holder, .. } if *holder == expected),
        "{error}"
    );
    store.close().await;
    RedbStore::open(&path).await.unwrap().close().await;
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "only the file is left"
    );
}

#[tokio::test]
async fn a_store_that_is_dropped_is_closed_soon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    drop(RedbStore::open(&path).await.unwrap());
    let reopened = async {
        loop {
            match RedbStore::open(&path).await {
                Ok(store) => return store,
                Err(RedbError::InUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reopened)
        .await
        .unwrap()
        .close()
        .await;
}

#[tokio::test]
async fn a_dropped_lease_releases_what_it_got() {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(folder.path().join("jobs.redb"))
        .await
        .unwrap();
    store.append(&[job("a"), job("b")]).await.unwrap();
    for _ in 0..50 {
        // Polled once, which sends the command, and dropped before the answer.
        let mut lease = Box::pin(store.lease(2));
        assert!(futures_lite_poll(lease.as_mut()).await);
        drop(lease);
    }
    let leased = store.lease(2).await.unwrap();
    let mut seen: Vec<_> = leased
        .iter()
        .map(|job| (&*job.id, job.attempt.get()))
        .collect();
    if seen.len() == 1 {
        let rest = store.lease(2).await.unwrap();
        assert_eq!((&*rest[0].id, rest[0].attempt.get()), ("b", 1));
        seen.push(("b", 1));
    }
    assert_eq!(seen, [("a", 1), ("b", 1)]);
    store.close().await;
}

/// Polls a future once; says whether it is pending.
async fn futures_lite_poll<F: Future + Unpin>(mut future: F) -> bool {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut future).poll(cx).is_pending())
    })
    .await
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none").join("jobs.redb");
    let error = RedbStore::open(&path).await.unwrap_err();
    assert!(
        matches!(&error, RedbError::Io { path: named, .. } if *named == path),
        "{error:?}"
    );
    assert!(error.to_string().contains("jobs.redb"));
}

#[tokio::test]
async fn a_delayed_job_comes_when_it_is_due_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let store = RedbStore::open(&path).await.unwrap();
    store.append(&[job("a")]).await.unwrap();
    let lease = store.lease(1).await.unwrap().remove(0).lease;
    let after = Duration::from_millis(150);
    let started = std::time::Instant::now();
    let retry = Verdict::Retry {
        after,
        reason: "later".to_owned(),
    };
    store.settle(&[(lease, retry)]).await.unwrap();
    assert_eq!(store.depth().await.unwrap().delayed, 1);
    store.close().await;
    let store = RedbStore::open(&path).await.unwrap();
    let leased = store.lease(1).await.unwrap();
    assert!(started.elapsed() >= after);
    assert_eq!(leased[0].attempt.get(), 2);
    store.close().await;
}
