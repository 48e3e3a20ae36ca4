//! Effects and settlement in one transaction, and appends in the caller's.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backon::ConstantBuilder;
use microbatch_durable::{
    Appended, CancellationToken, DeadLetters, Delivery, Drain, PostgresError, PostgresLease,
    PostgresStore, Settled, Store, Verdict,
};

use crate::job::job;
use crate::server::{connect, open, server};

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn effects(server: &microbatch_postgres::Server, table: &str) -> Vec<String> {
    let client = connect(server).await;
    let sql = format!("SELECT id FROM {table} ORDER BY id");
    let rows = client.query(&sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn effects_are_there_if_and_only_if_the_jobs_are_settled() {
    let Some(server) = server() else {
        return;
    };
    let store = open(
        &server,
        "paired",
        PostgresStore::builder().lease_time(Duration::from_secs(60)),
    )
    .await;
    let mut client = connect(&server).await;
    client
        .batch_execute("CREATE TABLE paired.effects (id text PRIMARY KEY)")
        .await
        .unwrap();
    store.append(&["a", "b", "c"].map(job)).await.unwrap();
    let leased = store.lease(3).await.unwrap();
    let done = |at: usize| (leased[at].lease.clone(), Verdict::Done);

    // Rolled back: neither.
    let transaction = client.transaction().await.unwrap();
    transaction
        .execute("INSERT INTO paired.effects VALUES ('a')", &[])
        .await
        .unwrap();
    store
        .settle_in(&transaction, &[done(0), done(1)])
        .await
        .unwrap();
    transaction.rollback().await.unwrap();
    assert!(effects(&server, "paired.effects").await.is_empty());
    assert_eq!(store.depth().await.unwrap().leased, 3);

    // Committed: both, and durably whatever the session says.
    client
        .batch_execute("SET synchronous_commit = off")
        .await
        .unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction
        .execute("INSERT INTO paired.effects VALUES ('a')", &[])
        .await
        .unwrap();
    store.settle_in(&transaction, &[done(0)]).await.unwrap();
    let setting = transaction
        .query_one("SHOW synchronous_commit", &[])
        .await
        .unwrap();
    assert_eq!(setting.get::<_, &str>(0), "on");
    transaction.commit().await.unwrap();
    let setting = client
        .query_one("SHOW synchronous_commit", &[])
        .await
        .unwrap();
    assert_eq!(
        setting.get::<_, &str>(0),
        "off",
        "for that transaction alone"
    );
    assert_eq!(effects(&server, "paired.effects").await, ["a"]);
    assert_eq!(store.depth().await.unwrap().leased, 2);

    // One lease is lost: neither, although the caller does not look, and the other stays.
    let transaction = client.transaction().await.unwrap();
    transaction
        .execute("INSERT INTO paired.effects VALUES ('b')", &[])
        .await
        .unwrap();
    let error = store
        .settle_in(&transaction, &[done(1), done(0)])
        .await
        .unwrap_err();
    let PostgresError::LeasesLost { jobs } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(jobs, &["a".into()]);
    let _ = transaction.commit().await;
    assert_eq!(effects(&server, "paired.effects").await, ["a"]);
    let leases = [leased[1].lease.clone(), leased[2].lease.clone()];
    assert_eq!(store.extend(&leases).await.unwrap(), [Settled::Held; 2]);

    // Dead and delayed, with a note of each.
    let verdicts = [
        (
            leased[1].lease.clone(),
            Verdict::Dead {
                reason: "no".to_owned(),
            },
        ),
        (
            leased[2].lease.clone(),
            Verdict::Retry {
                after: Duration::from_secs(60),
                reason: String::new(),
            },
        ),
    ];
    let transaction = client.transaction().await.unwrap();
    store.settle_in(&transaction, &verdicts).await.unwrap();
    transaction.commit().await.unwrap();
    let depth = store.depth().await.unwrap();
    assert_eq!(
        (depth.ready, depth.leased, depth.delayed, depth.dead),
        (0, 0, 1, 1)
    );
    assert_eq!(store.list(None, 9).await.unwrap()[0].reason, "no");
}

#[tokio::test]
async fn appends_are_there_if_and_only_if_the_transaction_is() {
    let Some(server) = server() else {
        return;
    };
    let store = open(&server, "appends", PostgresStore::builder()).await;
    let mut client = connect(&server).await;
    client
        .batch_execute("SET synchronous_commit = off")
        .await
        .unwrap();
    let transaction = client.transaction().await.unwrap();
    let jobs = ["b", "a", "a"].map(job);
    let answers = store.append_in(&transaction, &jobs).await.unwrap();
    assert_eq!(answers, [Appended::New, Appended::New, Appended::Duplicate]);
    let setting = transaction
        .query_one("SHOW synchronous_commit", &[])
        .await
        .unwrap();
    assert_eq!(setting.get::<_, &str>(0), "on");
    assert_eq!(store.depth().await.unwrap().pending(), 0);
    transaction.rollback().await.unwrap();
    assert_eq!(store.depth().await.unwrap().pending(), 0);

    // A lease that waits gets what is committed, though it was appended long before.
    let transaction = client.transaction().await.unwrap();
    store.append_in(&transaction, &jobs).await.unwrap();
    store.append(&[job("c")]).await.unwrap();
    assert_eq!(&*store.lease(9).await.unwrap()[0].id, "c");
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.lease(9).await }
    });
    transaction.commit().await.unwrap();
    let leased = waiting.await.unwrap().unwrap();
    let ids: Vec<_> = leased.iter().map(|job| &*job.id).collect();
    assert_eq!(ids, ["b", "a"]);
}

/// Without notices, what was appended before others and committed after them is found too.
#[tokio::test]
async fn what_comes_late_is_found_without_a_notice() {
    let Some(server) = server() else {
        return;
    };
    let builder = PostgresStore::builder().notify(false);
    let store = open(&server, "late", builder).await;
    let mut client = connect(&server).await;
    let transaction = client.transaction().await.unwrap();
    store
        .append_in(&transaction, &[job("early")])
        .await
        .unwrap();
    for n in 0..3 {
        store.append(&[job(&format!("{n}"))]).await.unwrap();
        store.lease(9).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let found = tokio::time::timeout(Duration::from_secs(30), store.lease(9)).await;
    assert_eq!(&*found.expect("it is found").unwrap()[0].id, "early");
}

/// A drain whose processor settles: each effect once, though batches fail, and processors
/// return after they have committed with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_of_deliveries_has_each_effect_once() {
    let Some(server) = server() else {
        return;
    };
    const JOBS: usize = 300;
    let store = open(&server, "once", PostgresStore::builder()).await;
    let client = connect(&server).await;
    client
        .batch_execute("CREATE TABLE once.effects (id text PRIMARY KEY)")
        .await
        .unwrap();
    let jobs: Vec<_> = (0..JOBS).map(|n| job(&format!("{n:04}"))).collect();
    store.append(&jobs).await.unwrap();
    let url = crate::server::url(&server);
    let calls = std::sync::Arc::new(AtomicU32::new(0));
    let settling = store.clone();
    let process = move |batch: Vec<Delivery<String, PostgresLease>>| {
        let (store, url) = (settling.clone(), url.clone());
        let call = calls.fetch_add(1, Ordering::Relaxed);
        async move {
            let (mut client, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            let transaction = client.transaction().await?;
            for delivery in &batch {
                assert_eq!(*delivery.id, *delivery.job);
                let insert = "INSERT INTO once.effects VALUES ($1)";
                transaction.execute(insert, &[&delivery.job]).await?;
            }
            let verdicts: Vec<_> = batch
                .iter()
                .map(|job| (job.lease.clone(), Verdict::Done))
                .collect();
            store.settle_in(&transaction, &verdicts).await?;
            match call % 5 {
                // Fails before the commit.
                1 => return Err("by turn".into()),
                2 => panic!("by turn"),
                _ => {}
            }
            transaction.commit().await?;
            if call % 5 == 3 {
                return Err("after the commit".into());
            }
            Ok::<_, Error>(vec![Verdict::Settled; batch.len()])
        }
    };
    let stop = CancellationToken::new();
    let drain = Drain::deliveries(store.clone(), process)
        .max_batch_size(16)
        .max_in_flight(2)
        .max_attempts(20)
        .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(1)))
        .build()
        .unwrap();
    let draining = tokio::spawn(drain.run(stop.clone()));
    while store.depth().await.unwrap().pending() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    let drained = draining.await.unwrap().unwrap();
    assert_eq!(effects(&server, "once.effects").await.len(), JOBS);
    assert!(
        drained.done > 0 && drained.lost > 0 && drained.retried > 0,
        "{drained:?}"
    );
    assert_eq!(drained.dead, 0, "{drained:?}");
}

/// A caller who gives up waiting for the settlement, and commits all the same.
#[tokio::test]
async fn a_settlement_that_is_given_up_does_not_let_effects_through() {
    let Some(server) = server() else {
        return;
    };
    let store = open(&server, "given_up", PostgresStore::builder()).await;
    let mut client = connect(&server).await;
    let table = "CREATE TABLE given_up.effects (id text PRIMARY KEY)";
    client.batch_execute(table).await.unwrap();
    store.append(&["a", "b"].map(job)).await.unwrap();
    let leased = store.lease(2).await.unwrap();
    let done = leased.iter().map(|job| (job.lease.clone(), Verdict::Done));
    let done: Vec<_> = done.collect();
    store.settle(&done[..1]).await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let insert = "INSERT INTO given_up.effects VALUES ('b')";
    transaction.execute(insert, &[]).await.unwrap();
    // Sent, and not waited for.
    let settling = store.settle_in(&transaction, &done);
    tokio::time::timeout(Duration::ZERO, settling)
        .await
        .unwrap_err();
    let _ = transaction.commit().await;
    assert!(effects(&server, "given_up.effects").await.is_empty());
    assert_eq!(
        store.extend(&[leased[1].lease.clone()]).await.unwrap(),
        [Settled::Held]
    );
}

/// A processor whose leases are extended while its transaction settles them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_before_an_extension_is_done() {
    let Some(server) = server() else {
        return;
    };
    let builder = PostgresStore::builder().lease_time(Duration::from_millis(300));
    let store = open(&server, "extended", builder).await;
    store.append(&["a", "b"].map(job)).await.unwrap();
    let (url, settling) = (crate::server::url(&server), store.clone());
    let process = move |batch: Vec<Delivery<String, PostgresLease>>| {
        let (store, url) = (settling.clone(), url.clone());
        async move {
            let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
            let (mut client, connection) = connected?;
            tokio::spawn(connection);
            let transaction = client.transaction().await?;
            let done = batch.iter().map(|job| (job.lease.clone(), Verdict::Done));
            store
                .settle_in(&transaction, &done.collect::<Vec<_>>())
                .await?;
            // Until an extension waits for these rows: seen from outside of the transaction.
            let (observer, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            let waits = "SELECT count(*) FROM pg_stat_activity
                WHERE wait_event_type = 'Lock' AND query LIKE '%extended AS%'";
            while observer.query_one(waits, &[]).await?.get::<_, i64>(0) == 0 {
                tokio::task::yield_now().await;
            }
            transaction.commit().await?;
            // And a little longer than its answer takes.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, Error>(vec![Verdict::Settled; batch.len()])
        }
    };
    let stop = CancellationToken::new();
    let at_end = stop.clone();
    let drain = Drain::deliveries(store.clone(), process)
        .max_batch_size(2)
        .on_batch(move |_| at_end.cancel());
    let drained = drain.build().unwrap().run(stop).await.unwrap();
    assert_eq!((drained.lost, drained.retried), (0, 0), "{drained:?}");
    assert!(drained.done > 0, "{drained:?}");
}
