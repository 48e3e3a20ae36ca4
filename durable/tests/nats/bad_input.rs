//! What is wrong is named by a typed error, in time, and no job is lost by it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use microbatch_durable::{
    Appended, DeadLetters, JetStreamError, JetStreamStore, NewJob, Refusal, Settled, Store, Verdict,
};
use microbatch_nats::{Options, Server, User};
use tokio::net::TcpListener;

use crate::job::job;
use crate::support::{builder, open, server};

/// Less than the timeout of a call: what is told and not waited for takes no longer.
const SOON: Duration = Duration::from_millis(4500);

fn refused(outcome: Result<JetStreamStore, JetStreamError>) -> JetStreamError {
    match outcome {
        Ok(_) => panic!("the store was opened"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let error = refused(builder().connect("nats://me:secret@127.0.0.1:1").await);
    let text = error.to_string();
    assert!(
        matches!(&error, JetStreamError::Unreachable { server, .. } if server == "127.0.0.1:1"),
        "{error:?}"
    );
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_server_that_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let started = Instant::now();
    let timeout = Duration::from_millis(500);
    let connect = builder().call_timeout(timeout).connect(&address);
    let error = refused(connect.await);
    assert!(
        matches!(&error, JetStreamError::Unreachable { server, .. } if *server == address),
        "{error:?}"
    );
    assert!(started.elapsed() < 4 * timeout, "{:?}", started.elapsed());
}

#[tokio::test]
async fn options_that_cannot_be() {
    let bad = [
        ("stream", builder().stream("a.b")),
        ("lease_time", builder().lease_time(Duration::ZERO)),
        ("dedup_window", builder().dedup_window(Duration::ZERO)),
        ("call_timeout", builder().call_timeout(Duration::ZERO)),
        ("replicas", builder().replicas(0)),
        ("max_leased", builder().max_leased(0)),
    ];
    for (name, builder) in bad {
        // No server is asked.
        let error = refused(builder.connect("127.0.0.1:1").await);
        assert!(
            matches!(error, JetStreamError::BadOption { option, .. } if option == name),
            "{name}: {error:?}"
        );
    }
}

fn users() -> [User; 4] {
    let user = |name, deny_publish| User {
        name,
        password: "right",
        deny_publish,
    };
    [
        user("all", vec![]),
        user(
            "no-create",
            vec![
                "$JS.API.STREAM.CREATE.>",
                "$JS.API.CONSUMER.DURABLE.CREATE.>",
            ],
        ),
        user("no-append", vec!["microbatch.jobs.>"]),
        user("no-settle", vec!["$JS.ACK.>"]),
    ]
}

fn server_with_users() -> Option<Server> {
    server(Options {
        users: users().into(),
        ..Options::default()
    })
}

#[tokio::test]
async fn wrong_credentials() {
    let Some(server) = server_with_users() else {
        return;
    };
    let wrong = User {
        password: "wrong",
        ..users()[0].clone()
    };
    for url in [server.url_of(&wrong), server.url()] {
        let error = refused(builder().connect(&url).await);
        assert!(
            matches!(error, JetStreamError::Credentials { .. }),
            "{error:?}"
        );
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
}

#[tokio::test]
async fn a_missing_right_is_named_at_once_and_the_job_is_kept() {
    let Some(server) = server_with_users() else {
        return;
    };
    let [all, no_create, no_append, no_settle] = users().map(|user| server.url_of(&user));
    let started = Instant::now();
    let forbidden = |error: JetStreamError, expected: &str| match error {
        JetStreamError::Forbidden { subject, .. } => {
            assert!(subject.starts_with(expected), "{subject}");
        }
        other => panic!("expected a right of {expected} to be missing: {other:?}"),
    };
    let error = refused(builder().connect(&no_create).await);
    forbidden(error, "$JS.API.STREAM.CREATE.microbatch");

    let store = builder().connect(&all).await.unwrap();
    // What somebody else has created can be used without the right to create it.
    let same = builder().connect(&no_create).await.unwrap();
    assert_eq!(same.append(&[job("a")]).await.unwrap(), [Appended::New]);

    let appender = builder().connect(&no_append).await.unwrap();
    let error = appender.append(&[job("b")]).await.unwrap_err();
    forbidden(error, "microbatch.jobs.b");

    let settler = builder().connect(&no_settle).await.unwrap();
    let lease = settler.lease(1).await.unwrap().remove(0).lease;
    let done = [(lease.clone(), Verdict::Done)];
    forbidden(settler.settle(&done).await.unwrap_err(), "$JS.ACK.");
    forbidden(settler.extend(&[lease]).await.unwrap_err(), "$JS.ACK.");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(store.depth().await.unwrap().pending(), 1);
}

#[tokio::test]
async fn a_stream_that_is_gone() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let store = open(&server).await;
    store.append(&[job("a")]).await.unwrap();
    let lease = store.lease(1).await.unwrap().remove(0).lease;
    let client = async_nats::connect(server.url()).await.unwrap();
    jetstream::new(client)
        .delete_stream("microbatch")
        .await
        .unwrap();
    let started = Instant::now();
    let missing = |error: JetStreamError| match error {
        JetStreamError::MissingStream { stream } => assert_eq!(stream, "microbatch"),
        JetStreamError::MissingConsumer { consumer, .. } => assert_eq!(consumer, "workers"),
        other => panic!("{other:?}"),
    };
    missing(store.append(&[job("b")]).await.unwrap_err());
    missing(store.lease(1).await.unwrap_err());
    missing(store.depth().await.unwrap_err());
    missing(store.settle(&[(lease, Verdict::Done)]).await.unwrap_err());
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_job_that_is_too_large_and_the_largest_which_may_die_of_a_long_reason() {
    let Some(server) = server(Options {
        max_payload: Some(64 << 10),
        ..Options::default()
    }) else {
        return;
    };
    let store = open(&server).await;
    let of = |id: String, size| NewJob {
        payload: vec![7; size].into(),
        ..job(&id)
    };
    let answers = store
        .append(&[of("large".into(), 64 << 10), job("small")])
        .await
        .unwrap();
    let Appended::Refused(Refusal::TooLarge { size, limit }) = answers[0] else {
        panic!("{answers:?}");
    };
    assert_eq!((size, &answers[1]), (64 << 10, &Appended::New));
    // The longest id and codec.
    let largest = NewJob {
        codec: "é".repeat(170).into(),
        ..of("é".repeat(127), limit)
    };
    let over = of("over".into(), limit + 1);
    let answers = store.append(&[largest.clone(), over]).await.unwrap();
    assert_eq!(answers[0], Appended::New);
    assert!(!answers[1].is_accepted());
    let mut leased = Vec::new();
    while leased.len() < 2 {
        leased.extend(store.lease(2).await.unwrap());
    }
    let reason = "no such address é ".repeat(10_000);
    let dead = leased.iter().map(|job| {
        let reason = reason.clone();
        (job.lease.clone(), Verdict::Dead { reason })
    });
    let answers = store.settle(&dead.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(answers, [Settled::Held; 2]);
    let letters = store.list(None, 9).await.unwrap();
    let letter = letters
        .iter()
        .find(|letter| letter.id == largest.id)
        .unwrap();
    assert_eq!(
        (&letter.payload, &letter.codec),
        (&largest.payload, &largest.codec)
    );
    let told = letter.reason.trim_end_matches(" …");
    assert!(
        told.len() > 1000 && reason.starts_with(told),
        "{}",
        letter.reason
    );
}

#[tokio::test]
async fn a_stream_of_somebody_else_and_options_that_are_updated() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let client = async_nats::connect(server.url()).await.unwrap();
    let jetstream = jetstream::new(client.clone());
    let config = stream::Config {
        name: "theirs".to_owned(),
        subjects: vec!["theirs.>".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let error = refused(builder().stream("theirs").connect(server.url()).await);
    let JetStreamError::Differs { stream, option, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((&**stream, *option), ("theirs", "retention"));

    let first = open(&server).await;
    assert_eq!(first.lease_time(), Some(Duration::from_secs(3)));
    let window = Duration::from_secs(10);
    let time = Duration::from_secs(7);
    let options = || {
        JetStreamStore::builder()
            .dedup_window(window)
            .lease_time(time)
    };
    let second = options().connect_with(client).await.unwrap();
    assert_eq!(second.lease_time(), Some(time));
    let config = |name: &'static str| {
        let jetstream = jetstream.clone();
        async move {
            jetstream
                .get_stream(name)
                .await
                .unwrap()
                .cached_info()
                .config
                .clone()
        }
    };
    assert_eq!(config("microbatch").await.duplicate_window, window);
    assert_eq!(config("microbatch_FREED").await.max_age, window);
    // What is not said is left as it is.
    let third = JetStreamStore::connect(server.url()).await.unwrap();
    assert_eq!(third.lease_time(), Some(time));
    assert_eq!(config("microbatch").await.duplicate_window, window);
}

#[tokio::test]
async fn many_who_open_at_the_same_time() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let opening = (0..8).map(|_| builder().connect(server.url()));
    let stores = futures_util::future::join_all(opening).await;
    let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
    stores[0].append(&[job("a")]).await.unwrap();
    let leased = stores[7].lease(9).await.unwrap();
    assert_eq!(&*leased[0].id, "a");
}

const SHORT: Duration = Duration::from_millis(500);

/// A store whose calls have a short time.
async fn open_impatient(server: &Server) -> JetStreamStore {
    let store = builder().call_timeout(SHORT).connect(server.url()).await;
    store.unwrap()
}

#[tokio::test]
async fn a_network_that_is_cut_and_comes_back() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let store = open_impatient(&server).await;
    store.append(&[job("a"), job("b")]).await.unwrap();
    let lease = store.lease(1).await.unwrap().remove(0).lease;
    server.freeze().unwrap();
    let in_time = async |call: &str, error: Result<(), JetStreamError>, started: Instant| {
        let error = error.expect_err(call);
        assert!(
            matches!(
                error,
                JetStreamError::TimedOut { .. } | JetStreamError::Unreachable { .. }
            ),
            "{call}: {error:?}"
        );
        // A pull has its own time before.
        assert!(
            started.elapsed() < 4 * SHORT,
            "{call}: {:?}",
            started.elapsed()
        );
    };
    let (started, done) = (Instant::now(), [(lease.clone(), Verdict::Done)]);
    in_time("append", store.append(&[job("c")]).await.map(drop), started).await;
    let started = Instant::now();
    in_time("extend", store.extend(&[lease]).await.map(drop), started).await;
    let started = Instant::now();
    in_time("settle", store.settle(&done).await.map(drop), started).await;
    let started = Instant::now();
    in_time("lease", store.lease(1).await.map(drop), started).await;
    let started = Instant::now();
    in_time("depth", store.depth().await.map(drop), started).await;
    let started = Instant::now();
    in_time("list", store.list(None, 1).await.map(drop), started).await;
    server.thaw().unwrap();
    // It may have been appended before; `b` and `c` are there in any case.
    let mut ids = Vec::new();
    store.append(&[job("c")]).await.unwrap();
    while ids.len() < 2 {
        for job in store.lease(2).await.unwrap() {
            store.settle(&[(job.lease, Verdict::Done)]).await.unwrap();
            if &*job.id != "a" {
                ids.push(job.id);
            }
        }
    }
    ids.sort();
    assert!(ids.iter().map(|id| &**id).eq(["b", "c"]), "{ids:?}");
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back() {
    let Some(mut server) = server(Options::default()) else {
        return;
    };
    let store = open_impatient(&server).await;
    store.append(&[job("a"), job("b")]).await.unwrap();
    let a = store.lease(1).await.unwrap().remove(0);
    store.settle(&[(a.lease, Verdict::Done)]).await.unwrap();
    server.kill().unwrap();
    assert!(store.append(&[job("c")]).await.is_err());
    assert!(store.lease(1).await.is_err());
    server.restart().unwrap();
    while store.append(&[job("c")]).await.is_err() {}
    let mut ids = Vec::new();
    while ids.len() < 2 {
        if let Ok(leased) = store.lease(2).await {
            ids.extend(leased.into_iter().map(|job| job.id));
        }
    }
    // What was settled stays settled.
    assert!(ids.iter().map(|id| &**id).eq(["b", "c"]), "{ids:?}");
}

/// The files of the stream are those of before, as after a loss of power; those of the
/// consumer are not.
#[tokio::test]
async fn a_consumer_that_is_ahead_of_its_stream() {
    let Some(mut server) = server(Options::default()) else {
        return;
    };
    let store = open(&server).await;
    let lease_and_finish = async |ids: &[&str]| {
        let jobs: Vec<_> = ids.iter().map(|id| job(id)).collect();
        store.append(&jobs).await.unwrap();
        let mut left = jobs.len();
        while left > 0 {
            let leased = store.lease(left).await.unwrap();
            left -= leased.len();
            let done: Vec<_> = leased
                .into_iter()
                .map(|job| (job.lease, Verdict::Done))
                .collect();
            store.settle(&done).await.unwrap();
        }
    };
    let folder = server.files().join("jetstream/$G/streams/microbatch/msgs");
    let saved = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    lease_and_finish(&["a", "b"]).await;
    server.kill().unwrap();
    copy(&folder, saved.path());
    server.restart().unwrap();
    while store.depth().await.is_err() {}
    lease_and_finish(&["c", "d", "e"]).await;
    // The server writes the state of a consumer ten times a second.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.kill().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    copy(saved.path(), &folder);
    server.restart().unwrap();
    match builder().connect(server.url()).await {
        Err(JetStreamError::ConsumerAhead {
            delivered,
            last,
            stream,
            ..
        }) => {
            assert_eq!((delivered, last, &*stream), (5, 2, "microbatch"));
            // A store that was open all the time hears of it, too.
            loop {
                match store.lease(1).await.unwrap_err() {
                    JetStreamError::ConsumerAhead { .. } => break,
                    JetStreamError::TimedOut { .. } | JetStreamError::Unreachable { .. } => {}
                    error => panic!("{error:?}"),
                }
            }
        }
        Err(error) => panic!("{error:?}"),
        // A server may have set the consumer back itself. Then all is well.
        Ok(store) => {
            store.append(&[job("f")]).await.unwrap();
            let leased = tokio::time::timeout(Duration::from_secs(9), store.lease(1)).await;
            assert_eq!(&*leased.unwrap().unwrap()[0].id, "f");
            eprintln!("the server set the consumer back");
        }
    }
}
