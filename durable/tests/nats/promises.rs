//! What the store promises beyond the suite: among several stores of one stream, and where
//! a process ends between two steps.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use microbatch_durable::{
    Appended, DeadLetters, JetStreamStore, Leased, Settled, Store, Verdict, conformance,
};
use microbatch_nats::{Options, Server, program};
use tokio::time::sleep;

use crate::job::job;
use crate::support::{builder, open, server};

type Job = Leased<microbatch_durable::JetStreamLease>;

async fn lease_one(store: &JetStreamStore) -> Job {
    store.lease(1).await.unwrap().remove(0)
}

async fn settle(store: &JetStreamStore, job: &Job, verdict: Verdict) -> Settled {
    let verdicts = [(job.lease.clone(), verdict)];
    store.settle(&verdicts).await.unwrap()[0]
}

fn dead() -> Verdict {
    Verdict::Dead {
        reason: "no such address".to_owned(),
    }
}

fn retry(after: Duration) -> Verdict {
    Verdict::Retry {
        after,
        reason: "later".to_owned(),
    }
}

async fn bury(store: &JetStreamStore, id: &str) {
    assert_eq!(store.append(&[job(id)]).await.unwrap(), [Appended::New]);
    let job = lease_one(store).await;
    assert_eq!(&*job.id, id);
    assert_eq!(settle(store, &job, dead()).await, Settled::Held);
}

async fn jetstream(server: &Server) -> Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// Sends a message as a store would.
async fn send(jetstream: &Context, subject: &str, headers: &[(&'static str, &str)]) -> u64 {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let sent = jetstream.publish_with_headers(subject.to_owned(), map, "1".into());
    sent.await.unwrap().await.unwrap().sequence
}

#[tokio::test]
async fn a_lease_whose_time_is_over_changes_nothing_for_who_has_the_job() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let short = || builder().lease_time(Duration::from_secs(1));
    let slow = short().connect(server.url()).await.unwrap();
    let next = short().connect(server.url()).await.unwrap();
    slow.append(&[job("a")]).await.unwrap();
    let late = lease_one(&slow).await;
    // Waits for the end of that lease.
    let held = lease_one(&next).await;
    assert_eq!((&*held.id, held.attempt.get()), ("a", 2));
    for verdict in [
        retry(Duration::ZERO),
        Verdict::Release,
        dead(),
        Verdict::Done,
    ] {
        assert_eq!(settle(&slow, &late, verdict).await, Settled::Lost);
    }
    assert_eq!(slow.extend(&[late.lease]).await.unwrap(), [Settled::Lost]);
    let depth = next.depth().await.unwrap();
    assert_eq!((depth.leased, depth.dead), (1, 0));
    assert_eq!(settle(&next, &held, Verdict::Done).await, Settled::Held);
    assert_eq!(next.depth().await.unwrap().pending(), 0);
}

#[tokio::test]
async fn a_released_job_is_given_back_when_nobody_leases_it() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let time = Duration::from_secs(3);
    let idle = builder()
        .lease_time(time)
        .connect(server.url())
        .await
        .unwrap();
    let busy = builder()
        .lease_time(time)
        .connect(server.url())
        .await
        .unwrap();
    idle.append(&[job("a")]).await.unwrap();
    let released = lease_one(&idle).await;
    assert_eq!(
        settle(&idle, &released, Verdict::Release).await,
        Settled::Held
    );
    assert_eq!(idle.depth().await.unwrap().ready, 1);
    let started = std::time::Instant::now();
    let job = lease_one(&busy).await;
    // Its attempt counts.
    assert_eq!((&*job.id, job.attempt.get()), ("a", 2));
    let waited = started.elapsed();
    assert!(waited < time * 2 / 3, "{waited:?}");
    busy.settle(&[(job.lease, Verdict::Done)]).await.unwrap();
}

#[tokio::test]
async fn closing_gives_back_what_was_released() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    // Much longer than this test may take.
    let long = || builder().lease_time(Duration::from_secs(600));
    let store = long().connect(server.url()).await.unwrap();
    store.append(&[job("a")]).await.unwrap();
    let job = lease_one(&store).await;
    settle(&store, &job, Verdict::Release).await;
    store.close().await;
    let closed = store.lease(1).await.unwrap_err();
    assert!(closed.to_string().contains("is closed"), "{closed}");
    let next = long().connect(server.url()).await.unwrap();
    let again = lease_one(&next).await;
    assert_eq!((&*again.id, again.attempt.get()), ("a", 2));
    // Dropped, not closed.
    settle(&next, &again, Verdict::Release).await;
    drop(next);
    let last = long().connect(server.url()).await.unwrap();
    assert_eq!(lease_one(&last).await.attempt.get(), 3);
}

#[tokio::test]
async fn several_stores_share_the_jobs() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let stores = [
        open(&server).await,
        open(&server).await,
        open(&server).await,
    ];
    let jobs: Vec<_> = (0..300).map(|n| job(&n.to_string())).collect();
    let mut seen = BTreeSet::new();
    let (first, rest) = jobs.split_at(150);
    stores[0].append(first).await.unwrap();
    stores[1].append(rest).await.unwrap();
    while seen.len() < jobs.len() {
        let leases = stores.each_ref().map(|store| store.lease(7));
        // One of them waits when there are no more.
        for (at, leased) in leases.into_iter().enumerate() {
            if seen.len() == jobs.len() {
                break;
            }
            for job in leased.await.unwrap() {
                assert!(seen.insert(job.id.clone()), "{} came twice", job.id);
                assert_eq!(
                    settle(&stores[at], &job, Verdict::Done).await,
                    Settled::Held
                );
            }
        }
    }
}

/// Ids of the dead are refused though the server has forgotten their message ids, also by
/// a store that has not seen them die.
#[tokio::test]
async fn the_id_of_a_dead_job_is_taken_for_good() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let window = Duration::from_millis(200);
    let store = builder()
        .dedup_window(window)
        .connect(server.url())
        .await
        .unwrap();
    let other = open(&server).await;
    assert_eq!(other.append(&[job("z")]).await.unwrap(), [Appended::New]);
    let z = lease_one(&other).await;
    assert_eq!(settle(&other, &z, Verdict::Done).await, Settled::Held);
    bury(&store, "a").await;
    bury(&store, "b").await;
    sleep(2 * window).await;
    for store in [&other, &store] {
        let jobs = ["a", "c", "b", "a"].map(job);
        let answers = store.append(&jobs).await.unwrap();
        let new = match &answers[1] {
            Appended::New => 1,
            _ => 0,
        };
        assert_eq!(
            answers
                .iter()
                .filter(|a| **a == Appended::Duplicate)
                .count(),
            4 - new
        );
        assert_eq!(store.depth().await.unwrap().pending(), 1, "`c` alone");
    }
    // The id of what is done is free once the window has passed.
    assert_eq!(other.append(&[job("z")]).await.unwrap(), [Appended::New]);
}

#[tokio::test]
async fn a_discarded_id_is_free_and_then_taken_again() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let store = open(&server).await;
    for _ in 0..3 {
        bury(&store, "a").await;
        let again = [job("a"), job("a")];
        assert_eq!(
            store.append(&again).await.unwrap(),
            [Appended::Duplicate, Appended::Duplicate]
        );
        assert_eq!(store.discard(&["a".into()]).await.unwrap(), [true]);
    }
    assert_eq!(
        store.append(&[job("a"), job("a")]).await.unwrap(),
        [Appended::New, Appended::Duplicate]
    );
    let a = lease_one(&store).await;
    settle(&store, &a, Verdict::Done).await;
    // Done less than the window ago.
    assert_eq!(
        store.append(&[job("a")]).await.unwrap(),
        [Appended::Duplicate]
    );
}

/// A process that ends between the letter and the end of the delivery.
#[tokio::test]
async fn a_death_that_was_not_finished_is_finished_by_the_next_lease() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let short = || builder().lease_time(Duration::from_millis(500));
    let ended = short().connect(server.url()).await.unwrap();
    ended.append(&[job("a")]).await.unwrap();
    let _unsettled = lease_one(&ended).await;
    let jetstream = jetstream(&server).await;
    let headers = [("Microbatch-Sequence", "1"), ("Microbatch-Attempt", "1")];
    send(&jetstream, "microbatch.dead.a", &headers).await;

    let store = short().connect(server.url()).await.unwrap();
    store.append(&[job("b")]).await.unwrap();
    assert_eq!(&*lease_one(&store).await.id, "b");
    // Once the lease of `a` has ended, it is not given to anybody.
    let mut next = Box::pin(store.lease(1));
    let mut b = 0;
    while store.depth().await.unwrap().pending() > 1 {
        tokio::select! {
            leased = &mut next => {
                assert_eq!(&*leased.unwrap()[0].id, "b");
                b += 1;
                next = Box::pin(store.lease(1));
            }
            () = sleep(Duration::from_millis(20)) => {}
        }
        assert!(b < 20, "`a` stays");
    }
    drop(next);
    assert_eq!(store.list(None, 9).await.unwrap().len(), 1);
    assert_eq!(
        store.append(&[job("a")]).await.unwrap(),
        [Appended::Duplicate]
    );
}

/// An append of a dead id whose process ended before it could take itself back.
#[tokio::test]
async fn a_job_with_the_id_of_a_dead_one_is_not_given_to_anybody() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let time = Duration::from_millis(500);
    let quick = || {
        builder()
            .lease_time(time)
            .call_timeout(Duration::from_millis(300))
    };
    let store = quick().connect(server.url()).await.unwrap();
    bury(&store, "a").await;
    let jetstream = jetstream(&server).await;
    send(&jetstream, "microbatch.jobs.a", &[]).await;
    let mut next = Box::pin(store.lease(1));
    for _ in 0..200 {
        if store.depth().await.unwrap().pending() == 0 {
            return;
        }
        tokio::select! {
            leased = &mut next => panic!("it was leased: {leased:?}"),
            () = sleep(Duration::from_millis(20)) => {}
        }
    }
    panic!("it stays");
}

/// A process that ends between the revived job and the end of its letter.
#[tokio::test]
async fn a_revival_that_was_not_finished_is_leased_and_can_be_repeated() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let store = open(&server).await;
    bury(&store, "a").await;
    let jetstream = jetstream(&server).await;
    send(
        &jetstream,
        "microbatch.jobs.a",
        &[("Microbatch-Revived", "1")],
    )
    .await;
    let leased = lease_one(&store).await;
    assert_eq!((&*leased.id, leased.attempt.get()), ("a", 1));
    assert_eq!(store.revive(&["a".into()]).await.unwrap(), [true]);
    assert!(store.list(None, 9).await.unwrap().is_empty());
    assert_eq!(settle(&store, &leased, Verdict::Done).await, Settled::Held);
    assert_eq!(store.depth().await.unwrap().pending(), 0);
}

/// What has the subject of a revived job, and no right to it, makes way.
#[tokio::test]
async fn a_revival_takes_the_place_of_a_job_that_was_not_taken_back() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let store = open(&server).await;
    bury(&store, "a").await;
    let jetstream = jetstream(&server).await;
    send(&jetstream, "microbatch.jobs.a", &[]).await;
    assert_eq!(store.revive(&["a".into()]).await.unwrap(), [true]);
    assert_eq!(store.depth().await.unwrap().pending(), 1);
    let leased = lease_one(&store).await;
    assert_eq!(leased.payload, job("a").payload);
}

/// More than one page of letters that others have written.
#[tokio::test]
async fn letters_of_other_processes_are_listed_in_order() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let (mine, theirs) = (open(&server).await, open(&server).await);
    let mut expected = Vec::new();
    // First some, which are read one by one, then many, which are read as a list.
    for count in [3, 700] {
        let ids: Vec<_> = (0..count)
            .map(|n| format!("{count}-{}", n * 7919 % count))
            .collect();
        let jobs: Vec<_> = ids.iter().map(|id| job(id)).collect();
        theirs.append(&jobs).await.unwrap();
        let mut left = jobs.len();
        while left > 0 {
            let leased = theirs.lease(left).await.unwrap();
            left -= leased.len();
            let verdicts: Vec<_> = leased.into_iter().map(|job| (job.lease, dead())).collect();
            theirs.settle(&verdicts).await.unwrap();
        }
        expected.extend(ids);
        expected.sort_unstable();
        for store in [&mine, &theirs] {
            let mut listed: Vec<String> = Vec::new();
            loop {
                let after = listed.last().map(|id| id.as_str().into());
                let page = store.list(after.as_ref(), 100).await.unwrap();
                listed.extend(page.iter().map(|letter| letter.id.to_string()));
                if page.len() < 100 {
                    break;
                }
            }
            assert_eq!(listed, expected);
        }
    }
    let ids: Vec<_> = expected.iter().map(|id| id.as_str().into()).collect();
    let revived = mine.revive(&ids).await.unwrap();
    assert!(revived.iter().all(|revived| *revived));
    assert!(theirs.list(None, usize::MAX).await.unwrap().is_empty());
    assert_eq!(theirs.depth().await.unwrap().ready, 703);
}

/// With the strictest setting of the server, which the floor does not have.
#[tokio::test]
async fn a_server_that_syncs_always() {
    let Some(program) = program().filter(|program| program.version >= (2, 10, 0)) else {
        return;
    };
    let options = Options {
        sync_always: true,
        ..Options::default()
    };
    let server = Server::start(&program, options).unwrap();
    let make_store = async |name: &str| builder().stream(name).connect(server.url()).await.unwrap();
    conformance::appended_jobs_survive(make_store).await;
    conformance::dead_letters(make_store).await;
}

/// The same, when somebody discards the letter before the job is delivered again.
#[tokio::test]
async fn a_death_that_was_not_finished_is_discarded_whole() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let store = open(&server).await;
    store.append(&[job("a"), job("b")]).await.unwrap();
    let jetstream = jetstream(&server).await;
    send(
        &jetstream,
        "microbatch.dead.a",
        &[("Microbatch-Sequence", "1")],
    )
    .await;
    // Of a stream that was made anew, in which another job has this sequence.
    send(
        &jetstream,
        "microbatch.dead.old",
        &[("Microbatch-Sequence", "2")],
    )
    .await;
    let ids = ["a".into(), "old".into()];
    assert_eq!(store.discard(&ids).await.unwrap(), [true, true]);
    let leased = store.lease(9).await.unwrap();
    assert_eq!(leased.len(), 1, "{leased:?}");
    assert_eq!(&*leased[0].id, "b");
}
