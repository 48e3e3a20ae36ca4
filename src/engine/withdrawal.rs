//! Where an accepted job is, shared with its handle under `cancel_on_drop`, so that
//! the dropped handle can withdraw the job.
//!
//! # Invariants
//!
//! - The stage goes `WAITING`, `QUEUED`, `PENDING`, and ends as `LEFT` or
//!   `WITHDRAWN`. Each change is a compare-and-exchange, so exactly one party takes
//!   the job out: its handle, its batch, or a storage that drops it.
//! - The stage becomes `QUEUED`, leaves `QUEUED` and becomes `WITHDRAWN` only under
//!   the lock of the queue. So the queue knows how many of its jobs are withdrawn.
//! - Who takes the job out takes its span out, too: the handle outlives the job and
//!   must not keep the span of its caller open.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::time::Instant;
use tracing::Span;

/// Waits for room in the queue.
const WAITING: u8 = 0;
/// In the queue.
const QUEUED: u8 = 1;
/// With the worker, in the storage.
const PENDING: u8 = 2;
/// In a batch, or dropped.
const LEFT: u8 = 3;
/// Withdrawn by its handle.
const WITHDRAWN: u8 = 4;

/// The stage of a job that can be withdrawn, and what is needed to uncount it.
pub(crate) struct Withdrawal {
    stage: AtomicU8,
    weight: usize,
    /// When the job was accepted, once it is pending.
    accepted: OnceLock<Instant>,
    /// In which generation of pending jobs the worker took the job up; see
    /// [`Queue::abandon_pending`](super::queue::Queue::abandon_pending).
    generation: AtomicU64,
    /// The span the job was submitted in. Boxed, because it is nearly always absent.
    span: Option<Box<Mutex<Option<Span>>>>,
}

impl Withdrawal {
    /// Returns the state of a job that waits for room.
    pub(crate) fn new(weight: usize, span: Option<Span>) -> Self {
        Self {
            stage: AtomicU8::new(WAITING),
            weight,
            accepted: OnceLock::new(),
            generation: AtomicU64::new(0),
            span: span.map(|span| Box::new(Mutex::new(Some(span)))),
        }
    }

    fn change(&self, from: u8, to: u8) -> bool {
        let changed = self
            .stage
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        changed.is_ok()
    }

    pub(crate) fn set_queued(&self) {
        self.change(WAITING, QUEUED);
    }

    pub(crate) fn set_pending(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
        self.change(QUEUED, PENDING);
    }

    pub(crate) fn set_accepted(&self, accepted: Instant) {
        let _ = self.accepted.set(accepted);
    }

    /// Notes that the job is dropped from the queue.
    pub(crate) fn leave_queue(&self) {
        self.change(QUEUED, LEFT);
    }

    /// Takes the job out of the storage. Returns false if it was withdrawn, and so
    /// is uncounted already.
    pub(crate) fn leave_storage(&self) -> bool {
        self.change(PENDING, LEFT)
    }

    /// Withdraws the job if it is in the queue.
    pub(crate) fn withdraw_queued(&self) -> bool {
        self.change(QUEUED, WITHDRAWN)
    }

    /// Withdraws the job if it is pending. Returns false if all pending jobs of its
    /// generation were abandoned, and so uncounted already.
    pub(crate) fn withdraw_pending(&self, generation: u64) -> bool {
        self.change(PENDING, WITHDRAWN) && self.generation.load(Ordering::Acquire) == generation
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.stage.load(Ordering::Acquire) == WITHDRAWN
    }

    /// Takes the span out, whose drop is foreign code.
    pub(crate) fn take_span(&self) -> Option<Span> {
        let span = self.span.as_ref()?;
        span.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn accepted(&self) -> Option<Instant> {
        self.accepted.get().copied()
    }
}
