//! Which jobs have left their storage. A user's storage may drop any job at any
//! moment, so each job reports its own departure, by a drop.
//!
//! # Invariants
//!
//! - A job that the storage took in reports once: when it goes into a batch, or when it is
//!   dropped. One that was withdrawn does not report, because it is uncounted already.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::withdrawal::Withdrawal;

/// The weights and accept times of the jobs that have left the storage.
#[derive(Default)]
pub(crate) struct Departures(Mutex<Vec<(usize, Instant)>>);

impl Departures {
    pub(crate) fn take(&self) -> Vec<(usize, Instant)> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Travels with a pending job. Its drop reports the departure, unless the job was
/// withdrawn and so uncounted already.
pub(crate) struct DepartureGuard {
    pub(crate) departures: Arc<Departures>,
    pub(crate) weight: usize,
    pub(crate) accepted: Instant,
    pub(crate) withdrawal: Option<Arc<Withdrawal>>,
}

impl Drop for DepartureGuard {
    fn drop(&mut self) {
        let withdrawal = self.withdrawal.as_ref();
        if withdrawal.is_some_and(|withdrawal| !withdrawal.leave_storage()) {
            return;
        }
        let mut departures = self.departures.0.lock();
        let departures = departures.as_mut().unwrap_or_else(|error| error.get_mut());
        departures.push((self.weight, self.accepted));
    }
}
