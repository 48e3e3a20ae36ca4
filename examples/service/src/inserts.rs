//! The two ways to insert that the page compares.

use std::sync::Arc;

use microbatch::{MicroBatch, TrySubmitError};
use tokio::sync::Semaphore;

use crate::error::ServiceError;
use crate::flight::Flight;
use crate::meter::Meter;
use crate::settings::QUEUE_CAPACITY;
use crate::store::Store;

/// One request is one commit. As many requests wait for their turn as the queue of the
/// micro-batcher has room for.
pub struct RowByRow {
    store: Arc<Store>,
    room: Semaphore,
    writers: Semaphore,
    pub meter: Meter,
}

impl RowByRow {
    pub fn new(store: Arc<Store>) -> Self {
        let writers = store.writers();
        Self {
            store,
            room: Semaphore::new(QUEUE_CAPACITY + writers),
            // Each commit waits for at most one batch, and each batch for one commit.
            writers: Semaphore::new(writers),
            meter: Meter::default(),
        }
    }

    /// Stores the flight and returns its id.
    pub async fn insert(&self, flight: Flight) -> Result<i64, ServiceError> {
        self.meter.measure(self.store(flight)).await
    }

    async fn store(&self, flight: Flight) -> Result<i64, ServiceError> {
        let _room = self.room.try_acquire().map_err(|_| ServiceError::Full)?;
        let _writer = self.writers.acquire().await;
        let ids = self.store.insert(vec![flight]).await?;
        ids.first().copied().ok_or(ServiceError::Failed)
    }
}

/// One commit for as many requests as came together.
pub struct Batched {
    pub batcher: MicroBatch<Flight, i64>,
    pub meter: Meter,
}

impl Batched {
    pub fn new(batcher: MicroBatch<Flight, i64>) -> Self {
        Self {
            batcher,
            meter: Meter::default(),
        }
    }

    /// Stores the flight and returns its id.
    pub async fn insert(&self, flight: Flight) -> Result<i64, ServiceError> {
        self.meter.measure(self.submit(flight)).await
    }

    async fn submit(&self, flight: Flight) -> Result<i64, ServiceError> {
        let handle = self.batcher.try_submit(flight).map_err(refusal)?;
        Ok(handle.await?)
    }

    /// Has the flight stored without waiting for that.
    pub fn offer(&self, flight: Flight) -> Result<(), ServiceError> {
        // The job runs although its handle is dropped.
        let offered = self.batcher.try_submit(flight).map_err(refusal).map(drop);
        if matches!(offered, Err(ServiceError::Full)) {
            self.meter.count_refused();
        }
        offered
    }
}

fn refusal(error: TrySubmitError<Flight>) -> ServiceError {
    match error {
        TrySubmitError::Full(_) => ServiceError::Full,
        TrySubmitError::Closed(_) => ServiceError::Stopping,
        TrySubmitError::TooHeavy(_) => {
            ServiceError::unprocessable("the flight is too large".into())
        }
    }
}
