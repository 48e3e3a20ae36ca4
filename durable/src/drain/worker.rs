//! The loop: a slot, a lease, a plan, and a task a batch.
//!
//! # Invariants
//!
//! - Only the loop leases and takes slots; tasks give slots back. A slot is free once its
//!   batch has been processed, and before it is settled: so one commit of the store may
//!   hold a settlement and the next lease. Not so around the last attempt of a job, which
//!   has all slots and all turns: see `attempts`.
//! - Whatever is leased belongs to a task of the tracker, which settles or releases it
//!   also if the future of the loop is dropped.

use std::iter;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use microbatch::{BatchProcessor, CancellationToken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::attempts::{self, Limits, NextLease, Plan};
use super::input::Input;
use super::report::{DrainError, DrainReport, Drained};
use crate::codec::Codec;
use crate::job::Leased;
use crate::outcome::{IntoVerdict, Settled, Verdict};
use crate::store::Store;

pub(super) type Backoff = dyn Fn(u32) -> Duration + Send + Sync;
pub(super) type Hook = dyn Fn(&DrainReport<'_>) + Send + Sync;

/// What the loop and its tasks share.
pub(super) struct Shared<S, P, C> {
    pub(super) store: S,
    pub(super) processor: P,
    pub(super) codec: C,
    pub(super) limits: Limits,
    pub(super) max_in_flight: usize,
    pub(super) shutdown_timeout: Duration,
    pub(super) backoff: Arc<Backoff>,
    pub(super) on_batch: Option<Box<Hook>>,
    pub(super) name: String,
    pub(super) counts: Mutex<Counts>,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) drained: Drained,
    /// Jobs that the store did not take back in time.
    pub(super) unreleased: usize,
}

/// The places of batches: a slot while one is processed, a turn until it is settled. A
/// lease waits for both.
struct Room {
    in_flight: u32,
    slots: Arc<Semaphore>,
    /// Twice as many, so that as many batches again may be settled meanwhile; a store that
    /// fails stops the loop.
    turns: Arc<Semaphore>,
}

/// What a lease occupies: a slot and a turn, or all of them.
struct LeasePlace {
    slot: OwnedSemaphorePermit,
    turn: OwnedSemaphorePermit,
}

/// What a batch occupies. The batches of one lease share its turn.
pub(super) struct Place {
    pub(super) slot: OwnedSemaphorePermit,
    pub(super) turn: Arc<OwnedSemaphorePermit>,
}

impl Room {
    fn new(max_in_flight: usize) -> Self {
        // All can be acquired at once, which is by `u32`.
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX) / 2;
        let in_flight = u32::try_from(max_in_flight).map_or(most, |n| n.min(most));
        Self {
            in_flight,
            slots: Arc::new(Semaphore::new(in_flight as usize)),
            turns: Arc::new(Semaphore::new(2 * in_flight as usize)),
        }
    }

    /// Waits for a place; alone, until nothing is processed or unsettled.
    async fn wait(&self, alone: bool) -> Option<LeasePlace> {
        let (turns, slots) = match alone {
            true => (2 * self.in_flight, self.in_flight),
            false => (1, 1),
        };
        let turn = Arc::clone(&self.turns)
            .acquire_many_owned(turns)
            .await
            .ok()?;
        let slot = Arc::clone(&self.slots)
            .acquire_many_owned(slots)
            .await
            .ok()?;
        Some(LeasePlace { slot, turn })
    }

    /// Returns places for so many batches of a lease, or as many as there are.
    fn more(
        &self,
        first: OwnedSemaphorePermit,
        turn: &Arc<OwnedSemaphorePermit>,
        batches: usize,
    ) -> Vec<Place> {
        let further = || Arc::clone(&self.slots).try_acquire_owned().ok();
        let slots = iter::once(first).chain(iter::from_fn(further));
        let places = slots.take(batches).map(|slot| Place {
            slot,
            turn: Arc::clone(turn),
        });
        places.collect()
    }
}

impl LeasePlace {
    /// Keeps one slot and one turn, and gives the others back.
    fn share(&mut self) {
        for permit in [&mut self.slot, &mut self.turn] {
            drop(permit.split(permit.num_permits() - 1));
        }
    }
}

impl<S, P, C> Shared<S, P, C>
where
    S: Store,
    P: Send + Sync + 'static,
    C: Send + Sync + 'static,
{
    pub(super) async fn run<J, I, R>(
        self: Arc<Self>,
        cancel: CancellationToken,
    ) -> Result<Drained, DrainError>
    where
        I: Input<J, S::Lease>,
        J: Send + 'static,
        R: IntoVerdict + Send + 'static,
        P: BatchProcessor<I, R>,
        C: Codec<J>,
    {
        let room = Room::new(self.max_in_flight);
        let tasks = TaskTracker::new();
        let give_back = CancellationToken::new();
        let _given_back_on_drop = give_back.clone().drop_guard();
        let mut next = NextLease::FIRST;
        loop {
            let leased = async {
                let place = room.wait(next.alone).await?;
                Some((place, self.lease(next.max).await))
            };
            // Cancelled first, so that a stop leases nothing more.
            let (mut place, leased) = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(leased) = leased => leased,
                else => break,
            };
            let free = 1 + room.slots.available_permits();
            let plan = attempts::plan(leased, self.limits, free, next.alone);
            if next.alone && !plan.next.alone {
                place.share();
            }
            next = plan.next;
            let turn = Arc::new(place.turn);
            let places = room.more(place.slot, &turn, plan.batches.len());
            self.start::<J, I, R>(plan, places, turn, &tasks, &give_back);
        }
        tasks.close();
        if timeout(self.shutdown_timeout, tasks.wait()).await.is_err() {
            give_back.cancel();
            // Each settlement ends by itself now, within the same time again.
            tasks.wait().await;
        }
        let counts = self.counts();
        match counts.unreleased {
            0 => Ok(counts.drained),
            jobs => Err(DrainError::Unreleased {
                jobs,
                drained: counts.drained,
            }),
        }
    }

    /// Starts the batches of a lease, once the rest of it is put back.
    fn start<J, I, R>(
        self: &Arc<Self>,
        plan: Plan<S::Lease>,
        places: Vec<Place>,
        turn: Arc<OwnedSemaphorePermit>,
        tasks: &TaskTracker,
        give_back: &CancellationToken,
    ) where
        I: Input<J, S::Lease>,
        J: Send + 'static,
        R: IntoVerdict + Send + 'static,
        P: BatchProcessor<I, R>,
        C: Codec<J>,
    {
        let (shared, give_back) = (Arc::clone(self), give_back.clone());
        let Plan {
            batches,
            put_back,
            spent,
            ..
        } = plan;
        let start = {
            let tasks = tasks.clone();
            let (shared, give_back) = (Arc::clone(&shared), give_back.clone());
            move || {
                for (batch, place) in batches.into_iter().zip(places) {
                    let shared = Arc::clone(&shared);
                    let give_back = give_back.clone();
                    tasks.spawn(shared.process_batch::<J, I, R>(batch, place, give_back));
                }
            }
        };
        if put_back.is_empty() && spent.is_empty() {
            return start();
        }
        tasks.spawn(async move {
            shared.settle_unprocessed(put_back, spent, &give_back).await;
            start();
            drop(turn);
        });
    }

    /// Puts jobs back that are not processed now, and declares dead those whose process
    /// ended in each of their attempts.
    async fn settle_unprocessed(
        &self,
        put_back: Vec<Leased<S::Lease>>,
        spent: Vec<Leased<S::Lease>>,
        give_back: &CancellationToken,
    ) {
        let attempts = self.limits.max_attempts;
        let reason =
            format!("delivered {attempts} times and never settled: its process died each time");
        let released = put_back
            .into_iter()
            .map(|job| (job.lease, Verdict::Release));
        let dead = spent.iter().map(|job| {
            let reason = reason.clone();
            (job.lease.clone(), Verdict::Dead { reason })
        });
        let verdicts: Vec<_> = released.chain(dead).collect();
        let answers = self.settle(&verdicts, give_back).await;
        for (answer, job) in answers.iter().rev().zip(spent.iter().rev()) {
            let drained = &mut self.counts().drained;
            match answer {
                Settled::Held => {
                    self.log_dead(job, &reason);
                    drained.dead += 1;
                }
                Settled::Lost => drained.lost += 1,
                Settled::Unknown => drained.unknown += 1,
            }
        }
    }

    pub(super) fn log_dead(&self, job: &Leased<S::Lease>, reason: &str) {
        tracing::error!(
            name = self.name, id = %job.id, attempt = job.attempt, reason,
            "the job is dead",
        );
    }

    pub(super) fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
