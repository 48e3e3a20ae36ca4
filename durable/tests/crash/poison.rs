//! A job that ends its process each time it is processed, among others that do not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use backon::ConstantBuilder;
use fastrand::Rng;
use microbatch_durable::{CancellationToken, DeadLetters, Drain, Durable, RedbStore, Store};
use tokio::runtime::Builder;

use crate::child::{self, Running, say};
use crate::seeds;

/// How a child drains.
#[derive(Debug, Clone, Copy)]
struct Way {
    max_batch_size: usize,
    max_attempts: u32,
    max_in_flight: usize,
    poisons: usize,
}

const JOBS: usize = 100;

/// Drains until the store is empty, or a poison ends the process.
#[test]
#[ignore = "the child of the tests beside it"]
fn child() {
    let Some(orders) = child::orders() else {
        return;
    };
    let [path, max_batch_size, max_attempts, max_in_flight, seed] = &orders[..] else {
        panic!("{orders:?}");
    };
    let seed: u64 = seed.parse().unwrap();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = RedbStore::open(path).await.unwrap();
        let stop = CancellationToken::new();
        let drain = Drain::builder(store.clone(), move |jobs: Vec<String>| async move {
            for id in &jobs {
                say(format!("begin {id}"));
            }
            // So that others are leased, processed and settled at the side.
            let mut rng = Rng::with_seed(seed ^ jobs.len() as u64);
            if rng.bool() {
                tokio::time::sleep(Duration::from_micros(rng.u64(..6000))).await;
            }
            if jobs.iter().any(|id| id.starts_with("poison")) {
                std::process::abort();
            }
            for id in &jobs {
                say(format!("did {id}"));
            }
            Ok::<_, std::io::Error>(vec![(); jobs.len()])
        })
        .max_batch_size(max_batch_size.parse().unwrap())
        .max_attempts(max_attempts.parse().unwrap())
        .max_in_flight(max_in_flight.parse().unwrap())
        .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(1)))
        .build()
        .unwrap();
        let draining = tokio::spawn(drain.run(stop.clone()));
        while store.depth().await.unwrap().pending() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.cancel();
        draining.await.unwrap().unwrap();
        store.close().await;
    });
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    processes: u32,
    /// How often a poison was processed.
    poisoned: BTreeMap<String, u32>,
    done: BTreeSet<String>,
    dead: BTreeMap<String, String>,
}

async fn fill(path: &Path, way: Way, rng: &mut Rng) {
    let store = RedbStore::open(path).await.unwrap();
    let durable = Durable::<String>::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    let mut ids: Vec<_> = (way.poisons..JOBS).map(|n| format!("job-{n}")).collect();
    for n in 0..way.poisons {
        ids.insert(rng.usize(..=ids.len()), format!("poison-{n}"));
    }
    let answers = durable.submit_all(ids.into_iter().map(|id| (id.clone(), id)));
    assert!(answers.await.into_iter().all(|answer| answer.is_ok()));
    durable.shutdown().await.unwrap();
    store.close().await;
}

/// Starts processes until the store is empty.
fn drain(way: Way, seed: u64) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut rng = Rng::with_seed(seed);
    runtime.block_on(fill(&path, way, &mut rng));
    let mut outcome = Outcome {
        processes: 0,
        poisoned: BTreeMap::new(),
        done: BTreeSet::new(),
        dead: BTreeMap::new(),
    };
    loop {
        outcome.processes += 1;
        assert!(outcome.processes < 100, "it does not end: {outcome:?}");
        let orders = [
            way.max_batch_size.to_string(),
            way.max_attempts.to_string(),
            way.max_in_flight.to_string(),
            rng.u64(..).to_string(),
        ];
        let mut child = Running::start("poison::child", &path, &orders);
        while let Some(line) = child.line() {
            match line.split_once(' ') {
                Some(("begin", id)) if id.starts_with("poison") => {
                    *outcome.poisoned.entry(id.to_owned()).or_default() += 1;
                }
                Some(("did", id)) => {
                    outcome.done.insert(id.to_owned());
                }
                _ => {}
            }
        }
        if child.wait().success() {
            break;
        }
    }
    runtime.block_on(async {
        let store = RedbStore::open(&path).await.unwrap();
        assert_eq!(store.depth().await.unwrap().pending(), 0);
        for job in store.list(None, usize::MAX).await.unwrap() {
            outcome.dead.insert(job.id.to_string(), job.reason);
        }
        store.close().await;
    });
    outcome
}

/// The poison alone is dead, with a reason, after its attempts; all others are done.
fn poison_dies_alone(way: Way) {
    let repeats = seeds::count("CRASH_ROUNDS", 1);
    let started = Instant::now();
    let mut processes = 0;
    for seed in 0..repeats {
        let outcome = drain(way, seed);
        processes += outcome.processes;
        let reason = format!(
            "delivered {} times and never settled: its process died each time",
            way.max_attempts,
        );
        let poisons = (0..way.poisons).map(|n| format!("poison-{n}"));
        let expected: BTreeMap<_, _> = poisons.map(|id| (id, reason.clone())).collect();
        assert_eq!(outcome.dead, expected, "{way:?}, seed {seed}");
        assert_eq!(
            outcome.done.len(),
            JOBS - way.poisons,
            "{way:?}, seed {seed}"
        );
        for (id, times) in &outcome.poisoned {
            assert!(
                *times <= way.max_attempts,
                "{id}: {times} times; {way:?}, seed {seed}"
            );
        }
    }
    println!(
        "{way:?}: {repeats} times, {processes} processes, {:?}",
        started.elapsed(),
    );
}

const WAY: Way = Way {
    max_batch_size: 100,
    max_attempts: 5,
    max_in_flight: 1,
    poisons: 1,
};

#[test]
fn one_poison() {
    poison_dies_alone(WAY);
}

#[test]
fn two_poisons() {
    poison_dies_alone(Way { poisons: 2, ..WAY });
}

#[test]
fn few_attempts() {
    for max_attempts in 1..=3 {
        poison_dies_alone(Way {
            max_attempts,
            ..WAY
        });
    }
}

#[test]
fn batches_side_by_side() {
    for (poisons, max_batch_size) in [(1, 100), (2, 100), (1, 10), (2, 10)] {
        poison_dies_alone(Way {
            poisons,
            max_batch_size,
            max_in_flight: 4,
            ..WAY
        });
    }
}

#[test]
fn few_attempts_side_by_side() {
    for max_attempts in 1..=3 {
        poison_dies_alone(Way {
            max_attempts,
            max_batch_size: 10,
            max_in_flight: 4,
            ..WAY
        });
    }
}
