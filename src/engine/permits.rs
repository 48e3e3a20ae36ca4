//! The permits that a batch needs before it is cut.
//!
//! # Invariants
//!
//! - Permits are acquired only while a batch is due, and given back as soon as none is:
//!   an idle micro-batcher neither holds permits nor waits for them.
//! - The semaphores are acquired in their order, so micro-batchers that share them in
//!   the same order cannot wait for each other in a circle.

use std::future::pending;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// The permits of one batch, one of each semaphore.
pub(crate) type HeldPermits = Vec<OwnedSemaphorePermit>;

pub(super) struct Permits {
    semaphores: Vec<Arc<Semaphore>>,
    held: HeldPermits,
    /// The permit that is waited for, of the semaphore after those held.
    acquiring: Option<BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>>,
    closed: Option<AcquireError>,
}

impl Permits {
    pub(super) fn new(semaphores: Vec<Arc<Semaphore>>) -> Self {
        Self {
            semaphores,
            held: Vec::new(),
            acquiring: None,
            closed: None,
        }
    }

    /// Returns the permits for a batch that is due, or an error if a semaphore is
    /// closed. `None` if they must be waited for.
    pub(super) fn take(&mut self) -> Option<Result<HeldPermits, AcquireError>> {
        while self.acquiring.is_none() && self.closed.is_none() {
            let Some(next) = self.semaphores.get(self.held.len()) else {
                return Some(Ok(std::mem::take(&mut self.held)));
            };
            match Arc::clone(next).try_acquire_owned() {
                Ok(permit) => self.held.push(permit),
                // A closed semaphore says so when it is awaited.
                Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
                    self.acquiring = Some(Box::pin(Arc::clone(next).acquire_owned()));
                }
            }
        }
        let error = self.closed.take()?;
        self.release();
        Some(Err(error))
    }

    /// Whether permits are waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.acquiring.is_some()
    }

    /// Waits until [`take`](Self::take) is worth another call; for ever if no permit is
    /// waited for. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let Some(acquiring) = &mut self.acquiring else {
            return pending().await;
        };
        match acquiring.await {
            Ok(permit) => self.held.push(permit),
            Err(error) => self.closed = Some(error),
        }
        self.acquiring = None;
    }

    /// Gives back what is held, and stops waiting.
    pub(super) fn release(&mut self) {
        self.acquiring = None;
        self.held.clear();
    }
}
