//! Effects in the same database, in one transaction with the settlement: each job has them
//! exactly once, whichever process is killed or stopped, and when.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use backon::ConstantBuilder;
use fastrand::Rng;
use microbatch_durable::{
    CancellationToken, Delivery, Drain, PostgresLease, PostgresStore, Verdict,
};
use tokio_postgres::{Client, NoTls};

use crate::child::{self, say};
use crate::crew::{Crew, LEASE_TIME, run_and_say, stop_at_end_of_input};
use crate::engine::Engine as _;
use crate::networked::Networked as _;
use crate::postgres::Postgres;
use crate::server::freeze;
use crate::setup::{count, runtime};
use crate::told::{Told, ToldLease, now};

const WORKERS: usize = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connect(place: &str) -> Result<Client, tokio_postgres::Error> {
    let url = Postgres::url(place);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Writes the effects of a batch and settles it, in one transaction.
async fn process(
    place: &str,
    store: &PostgresStore,
    mut rng: Rng,
    batch: Vec<Delivery<String, ToldLease<PostgresLease>>>,
) -> Result<Vec<Verdict>, Failure> {
    let mut client = connect(place).await?;
    let transaction = client.transaction().await?;
    let again = Verdict::Retry {
        after: Duration::ZERO,
        reason: "again, by seed".to_owned(),
    };
    let (mut verdicts, mut answers, mut done) = (Vec::new(), Vec::new(), Vec::new());
    for delivery in batch {
        if rng.u32(..10) == 0 {
            answers.push(again.clone());
            continue;
        }
        let (id, attempt) = (delivery.job, delivery.attempt.get());
        // No key: what happens twice is seen twice.
        let effect = "INSERT INTO effects (id) VALUES ($1)";
        transaction.execute(effect, &[&id]).await?;
        say(format!("did {id} {attempt} done"));
        verdicts.push((delivery.lease.lease, Verdict::Done));
        answers.push(Verdict::Settled);
        done.push(format!("{attempt} {id}"));
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(..20))).await;
    let asked = now();
    store.settle_in(&transaction, &verdicts).await?;
    tokio::time::sleep(Duration::from_millis(rng.u64(..5))).await;
    if rng.u32(..10) == 0 {
        transaction.rollback().await?;
        return Err("rolled back, by seed".into());
    }
    for job in &done {
        say(format!("settling {asked} done {job}"));
    }
    transaction.commit().await?;
    let at = now();
    for job in &done {
        say(format!("settled {at} {asked} done Held {job}"));
    }
    Ok(answers)
}

#[test]
#[ignore = "the child of the test beside it"]
fn child() {
    let Some(orders) = child::orders() else {
        return;
    };
    let [place, seed, ..] = &orders[..] else {
        panic!("{orders:?}");
    };
    let rng = std::sync::Mutex::new(Rng::with_seed(seed.parse().unwrap()));
    let place = place.clone();
    runtime().block_on(async {
        let store = Postgres::open(&place, LEASE_TIME).await;
        let settling = store.clone();
        let stop = CancellationToken::new();
        stop_at_end_of_input(stop.clone());
        let drain = Drain::deliveries(Told(store), move |batch| {
            let (place, store) = (place.clone(), settling.clone());
            let rng = rng.lock().unwrap().fork();
            async move { process(&place, &store, rng, batch).await }
        })
        .max_batch_size(16)
        // None is to die of the kills.
        .max_attempts(100)
        .max_in_flight(2)
        .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(2)))
        .build()
        .unwrap();
        run_and_say(drain.run(stop)).await;
    });
}

#[test]
fn effects_happen_once() {
    let Some(engine) = Postgres::make_own() else {
        return;
    };
    let rounds = count("SERVER_ROUNDS", 6);
    let started = Instant::now();
    let place = engine.place();
    let asking = runtime();
    let table = async {
        let client = connect(&place).await.unwrap();
        client
            .batch_execute("CREATE TABLE effects (id text NOT NULL)")
            .await
            .unwrap();
    };
    asking.block_on(table);
    let name = "once::child".to_owned();
    let mut crew = Crew::start_child(engine, name, WORKERS, Duration::ZERO);
    for round in 0..rounds {
        let callers = crew.submit_for(Duration::from_millis(700));
        std::thread::sleep(Duration::from_micros(crew.rng.u64(..700_000)));
        let worker = crew.rng.usize(..WORKERS);
        let what = match round % 3 {
            0 => {
                crew.kill_worker(worker);
                crew.start_worker();
                "a worker was killed"
            }
            1 => {
                crew.engine.kill();
                crew.engine.restart();
                "the server was killed"
            }
            _ => {
                // In the middle of a transaction, most of the time.
                freeze(&mut crew, worker, LEASE_TIME.mul_f64(1.5));
                "a worker was stopped for longer than its leases"
            }
        };
        crew.settle(callers);
        let effects = asking.block_on(async {
            let client = connect(&place).await.unwrap();
            client.query("SELECT id FROM effects", &[]).await.unwrap()
        });
        let ids: BTreeSet<String> = effects.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids.len(), effects.len(), "an effect happened twice");
        let ledger = crew.ledger.lock().unwrap();
        assert!(ledger.is_acknowledged(&ids), "an effect is missing");
        println!(
            "once, round {round}: {what}; {} effects; {}, {:?}",
            ids.len(),
            ledger.figures(),
            started.elapsed(),
        );
    }
    crew.stop();
}
