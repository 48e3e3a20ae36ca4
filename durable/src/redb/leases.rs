//! What a lease brought, until its caller has received it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use microbatch::WeakMicroBatch;

use super::engine::{Answer, Command};
use super::face::RedbLease;
use crate::job::Leased;

/// Leases whose jobs reached nobody, because the call was dropped. The next transaction
/// releases them.
#[derive(Default)]
pub(super) struct Unreceived {
    leases: Mutex<Vec<RedbLease>>,
    batcher: OnceLock<WeakMicroBatch<Command, Answer>>,
}

impl Unreceived {
    pub(super) fn set_batcher(&self, batcher: WeakMicroBatch<Command, Answer>) {
        let _ = self.batcher.set(batcher);
    }

    pub(super) fn take(&self) -> Vec<RedbLease> {
        std::mem::take(&mut *self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn put_back(&self, leases: Vec<RedbLease>) {
        self.leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(leases);
    }

    fn release(&self, leases: Vec<RedbLease>) {
        self.put_back(leases);
        let batcher = self.batcher.get().and_then(WeakMicroBatch::upgrade);
        // If the queue is full, what is in it makes a transaction as well. If there is no
        // batcher any more, the leases end with it.
        if let Some(batcher) = batcher {
            drop(batcher.try_submit(Command::Release));
        }
    }
}

/// What a lease brought. Its drop releases the jobs unless they were received.
pub(super) struct Leases {
    pub(super) jobs: Vec<Leased<RedbLease>>,
    /// If there is none: when there will be one.
    pub(super) due: Option<SystemTime>,
    unreceived: Arc<Unreceived>,
}

impl Leases {
    pub(super) fn new(
        jobs: Vec<Leased<RedbLease>>,
        due: Option<SystemTime>,
        unreceived: &Arc<Unreceived>,
    ) -> Self {
        Self {
            jobs,
            due,
            unreceived: Arc::clone(unreceived),
        }
    }

    pub(super) fn receive(mut self) -> Vec<Leased<RedbLease>> {
        std::mem::take(&mut self.jobs)
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if !self.jobs.is_empty() {
            let leases = self.jobs.drain(..).map(|job| job.lease);
            self.unreceived.release(leases.collect());
        }
    }
}
