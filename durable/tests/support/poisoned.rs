//! A job that ends its process each time it is processed, among others that do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use backon::ConstantBuilder;
use fastrand::Rng;
use microbatch_durable::{CancellationToken, DeadLetters, Drain, Durable, Store};
use tokio::runtime::Builder;

use crate::child::{self, Running, say};
use crate::engine::Engine;
use crate::setup::{count, runtime};

/// How the children drain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) max_batch_size: usize,
    pub(crate) max_attempts: u32,
    pub(crate) max_in_flight: usize,
    pub(crate) poisons: usize,
    /// How many at once.
    pub(crate) processes: usize,
}

pub(crate) const WAY: Way = Way {
    max_batch_size: 100,
    max_attempts: 5,
    max_in_flight: 1,
    poisons: 1,
    processes: 1,
};

const JOBS: usize = 100;

/// Where leases have a time.
const LEASE_TIME: Duration = Duration::from_secs(1);

/// Drains until the store is empty, or a poison ends the process.
pub(crate) fn child<E: Engine>() {
    let Some(orders) = child::orders() else {
        return;
    };
    let [place, max_batch_size, max_attempts, max_in_flight, seed] = &orders[..] else {
        panic!("{orders:?}");
    };
    let seed: u64 = seed.parse().unwrap();
    runtime().block_on(async {
        let store = E::open(place, LEASE_TIME).await;
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
#[derive(Debug, Default)]
struct Outcome {
    processes: u32,
    /// How often a poison was processed.
    poisoned: BTreeMap<String, u32>,
    done: BTreeSet<String>,
    dead: BTreeMap<String, String>,
}

async fn fill<E: Engine>(place: &str, way: Way, rng: &mut Rng) {
    let store = E::open(place, LEASE_TIME).await;
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

/// Starts a process again until it finds the store empty.
fn start_until_empty<E: Engine>(place: &str, way: Way, mut rng: Rng, outcome: &Mutex<Outcome>) {
    loop {
        {
            let mut outcome = outcome.lock().unwrap();
            outcome.processes += 1;
            assert!(outcome.processes < 100, "it does not end: {outcome:?}");
        }
        let orders = [
            way.max_batch_size.to_string(),
            way.max_attempts.to_string(),
            way.max_in_flight.to_string(),
            rng.u64(..).to_string(),
        ];
        let mut child = Running::of::<E>("poison", place, &orders);
        while let Some(line) = child.line() {
            let mut outcome = outcome.lock().unwrap();
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
            return;
        }
    }
}

/// Starts processes until the store is empty. `None` if there is no such store.
fn drain<E: Engine>(way: Way, seed: u64) -> Option<Outcome> {
    let engine = E::make()?;
    let place = engine.place();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut rng = Rng::with_seed(seed);
    runtime.block_on(fill::<E>(&place, way, &mut rng));
    let outcome = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..way.processes {
            let rng = rng.fork();
            scope.spawn(|| start_until_empty::<E>(&place, way, rng, &outcome));
        }
    });
    let mut outcome = outcome.into_inner().unwrap();
    runtime.block_on(async {
        let store = E::open(&place, LEASE_TIME).await;
        assert_eq!(store.depth().await.unwrap().pending(), 0);
        for job in store.list(None, usize::MAX).await.unwrap() {
            outcome.dead.insert(job.id.to_string(), job.reason);
        }
        store.close().await;
    });
    Some(outcome)
}

/// The poison alone is dead, with a reason, after its attempts; all others are done.
pub(crate) fn poison_dies_alone<E: Engine>(way: Way) {
    let repeats = count("CRASH_ROUNDS", 1);
    let started = Instant::now();
    let mut processes = 0;
    for seed in 0..repeats {
        let Some(outcome) = drain::<E>(way, seed) else {
            return;
        };
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
        "{}: {way:?}: {repeats} times, {processes} processes, {:?}",
        E::NAME,
        started.elapsed(),
    );
}

pub(crate) fn one_poison<E: Engine>() {
    poison_dies_alone::<E>(WAY);
}

pub(crate) fn two_poisons<E: Engine>() {
    poison_dies_alone::<E>(Way { poisons: 2, ..WAY });
}
