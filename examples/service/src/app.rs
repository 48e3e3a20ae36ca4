//! What the routes share, from the first request to the last.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use microbatch::{BatchProcessorExt, CancellationToken, MicroBatch};
use microbatch_durable::RedbStore;
use tokio::sync::watch;

use crate::batches::BatchLog;
use crate::callers::Callers;
use crate::events::{self, Sample};
use crate::flight::Flight;
use crate::inserts::{Batched, RowByRow};
use crate::later::Later;
use crate::metrics::Metrics;
use crate::settings::QUEUE_CAPACITY;
use crate::store::{Store, StoreError};

pub struct App {
    pub row_by_row: RowByRow,
    pub batched: Batched,
    pub later: Later,
    pub loads: MicroBatch<i64, Option<Flight>>,
    pub batches: Arc<BatchLog>,
    pub metrics: Metrics,
    pub callers: Callers,
    pub samples: watch::Receiver<Arc<Sample>>,
    /// From where settings may be changed.
    pub origins: Vec<String>,
    /// Stops the service.
    pub stop: CancellationToken,
}

impl App {
    /// Starts the micro-batchers and the sampling for the page, until `stop`.
    pub async fn start(
        store: Store,
        jobs: RedbStore,
        origins: Vec<String>,
        stop: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let store = Arc::new(store);
        let batches = Arc::new(BatchLog::default());
        let metrics = Metrics::new()?;
        let inserts =
            metrics.of(|| batch_inserts(Arc::clone(&store), Arc::clone(&batches), stop.clone()))?;
        let loads = metrics.of(|| batch_loads(Arc::clone(&store), stop.clone()))?;
        let later = Later::start(Arc::clone(&store), jobs, &metrics, stop.clone()).await?;
        let (sender, samples) = watch::channel(Arc::default());
        let app = Arc::new(Self {
            row_by_row: RowByRow::new(store),
            batched: Batched::new(inserts),
            later,
            loads,
            metrics,
            batches,
            callers: Callers::new(Flight::samples()?, stop.clone()),
            samples,
            origins,
            stop,
        });
        tokio::spawn(events::sample(Arc::clone(&app), sender));
        Ok(app)
    }

    /// Waits until everything accepted is done. The stop itself is the token's.
    ///
    /// # Errors
    ///
    /// Says how many jobs were given up.
    pub async fn drained(&self) -> anyhow::Result<()> {
        let inserts = self.batched.batcher.shutdown().await;
        let loads = self.loads.shutdown().await;
        let later = self.later.drained().await;
        inserts
            .and(loads)
            .context("the stop ran out of time")
            .and(later)
    }
}

fn batch_inserts(
    store: Arc<Store>,
    batches: Arc<BatchLog>,
    stop: CancellationToken,
) -> anyhow::Result<MicroBatch<Flight, i64>> {
    let insert = move |flights: Vec<Flight>| {
        let store = Arc::clone(&store);
        async move { store.insert(flights).await }
    };
    let batcher = MicroBatch::builder(insert)
        .name("inserts")
        .max_batch_size(128)
        .interval(Duration::from_millis(20))
        .flush_when_idle(true)
        .queue_capacity(QUEUE_CAPACITY)
        .on_batch(move |report| batches.add(report))
        .build_running(stop)?;
    Ok(batcher)
}

/// Callers who ask for the same flight at the same time share one lookup, and those who
/// have gone are left out.
fn batch_loads(
    store: Arc<Store>,
    stop: CancellationToken,
) -> anyhow::Result<MicroBatch<i64, Option<Flight>>> {
    let load = move |ids: Vec<i64>| {
        let store = Arc::clone(&store);
        async move { store.load(ids).await as Result<_, StoreError> }
    };
    let batcher = MicroBatch::builder(load.coalesce())
        .name("loads")
        .max_batch_size(256)
        .flush_when_idle(true)
        .cancel_on_drop(true)
        .queue_capacity(QUEUE_CAPACITY)
        .build_running(stop)?;
    Ok(batcher)
}
