//! The store by itself.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use microbatch_durable::{Appended, DeadLetters, NewJob, Refusal, Settled, Store as _, Verdict};

use super::store::SqliteStore;

const LONG: Duration = Duration::from_secs(60);

fn job(id: &str) -> NewJob {
    NewJob {
        id: id.into(),
        codec: "json".into(),
        payload: id.to_owned().into(),
    }
}

fn open(folder: &tempfile::TempDir, lease_time: Duration) -> SqliteStore {
    SqliteStore::open(folder.path().join("jobs.sqlite"), lease_time).unwrap()
}

fn dead(reason: &str) -> Verdict {
    Verdict::Dead {
        reason: reason.to_owned(),
    }
}

#[tokio::test]
async fn it_passes_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    // As long as the suite may have to wait for a lease to end.
    let time = Duration::from_secs(2);
    let open = |name: &str| SqliteStore::open(folder.path().join(name), time).unwrap();
    microbatch_durable::conformance::run(async |name: &str| open(name)).await;
}

#[tokio::test]
async fn each_verdict_does_what_it_says_and_its_lease_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, LONG);
    let names = ["done", "dead", "retry", "release", "settled"];
    assert_eq!(
        store.append(&names.map(job)).await.unwrap(),
        [const { Appended::New }; 5]
    );
    let leased = store.lease(9).await.unwrap();
    let seen: Vec<_> = leased.iter().map(|job| &*job.id).collect();
    assert_eq!(seen, names);
    assert!(
        leased
            .iter()
            .all(|job| job.attempt.get() == 1 && job.payload == *job.id.as_bytes())
    );
    let retry = Verdict::Retry {
        after: LONG,
        reason: String::new(),
    };
    let verdicts = [
        Verdict::Done,
        dead("no"),
        retry,
        Verdict::Release,
        Verdict::Settled,
    ];
    let verdicts: Vec<_> = leased
        .into_iter()
        .map(|job| job.lease)
        .zip(verdicts)
        .collect();
    assert_eq!(store.settle(&verdicts).await.unwrap(), [Settled::Held; 5]);
    // The last was left alone, so its lease goes on.
    let mut again = [Settled::Lost; 5];
    again[4] = Settled::Held;
    assert_eq!(store.settle(&verdicts).await.unwrap(), again);
    let depth = store.depth().await.unwrap();
    assert_eq!(
        (depth.ready, depth.leased, depth.delayed, depth.dead),
        (1, 1, 1, 1)
    );
    let released = store.lease(9).await.unwrap();
    assert_eq!(
        (&*released[0].id, released[0].attempt.get(), released.len()),
        ("release", 1, 1)
    );
    assert_eq!(
        store.append(&names.map(job)).await.unwrap(),
        [const { Appended::Duplicate }; 5]
    );
}

#[tokio::test]
async fn what_is_released_has_its_place_in_line_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, LONG);
    store.append(&["a", "b", "c"].map(job)).await.unwrap();
    let mut first = store.lease(2).await.unwrap();
    let (b, a) = (first.pop().unwrap().lease, first.pop().unwrap().lease);
    let verdicts = [(b, Verdict::Release), (a, Verdict::Release)];
    store.settle(&verdicts).await.unwrap();
    let line = store.lease(9).await.unwrap();
    let line: Vec<_> = line
        .iter()
        .map(|job| (&*job.id, job.attempt.get()))
        .collect();
    assert_eq!(line, [("a", 1), ("b", 1), ("c", 1)]);
}

#[tokio::test]
async fn a_lapsed_lease_is_lost_before_another_has_the_job_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, Duration::from_millis(50));
    store.append(&[job("a")]).await.unwrap();
    let old = store.lease(1).await.unwrap().remove(0);
    // Until the store says that it has lapsed.
    while store.depth().await.unwrap().ready == 0 {
        tokio::task::yield_now().await;
    }
    let done = [(old.lease.clone(), Verdict::Done)];
    assert_eq!(store.settle(&done).await.unwrap(), [Settled::Lost]);
    assert_eq!(
        store
            .extend(std::slice::from_ref(&old.lease))
            .await
            .unwrap(),
        [Settled::Lost]
    );
    let new = open(&folder, LONG).lease(1).await.unwrap().remove(0);
    assert_eq!(new.attempt.get(), 2);
    assert_eq!(store.settle(&done).await.unwrap(), [Settled::Lost]);
    assert_eq!(store.extend(&[old.lease]).await.unwrap(), [Settled::Lost]);
    let done = [(new.lease, Verdict::Done)];
    assert_eq!(store.settle(&done).await.unwrap(), [Settled::Held]);
    assert_eq!(store.depth().await.unwrap().pending(), 0);
}

#[tokio::test]
async fn a_lease_that_lapses_while_its_settlement_waits_for_the_lock_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, Duration::from_millis(500));
    store.append(&[job("a")]).await.unwrap();
    let lease = store.lease(1).await.unwrap().remove(0).lease;
    let sql = rusqlite::Connection::open(folder.path().join("jobs.sqlite")).unwrap();
    sql.execute_batch("BEGIN IMMEDIATE").unwrap();
    let settling = tokio::spawn(async move { store.settle(&[(lease, Verdict::Done)]).await });
    let lapsed = "SELECT due <= unixepoch('subsec') * 1e6 FROM jobs";
    while !sql
        .query_one(lapsed, [], |row| row.get::<_, bool>(0))
        .unwrap()
    {
        tokio::task::yield_now().await;
    }
    sql.execute_batch("ROLLBACK").unwrap();
    assert_eq!(settling.await.unwrap().unwrap(), [Settled::Lost]);
}

#[tokio::test]
async fn an_extended_lease_outlives_its_first_time() {
    let folder = tempfile::tempdir().unwrap();
    // The one that extends holds for long, so that the test need not be quick.
    let short = open(&folder, Duration::from_secs(2));
    let long = open(&folder, LONG);
    short.append(&[job("a"), job("b")]).await.unwrap();
    let leased = short.lease(2).await.unwrap();
    let leases: Vec<_> = leased.into_iter().map(|job| job.lease).collect();
    assert_eq!(long.extend(&leases[..1]).await.unwrap(), [Settled::Held]);
    // `b` lapses, `a` does not.
    let lapsed = long.lease(9).await.unwrap();
    let lapsed: Vec<_> = lapsed.iter().map(|job| &*job.id).collect();
    assert_eq!(lapsed, ["b"]);
    let done = [
        (leases[0].clone(), Verdict::Done),
        (leases[1].clone(), Verdict::Done),
    ];
    assert_eq!(
        long.settle(&done).await.unwrap(),
        [Settled::Held, Settled::Lost]
    );
}

#[tokio::test]
async fn dead_letters_are_listed_revived_and_discarded() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, LONG);
    store.append(&["b", "ä", "a"].map(job)).await.unwrap();
    let leased = store.lease(3).await.unwrap();
    let verdicts: Vec<_> = leased
        .into_iter()
        .map(|job| (job.lease, dead(&job.id)))
        .collect();
    store.settle(&verdicts).await.unwrap();
    let page = store.list(None, 2).await.unwrap();
    let ids: Vec<_> = page
        .iter()
        .map(|job| (&*job.id, &*job.reason, job.attempt))
        .collect();
    assert_eq!(ids, [("a", "a", 1), ("b", "b", 1)]);
    assert!(page[0].appended <= page[0].died);
    let rest = store.list(Some(&page[1].id), 2).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!((&*rest[0].id, &*rest[0].payload), ("ä", "ä".as_bytes()));
    let ids = ["a", "x"].map(Into::into);
    assert_eq!(store.revive(&ids).await.unwrap(), [true, false]);
    assert_eq!(store.revive(&ids).await.unwrap(), [false, false]);
    assert_eq!(
        store.discard(&["b".into(), "a".into()]).await.unwrap(),
        [true, false]
    );
    let answers = store.append(&["a", "b", "ä"].map(job)).await.unwrap();
    assert_eq!(
        answers,
        [Appended::Duplicate, Appended::New, Appended::Duplicate]
    );
    let leased = store.lease(9).await.unwrap();
    let seen: Vec<_> = leased
        .iter()
        .map(|job| (&*job.id, job.attempt.get()))
        .collect();
    assert_eq!(seen, [("a", 1), ("b", 1)]);
}

#[tokio::test]
async fn what_it_cannot_hold_is_refused_and_the_rest_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, LONG);
    let large = NewJob {
        payload: vec![0; (16 << 20) + 1].into(),
        ..job("large")
    };
    let answers = store.append(&[job(""), large, job("a")]).await.unwrap();
    let too_large = Refusal::TooLarge {
        size: (16 << 20) + 1,
        limit: 16 << 20,
    };
    assert_eq!(
        answers,
        [
            Appended::Refused(Refusal::BadId),
            Appended::Refused(too_large),
            Appended::New
        ]
    );
}

#[tokio::test]
async fn a_waiting_lease_wakes_for_a_job_of_its_own_process_and_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let (store, other) = (open(&folder, LONG), open(&folder, LONG));
    for (id, appender) in [("own", &store), ("other", &other)] {
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.lease(1).await }
        });
        appender.append(&[job(id)]).await.unwrap();
        let leased = tokio::time::timeout(LONG, waiting)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(&*leased[0].id, id);
        store
            .settle(&[(leased[0].lease.clone(), Verdict::Done)])
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_dropped_lease_releases_what_it_got() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, LONG);
    store.append(&[job("a"), job("b")]).await.unwrap();
    for polls in 0..40 {
        let mut lease = pin!(store.lease(2));
        for _ in 0..polls % 4 {
            let polled = poll_fn(|cx| Poll::Ready(lease.as_mut().poll(cx))).await;
            if let Poll::Ready(leased) = polled {
                let leases = leased.unwrap().into_iter().map(|job| job.lease);
                let releases: Vec<_> = leases.map(|lease| (lease, Verdict::Release)).collect();
                store.settle(&releases).await.unwrap();
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let leased = tokio::time::timeout(LONG, store.lease(2))
            .await
            .unwrap()
            .unwrap();
        seen.extend(
            leased
                .into_iter()
                .map(|job| (job.id.to_string(), job.attempt.get())),
        );
    }
    seen.sort();
    assert_eq!(seen, [("a".to_owned(), 1), ("b".to_owned(), 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_open_a_new_file_at_once_and_share_its_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let open = |_| {
        let path = path.clone();
        tokio::task::spawn_blocking(move || SqliteStore::open(path, LONG))
    };
    let mut stores = Vec::new();
    for opening in (0..8).map(open).collect::<Vec<_>>() {
        stores.push(opening.await.unwrap().unwrap());
    }
    let jobs: Vec<_> = (0..200).map(|n| job(&format!("{n:03}"))).collect();
    let workers: Vec<_> = stores
        .into_iter()
        .map(|store| {
            let jobs = jobs.clone();
            tokio::spawn(async move {
                store.append(&jobs).await.unwrap();
                let mut done = Vec::new();
                while store.depth().await.unwrap().ready > 0 {
                    let Ok(leased) =
                        tokio::time::timeout(Duration::from_millis(50), store.lease(7)).await
                    else {
                        continue;
                    };
                    for job in leased.unwrap() {
                        assert_eq!(job.attempt.get(), 1);
                        let verdict = [(job.lease, Verdict::Done)];
                        assert_eq!(store.settle(&verdict).await.unwrap(), [Settled::Held]);
                        done.push(job.id);
                    }
                }
                done
            })
        })
        .collect();
    let mut done = Vec::new();
    for worker in workers {
        done.extend(worker.await.unwrap());
    }
    done.sort();
    let all: Vec<_> = jobs.into_iter().map(|job| job.id).collect();
    assert_eq!(done, all, "each once");
}

#[tokio::test]
async fn a_file_that_is_none_is_refused_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let text = "not a database ".repeat(99);
    std::fs::write(&path, &text).unwrap();
    let error = SqliteStore::open(&path, LONG).unwrap_err();
    assert!(error.to_string().contains("not a database"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let started = Instant::now();
    let error = SqliteStore::open(folder.path().join("none/jobs.sqlite"), LONG).unwrap_err();
    assert!(error.to_string().contains("none/jobs.sqlite"), "{error}");
    assert!(started.elapsed() < LONG);
}
