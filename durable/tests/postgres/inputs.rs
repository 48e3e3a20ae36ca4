//! Errors that name what is wrong, with the jobs where they were.

use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use microbatch_durable::{
    Appended, DeadLetters, NewJob, PostgresError, PostgresStore, Refusal, Store, Verdict,
};
use tokio_postgres::NoTls;

use crate::job::job;
use crate::server::{connect, open, server, url};

async fn refused(url: &str) -> PostgresError {
    PostgresStore::connect(url).await.unwrap_err()
}

#[tokio::test]
async fn a_server_that_cannot_be_reached() {
    let folder = tempfile::tempdir().unwrap();
    let error = refused(&format!("host={} user=postgres", folder.path().display())).await;
    assert!(
        matches!(error, PostgresError::Unreachable { .. }),
        "{error:?}"
    );
    // A listener that says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let builder = PostgresStore::builder().call_timeout(Duration::from_millis(200));
    let url = format!(
        "host=127.0.0.1 port={} user=a",
        silent.local_addr().unwrap().port()
    );
    let started = tokio::time::Instant::now();
    let error = builder.connect(&url).await.unwrap_err();
    assert!(
        matches!(
            error,
            PostgresError::TimedOut { .. } | PostgresError::Unreachable { .. }
        ),
        "{error:?}",
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_user_or_a_database_that_the_server_does_not_know() {
    let Some(server) = server() else {
        return;
    };
    for url in [
        format!(
            "host={} user=nobody-of-that-name",
            server.socket().display()
        ),
        format!("{} dbname=no-such-database", url(&server)),
    ] {
        let error = refused(&url).await;
        assert!(
            matches!(error, PostgresError::Credentials { .. }),
            "{error:?}"
        );
        let text = std::error::Error::source(&error)
            .unwrap()
            .source()
            .unwrap()
            .to_string();
        assert!(text.contains("does not exist"), "{text}");
    }
    let error = refused("postgres://[").await;
    assert!(
        matches!(error, PostgresError::BadOption { option: "url", .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_password_that_is_wrong_or_missing() {
    let Some(programs) = microbatch_postgres::programs().next() else {
        // It says so.
        return drop(server());
    };
    let server = microbatch_postgres::Server::start_on_port(programs).unwrap();
    server.add_user("app", "right").unwrap();
    let port = server.port().unwrap();
    let url =
        |password: &str| format!("host=127.0.0.1 port={port} user=app dbname=postgres {password}");
    PostgresStore::connect(&url("password=right"))
        .await
        .unwrap();
    let error = refused(&url("password=wrong")).await;
    assert!(
        matches!(error, PostgresError::Credentials { .. }),
        "{error:?}"
    );
    let error = refused(&url("")).await;
    let PostgresError::BadOption {
        option: "url",
        reason,
    } = &error
    else {
        panic!("{error:?}");
    };
    assert!(reason.contains("password missing"), "{reason}");
}

#[tokio::test]
async fn a_role_without_rights() {
    let Some(server) = server() else {
        return;
    };
    let owner = open(&server, "rights", PostgresStore::builder()).await;
    owner.append(&[job("a")]).await.unwrap();
    connect(&server)
        .await
        .batch_execute("CREATE ROLE guest LOGIN")
        .await
        .unwrap();
    let url = format!(
        "host={} user=guest dbname=postgres",
        server.socket().display()
    );
    let guest = PostgresStore::builder()
        .schema("rights")
        .connect(&url)
        .await
        .unwrap();
    for error in [
        guest.append(&[job("b")]).await.unwrap_err(),
        guest.lease(1).await.unwrap_err(),
        guest.depth().await.unwrap_err(),
        guest.list(None, 1).await.unwrap_err(),
        guest.migrate().await.unwrap_err(),
    ] {
        assert!(
            matches!(error, PostgresError::Forbidden { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("rights"), "{error}");
    }
    let elsewhere = PostgresStore::builder()
        .schema("elsewhere")
        .connect(&url)
        .await
        .unwrap();
    let error = elsewhere.migrate().await.unwrap_err();
    assert!(
        matches!(error, PostgresError::Forbidden { .. }),
        "{error:?}"
    );
    assert_eq!(&*owner.lease(9).await.unwrap()[0].id, "a");

    // What the README says is enough.
    let grants = "GRANT USAGE ON SCHEMA rights TO guest;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA rights TO guest;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA rights TO guest";
    connect(&server).await.batch_execute(grants).await.unwrap();
    guest.migrate().await.unwrap();
    guest.append(&["b", "c"].map(job)).await.unwrap();
    let leased = guest.lease(2).await.unwrap();
    assert_eq!(leased.len(), 2);
    let dead = Verdict::Dead {
        reason: "no".to_owned(),
    };
    let verdicts = [
        (leased[0].lease.clone(), Verdict::Done),
        (leased[1].lease.clone(), dead),
    ];
    guest.settle(&verdicts).await.unwrap();
    assert_eq!(guest.revive(&["c".into()]).await.unwrap(), [true]);
}

#[tokio::test]
async fn tables_that_are_missing() {
    let Some(server) = server() else {
        return;
    };
    let store = PostgresStore::builder()
        .schema("nothing")
        .connect(&url(&server))
        .await
        .unwrap();
    let missing = |error: PostgresError| {
        assert!(
            matches!(error, PostgresError::NotMigrated { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("`migrate`"), "{error}");
    };
    missing(store.append(&[job("a")]).await.unwrap_err());
    missing(store.lease(1).await.unwrap_err());
    missing(store.depth().await.unwrap_err());
    store.migrate().await.unwrap();
    assert_eq!(store.append(&[job("a")]).await.unwrap(), [Appended::New]);
    // Somebody drops a table; the jobs of the others stay.
    let client = connect(&server).await;
    client
        .batch_execute("ALTER TABLE nothing.dead_jobs RENAME TO away")
        .await
        .unwrap();
    missing(store.list(None, 1).await.unwrap_err());
    missing(store.depth().await.unwrap_err());
    client
        .batch_execute("ALTER TABLE nothing.away RENAME TO dead_jobs")
        .await
        .unwrap();
    assert_eq!(store.depth().await.unwrap().ready, 1);
}

#[tokio::test]
async fn a_pool_that_is_exhausted() {
    let Some(server) = server() else {
        return;
    };
    let config = url(&server).parse().unwrap();
    let pool = Pool::builder(Manager::new(config, NoTls))
        .max_size(1)
        .runtime(deadpool_postgres::Runtime::Tokio1)
        .build()
        .unwrap();
    let builder = PostgresStore::builder().schema("exhausted");
    let store = builder
        .call_timeout(Duration::from_millis(300))
        .pool(pool.clone())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    store.append(&[job("a")]).await.unwrap();
    let held = pool.get().await.unwrap();
    for error in [
        store.append(&[job("b")]).await.unwrap_err(),
        store.lease(1).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, PostgresError::PoolExhausted { .. }),
            "{error:?}"
        );
    }
    drop(held);
    assert_eq!(store.append(&[job("b")]).await.unwrap(), [Appended::New]);
    let leased = store.lease(9).await.unwrap();
    assert_eq!(leased.len(), 2);
    assert!(leased.iter().all(|job| job.attempt.get() == 1));
    store.close().await;
    assert!(matches!(
        store.depth().await.unwrap_err(),
        PostgresError::Closed
    ));
    pool.get()
        .await
        .unwrap()
        .batch_execute("SELECT 1")
        .await
        .unwrap();
}

/// A row that somebody has locked keeps a call waiting, no longer than it may.
#[tokio::test]
async fn a_call_that_waits_for_a_lock() {
    let Some(server) = server() else {
        return;
    };
    let builder = PostgresStore::builder().call_timeout(Duration::from_millis(300));
    let store = open(&server, "locked", builder).await;
    store.append(&["a", "b"].map(job)).await.unwrap();
    let leased = store.lease(2).await.unwrap();
    let client = connect(&server).await;
    client
        .batch_execute("BEGIN; SELECT * FROM locked.jobs FOR UPDATE")
        .await
        .unwrap();
    let done = [(leased[0].lease.clone(), Verdict::Done)];
    let error = store.settle(&done).await.unwrap_err();
    assert!(matches!(error, PostgresError::TimedOut { .. }), "{error:?}");
    // Others are not kept waiting by what was given up.
    assert_eq!(store.depth().await.unwrap().leased, 2);
    client.batch_execute("ROLLBACK").await.unwrap();
    // It may have been done by the call that was given up.
    store.settle(&done).await.unwrap();
    assert_eq!(store.depth().await.unwrap().leased, 1);
}

#[tokio::test]
async fn payloads_over_the_limit_and_codecs_that_cannot_be_stored() {
    let Some(server) = server() else {
        return;
    };
    let store = open(&server, "payloads", PostgresStore::builder().max_payload(3)).await;
    let of = |id: &str, codec: &str, payload: &'static str| NewJob {
        codec: codec.into(),
        payload: payload.into(),
        ..job(id)
    };
    let jobs = [
        of("a", "json", "1234"),
        of("b", "js\0on", "123"),
        of("c", "json", "123"),
    ];
    let answers = store.append(&jobs).await.unwrap();
    assert_eq!(
        answers[0],
        Appended::Refused(Refusal::TooLarge { size: 4, limit: 3 })
    );
    assert!(
        matches!(&answers[1], Appended::Refused(Refusal::Unencodable { .. })),
        "{answers:?}"
    );
    assert_eq!(answers[2], Appended::New);

    // More than a statement takes, in one append and in one lease: in order, none lost, and
    // leased in parts.
    let store = open(&server, "payloads", PostgresStore::builder().queue("large")).await;
    let large = |id: &str| NewJob {
        payload: vec![7; 16 << 20].into(),
        ..job(id)
    };
    let ids: Vec<_> = (0..10).rev().map(|n| format!("large-{n}")).collect();
    let jobs: Vec<_> = ids.iter().map(|id| large(id)).collect();
    assert_eq!(store.append(&jobs).await.unwrap(), vec![Appended::New; 10]);
    assert_eq!(
        store.append(&jobs).await.unwrap(),
        vec![Appended::Duplicate; 10]
    );
    let mut leased = Vec::new();
    while leased.len() < ids.len() {
        let part = store.lease(100).await.unwrap();
        assert!(part.len() <= 5, "{} jobs of 16 MiB at once", part.len());
        assert!(part.iter().all(|job| job.attempt.get() == 1));
        leased.extend(part.into_iter().map(|job| job.id.to_string()));
    }
    assert_eq!(leased, ids);
}

#[tokio::test]
async fn options_that_cannot_be() {
    let builder = PostgresStore::builder;
    for (builder, name) in [
        (builder().schema(""), "schema"),
        (builder().schema("x".repeat(64)), "schema"),
        (builder().queue("a\0"), "queue"),
        (builder().lease_time(Duration::ZERO), "lease_time"),
        (builder().call_timeout(Duration::ZERO), "call_timeout"),
        (builder().poll_interval(Duration::ZERO), "poll_interval"),
        (builder().max_connections(0), "max_connections"),
    ] {
        let error = builder.connect("host=/nowhere user=a").await.unwrap_err();
        let PostgresError::BadOption { option, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(option, name);
    }
}

#[tokio::test]
async fn times_without_end() {
    let Some(server) = server() else {
        return;
    };
    let builder = PostgresStore::builder()
        .lease_time(Duration::MAX)
        .dedup_window(Duration::MAX)
        .call_timeout(Duration::MAX)
        .poll_interval(Duration::MAX);
    let store = open(&server, "endless", builder).await;
    store.append(&["a", "b"].map(job)).await.unwrap();
    let leased = store.lease(2).await.unwrap();
    let leases: Vec<_> = leased.iter().map(|job| job.lease.clone()).collect();
    store.extend(&leases).await.unwrap();
    let later = Verdict::Retry {
        after: Duration::MAX,
        reason: String::new(),
    };
    let verdicts = [
        (leases[0].clone(), later),
        (leases[1].clone(), Verdict::Done),
    ];
    store.settle(&verdicts).await.unwrap();
    assert_eq!(store.depth().await.unwrap().delayed, 1);
    assert_eq!(
        store.append(&[job("b")]).await.unwrap(),
        [Appended::Duplicate]
    );
}
