//! The ways to turn single flights into bulk: this crate, a peer and a loop
//! made by hand, all in front of the same bulk operation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use batch_aint_one::{Batcher, BatchingPolicy, Limits, Processor};
use microbatch::{CancellationToken, MicroBatch};
use tokio::task::JoinSet;

use crate::callers::{self, Outcome, Queue, Receipt};
use crate::flight::Flight;

/// Rows in a statement made by hand.
pub const CHUNK: usize = 1000;

/// Stores many flights durably with one commit; returns what to tell each
/// caller, in the same order.
pub trait Bulk: Clone + Send + Sync + 'static {
    fn store(&self, flights: Vec<Flight>) -> impl Future<Output = anyhow::Result<Vec<i64>>> + Send;
}

/// How callers are served: so many of them, in batches of at most so many, of
/// which so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub callers: usize,
    pub batch: usize,
    pub in_flight: usize,
}

pub async fn microbatch<B: Bulk>(
    flights: Vec<Flight>,
    shape: Shape,
    bulk: B,
) -> anyhow::Result<Outcome> {
    let inserts = MicroBatch::builder(move |flights| {
        let bulk = bulk.clone();
        async move { bulk.store(flights).await }
    })
    .max_batch_size(shape.batch)
    .max_in_flight(shape.in_flight)
    .interval(Duration::from_millis(20))
    .flush_when_idle(true)
    .queue_capacity(shape.callers)
    .build_running(CancellationToken::new())?;
    let batcher = inserts.clone();
    let store = move |_, flight| {
        let handle = batcher.submit(flight);
        async move { Ok(handle.await?) }
    };
    let outcome = callers::run(flights, shape.callers, store).await?;
    inserts.shutdown().await?;
    Ok(outcome)
}

#[derive(Clone)]
struct Peer<B>(B);

impl<B: Bulk> Processor for Peer<B> {
    type Key = ();
    type Input = Flight;
    type Output = i64;
    type Error = String;
    type Resources = ();

    async fn acquire_resources(&self, (): ()) -> Result<(), String> {
        Ok(())
    }

    async fn process(
        &self,
        (): (),
        flights: impl Iterator<Item = Flight> + Send,
        (): (),
    ) -> Result<Vec<i64>, String> {
        let stored = self.0.store(flights.collect()).await;
        stored.map_err(|error| format!("{error:#}"))
    }
}

/// With the policy that is closest to this crate's idle flush.
pub async fn batch_aint_one<B: Bulk>(
    flights: Vec<Flight>,
    shape: Shape,
    bulk: B,
) -> anyhow::Result<Outcome> {
    let limits = Limits::builder()
        .max_batch_size(shape.batch)
        .max_key_concurrency(shape.in_flight)
        .max_key_queued_items(shape.callers)
        .build();
    let batcher = Batcher::builder()
        .name("flights")
        .processor(Peer(bulk))
        .limits(limits)
        .batching_policy(BatchingPolicy::Balanced {
            min_size_hint: shape.batch,
        })
        .build();
    let worker = batcher.worker_handle();
    let store = move |_, flight| {
        let batcher = batcher.clone();
        async move {
            let stored = batcher.add((), flight).await;
            stored.map_err(|error| anyhow!("{error}"))
        }
    };
    let outcome = callers::run(flights, shape.callers, store).await?;
    worker.shut_down().await;
    worker.wait_for_shutdown().await;
    Ok(outcome)
}

/// Large chunks, cut beforehand, on that many connections, and no caller to
/// answer: what the database itself can do.
pub async fn by_hand<B: Bulk>(
    flights: Vec<Flight>,
    connections: usize,
    bulk: B,
) -> anyhow::Result<Outcome> {
    let mut flights = flights.into_iter();
    let mut chunks = Vec::new();
    loop {
        let chunk: Vec<Flight> = flights.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        chunks.push(chunk);
    }
    let queue = Arc::new(Queue::new(chunks));
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..connections {
        let (queue, bulk) = (Arc::clone(&queue), bulk.clone());
        tasks.spawn(async move {
            let mut stored = Vec::new();
            while let Some(chunk) = queue.next() {
                let numbers: Vec<i64> = chunk.iter().map(|flight| flight.number).collect();
                stored.push((numbers, bulk.store(chunk).await?));
            }
            anyhow::Ok(stored)
        });
    }
    let mut all = Vec::new();
    while let Some(stored) = tasks.join_next().await {
        all.extend(stored??);
    }
    let took = started.elapsed();
    let receipts = all.into_iter().flat_map(|(numbers, told)| {
        numbers.into_iter().zip(told).map(|(number, told)| Receipt {
            number,
            told,
            latency: None,
        })
    });
    Outcome::new(took, receipts.collect())
}
