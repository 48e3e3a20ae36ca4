//! Flights that are accepted once they are on the service's own disk, and stored later.
//!
//! ```text
//! POST ─▶ Durable ── a commit for all that wait ─▶ jobs file ─▶ Drain ─▶ store
//! ```
//!
//! The caller has its answer when the job is on disk. A service that dies, however it
//! does, goes on where it was when it is started again with the same files.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use microbatch::{CancellationToken, Stats, TrySubmitError};
use microbatch_durable::{
    Appended, Drain, DrainError, DrainReport, Drained, Durable, RedbStore, Store as _,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::error::ServiceError;
use crate::flight::Flight;
use crate::meter::Meter;
use crate::metrics::Metrics;
use crate::store::Store;

/// Jobs that wait on disk before callers are refused.
const MOST_WAITING: usize = 1_000_000;

/// Flights a commit of the store.
const BATCH: usize = 256;

/// A flight, and the id under which it is stored once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub id: String,
    pub flight: Flight,
}

pub struct Later {
    front: Durable<Job>,
    drain: Mutex<Option<JoinHandle<Result<Drained, DrainError>>>>,
    jobs: RedbStore,
    counts: Arc<Counts>,
    pub meter: Meter,
}

/// What came in and went out, so that nobody need ask the disk.
struct Counts {
    /// Below zero for a moment where a job is stored before its caller has counted it.
    on_disk: AtomicI64,
}

impl Later {
    /// Starts to accept jobs and to store them, until `stop`. What is on disk by then
    /// waits there for the next start.
    pub async fn start(
        store: Arc<Store>,
        jobs: RedbStore,
        metrics: &Metrics,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let depth = jobs.depth().await.context("cannot read the jobs")?;
        let counts = Arc::new(Counts {
            on_disk: AtomicI64::new(depth.pending().cast_signed()),
        });
        let front = metrics.of(|| {
            Durable::builder(jobs.clone())
                .name("later")
                .max_pending(MOST_WAITING)
                .build_running(stop.clone())
        })?;
        let insert = move |jobs: Vec<Job>| {
            let store = Arc::clone(&store);
            async move {
                let results = vec![(); jobs.len()];
                store.insert_once(jobs).await.map(|()| results)
            }
        };
        let settled = Arc::clone(&counts);
        let drain = Drain::builder(jobs.clone(), insert)
            .name("later")
            .max_batch_size(BATCH)
            .on_batch(move |report| settled.settle(report))
            .build()?;
        let drain = Mutex::new(Some(tokio::spawn(drain.run(stop))));
        Ok(Self {
            front,
            drain,
            jobs,
            counts,
            meter: Meter::default(),
        })
    }

    /// Accepts the flight under an id, and says whether it is new. It is on disk then.
    pub async fn accept(&self, job: Job) -> Result<bool, ServiceError> {
        self.meter.measure(self.submit(job)).await
    }

    async fn submit(&self, job: Job) -> Result<bool, ServiceError> {
        let handle = self.front.try_submit(job.id.clone(), job);
        let handle = handle.map_err(|error| match error {
            TrySubmitError::Closed(_) => ServiceError::Stopping,
            _ => ServiceError::Full,
        })?;
        match handle.await? {
            Appended::New => {
                self.counts.on_disk.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Appended::Duplicate => Ok(false),
            Appended::Refused(why) => Err(ServiceError::unprocessable(why.to_string())),
        }
    }

    /// Jobs on disk that are not stored.
    pub fn on_disk(&self) -> u64 {
        u64::try_from(self.counts.on_disk.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// What the front has done; its batches are commits.
    pub fn stats(&self) -> Stats {
        self.front.stats()
    }

    /// Waits until what was accepted is on disk, and what was taken up is stored.
    ///
    /// # Errors
    ///
    /// Says what was given up because time ran out; it is still on disk.
    pub async fn drained(&self) -> anyhow::Result<()> {
        let front = self.front.shutdown().await;
        let drain = self
            .drain
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let drain = match drain {
            Some(drain) => drain.await.context("the drain failed")?.map(drop),
            None => Ok(()),
        };
        self.jobs.close().await;
        front?;
        Ok(drain?)
    }
}

impl Counts {
    fn settle(&self, report: &DrainReport<'_>) {
        let gone = i64::try_from(report.done + report.dead).unwrap_or(i64::MAX);
        self.on_disk.fetch_sub(gone, Ordering::Relaxed);
    }
}
