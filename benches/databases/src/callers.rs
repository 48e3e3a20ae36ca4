//! The callers, who each have one flight stored at a time and wait for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::vec;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::flight::Flight;

/// What came of a run.
pub struct Outcome {
    pub took: Duration,
    /// What the callers were told, by the flight's number.
    pub receipts: Vec<i64>,
    /// As the callers see it, in microseconds; empty for a bulk load, which has
    /// no callers.
    pub latency: Histogram<u64>,
}

/// Hands out what there is to store, each item once.
pub struct Queue<T>(Mutex<vec::IntoIter<T>>);

impl<T> Queue<T> {
    pub fn new(items: Vec<T>) -> Self {
        Self(Mutex::new(items.into_iter()))
    }

    pub fn next(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

/// One stored flight: its number, what its caller was told, and after how long.
pub struct Receipt {
    pub number: i64,
    pub told: i64,
    pub latency: Option<Duration>,
}

impl Outcome {
    pub fn new(took: Duration, stored: Vec<Receipt>) -> anyhow::Result<Self> {
        let mut latency = Histogram::new(3)?;
        let mut receipts = vec![-1; stored.len()];
        for receipt in stored {
            receipts[usize::try_from(receipt.number)?] = receipt.told;
            if let Some(took) = receipt.latency {
                latency.record(u64::try_from(took.as_micros())?)?;
            }
        }
        Ok(Self {
            took,
            receipts,
            latency,
        })
    }
}

/// Has all flights stored by that many tasks. `store` is told which of them
/// calls.
pub async fn run<S, F>(flights: Vec<Flight>, callers: usize, store: S) -> anyhow::Result<Outcome>
where
    S: Fn(usize, Flight) -> F + Clone + Send + 'static,
    F: Future<Output = anyhow::Result<i64>> + Send + 'static,
{
    let rows = flights.len();
    let queue = Arc::new(Queue::new(flights));
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for caller in 0..callers {
        let (queue, store) = (Arc::clone(&queue), store.clone());
        tasks.spawn(async move {
            let mut stored = Vec::with_capacity(rows / callers + 1);
            while let Some(flight) = queue.next() {
                let number = flight.number;
                let submitted = Instant::now();
                let told = store(caller, flight).await?;
                let latency = Some(submitted.elapsed());
                stored.push(Receipt {
                    number,
                    told,
                    latency,
                });
            }
            anyhow::Ok(stored)
        });
    }
    let mut all = Vec::with_capacity(callers);
    while let Some(stored) = tasks.join_next().await {
        all.push(stored??);
    }
    let took = started.elapsed();
    Outcome::new(took, all.into_iter().flatten().collect())
}
