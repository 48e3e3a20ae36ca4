//! How fast the store is beside what one writes by hand. In the release profile, alone:
//!
//! ```sh
//! cargo test --release -p microbatch-durable --features nats --test nats -- --ignored --nocapture figures
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures_util::future::join_all;
use microbatch_durable::{
    CancellationToken, DeadLetters, Drain, Durable, JetStreamStore, NewJob, Store, Verdict,
};
use microbatch_nats::Options;

use crate::support::server;

const CALLERS: usize = 256;
const ROUNDS: usize = 7;
const JOBS: usize = 20 * CALLERS;

fn job(id: String) -> NewJob {
    NewJob {
        id: id.into(),
        codec: "json".into(),
        payload: Bytes::from_static(&[b'7'; 200]),
    }
}

fn per_second(jobs: usize, took: Duration) -> f64 {
    jobs as f64 / took.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes a minute, and the machine for itself"]
async fn figures() {
    let Some(server) = server(Options::default()) else {
        return;
    };
    let store = JetStreamStore::connect(server.url()).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let config = stream::Config {
        name: "plain".to_owned(),
        subjects: vec!["plain.*".to_owned()],
        retention: stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let cancel = CancellationToken::new();
    let durable = Durable::<String>::builder(Arc::new(store.clone()))
        .build_running(cancel.clone())
        .unwrap();
    let payload = "7".repeat(198);
    let (mut by_hand, mut by_store, mut by_front, mut drained) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // By hand: all sent, then all awaited, as many at a time as there are callers.
        let started = Instant::now();
        for batch in 0..JOBS / CALLERS {
            let mut acks = Vec::new();
            for n in 0..CALLERS {
                let subject = format!("plain.{round}-{batch}-{n}");
                let message = jetstream::message::PublishMessage::build()
                    .message_id(&subject)
                    .payload(Bytes::from_static(&[b'7'; 200]));
                acks.push(jetstream.send_publish(subject, message).await.unwrap());
            }
            for ack in acks {
                ack.await.unwrap();
            }
        }
        by_hand.push(per_second(JOBS, started.elapsed()));

        let started = Instant::now();
        for batch in 0..JOBS / CALLERS {
            let jobs: Vec<_> = (0..CALLERS)
                .map(|n| job(format!("s-{round}-{batch}-{n}")))
                .collect();
            let answers = store.append(&jobs).await.unwrap();
            assert!(
                answers
                    .iter()
                    .all(microbatch_durable::Appended::is_accepted)
            );
        }
        by_store.push(per_second(JOBS, started.elapsed()));

        let started = Instant::now();
        let callers = (0..CALLERS).map(|caller| {
            let (durable, payload) = (durable.clone(), payload.clone());
            tokio::spawn(async move {
                for n in 0..JOBS / CALLERS {
                    let id = format!("f-{round}-{caller}-{n}");
                    durable.submit(id, payload.clone()).await.unwrap();
                }
            })
        });
        for joined in join_all(callers).await {
            joined.unwrap();
        }
        by_front.push(per_second(JOBS, started.elapsed()));

        // What the other two have appended. Their payloads are digits, and strings.
        let cancel = CancellationToken::new();
        let (started, all_done) = (Instant::now(), cancel.clone());
        let done = std::sync::atomic::AtomicUsize::new(0);
        let process = |jobs: Vec<serde_json::Value>| async move {
            Ok::<_, std::convert::Infallible>(vec![(); jobs.len()])
        };
        Drain::builder(store.clone(), process)
            .max_batch_size(256)
            .on_batch(move |report| {
                let settled = report.done + report.dead;
                let before = done.fetch_add(settled, std::sync::atomic::Ordering::Relaxed);
                if before + settled >= 2 * JOBS {
                    all_done.cancel();
                }
            })
            .build()
            .unwrap()
            .run(cancel)
            .await
            .unwrap();
        drained.push(per_second(2 * JOBS, started.elapsed()));
    }
    cancel.cancel();
    let [by_hand, by_store, by_front, drained] = [by_hand, by_store, by_front, drained].map(median);
    println!("by hand    {by_hand:>8.0} messages/s");
    println!(
        "append     {by_store:>8.0} jobs/s, {:.2} of by hand",
        by_store / by_hand
    );
    println!(
        "submit     {by_front:>8.0} jobs/s, {:.2} of by hand",
        by_front / by_hand
    );
    println!(
        "drain      {drained:>8.0} jobs/s, {:.2} of by hand",
        drained / by_hand
    );
    assert_eq!(store.depth().await.unwrap().pending(), 0);
    assert!(by_front > 0.7 * by_hand, "submitting is too slow");

    letters(&store, &server.url()).await;
}

/// With very many dead letters.
async fn letters(store: &JetStreamStore, url: &str) {
    const LETTERS: usize = 100_000;
    let started = Instant::now();
    for batch in 0..LETTERS / 1000 {
        let jobs: Vec<_> = (0..1000).map(|n| job(format!("d-{batch}-{n}"))).collect();
        store.append(&jobs).await.unwrap();
        let mut left = jobs.len();
        while left > 0 {
            let leased = store.lease(left).await.unwrap();
            left -= leased.len();
            let dead = leased.into_iter().map(|job| {
                let reason = "no such address".to_owned();
                (job.lease, Verdict::Dead { reason })
            });
            store.settle(&dead.collect::<Vec<_>>()).await.unwrap();
        }
    }
    println!(
        "die        {:>8.0} jobs/s",
        per_second(LETTERS, started.elapsed())
    );
    let page = async |what: &str, store: &JetStreamStore, after: &str, limit: usize| {
        let started = Instant::now();
        let found = store.list(Some(&after.into()), limit).await.unwrap().len();
        let took = started.elapsed().as_secs_f64() * 1e3;
        println!("{what:<30} {took:>8.1} ms, {found} letters");
    };
    page("a page of 100", store, "d-50", 100).await;
    let fresh = JetStreamStore::connect(url).await.unwrap();
    page("the first page of a new store", &fresh, "d-50", 100).await;
    page("its next page", &fresh, "d-60", 100).await;
    page("all", &fresh, " ", usize::MAX).await;
    let (mut times, append) = (Vec::new(), |n: usize| [job(format!("lone-{n}"))]);
    for n in 0..200 {
        let started = Instant::now();
        store.append(&append(n)).await.unwrap();
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    println!("a lone append among them {:>8.0} us", median(times));
}
