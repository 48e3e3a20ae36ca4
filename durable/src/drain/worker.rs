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

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use microbatch::{BatchProcessor, CancellationToken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::attempts::{self, Limits, NextLease, Plan};
use super::report::{DrainError, DrainReport, Drained};
use crate::codec::Codec;
use crate::job::Leased;
use crate::outcome::{IntoVerdict, Settled, Verdict};
use crate::panics::catch_async;
use crate::store::Store;

pub(super) type Backoff = dyn Fn(u32) -> Duration + Send + Sync;
pub(super) type Hook = dyn Fn(&DrainReport<'_>) + Send + Sync;

/// A pause after an empty answer of a store, which should have waited instead.
const EMPTY_PAUSE: Duration = Duration::from_millis(10);

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
    unreleased: usize,
}

/// What a batch occupies: a slot while it is processed, a turn until it is settled.
pub(super) struct Place {
    pub(super) slot: OwnedSemaphorePermit,
    pub(super) turn: Arc<OwnedSemaphorePermit>,
}

impl<S, P, C> Shared<S, P, C>
where
    S: Store,
    P: Send + Sync + 'static,
    C: Send + Sync + 'static,
{
    pub(super) async fn run<J, R>(
        self: Arc<Self>,
        cancel: CancellationToken,
    ) -> Result<Drained, DrainError>
    where
        J: Send + 'static,
        R: IntoVerdict + Send + 'static,
        P: BatchProcessor<J, R>,
        C: Codec<J>,
    {
        // All can be acquired at once, which is by `u32`.
        let most =
            (u32::MAX / 2).min(u32::try_from(Semaphore::MAX_PERMITS / 2).unwrap_or(u32::MAX));
        let in_flight = u32::try_from(self.max_in_flight).map_or(most, |n| n.min(most));
        let slots = Arc::new(Semaphore::new(in_flight as usize));
        // As many again may be settled meanwhile: a store that fails stops the loop.
        let turns = Arc::new(Semaphore::new(2 * in_flight as usize));
        let tasks = TaskTracker::new();
        let give_back = CancellationToken::new();
        let _given_back_on_drop = give_back.clone().drop_guard();
        let mut next = NextLease::FIRST;
        loop {
            let leased = async {
                // With all turns, everything is settled.
                let (all_turns, all_slots) = match next.alone {
                    true => (2 * in_flight, in_flight),
                    false => (1, 1),
                };
                let turn = Arc::clone(&turns)
                    .acquire_many_owned(all_turns)
                    .await
                    .ok()?;
                let slot = Arc::clone(&slots)
                    .acquire_many_owned(all_slots)
                    .await
                    .ok()?;
                Some((turn, slot, self.lease(next.max).await))
            };
            // Cancelled first, so that a stop leases nothing more.
            let (mut turn, mut slot, leased) = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(leased) = leased => leased,
                else => break,
            };
            let free_slots = 1 + slots.available_permits();
            let plan = attempts::plan(leased, self.limits, free_slots, next.alone);
            if next.alone && !plan.next.alone {
                // Others may come beside it.
                drop((
                    turn.split(2 * in_flight as usize - 1),
                    slot.split(in_flight as usize - 1),
                ));
            }
            next = plan.next;
            let turn = Arc::new(turn);
            let mut slot = Some(slot);
            let free_slot = || {
                slot.take()
                    .or_else(|| Arc::clone(&slots).try_acquire_owned().ok())
            };
            let places: Vec<_> = std::iter::from_fn(free_slot)
                .take(plan.batches.len())
                .map(|slot| Place {
                    slot,
                    turn: Arc::clone(&turn),
                })
                .collect();
            self.start::<J, R>(plan, places, turn, &tasks, &give_back);
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
    fn start<J, R>(
        self: &Arc<Self>,
        plan: Plan<S::Lease>,
        places: Vec<Place>,
        turn: Arc<OwnedSemaphorePermit>,
        tasks: &TaskTracker,
        give_back: &CancellationToken,
    ) where
        J: Send + 'static,
        R: IntoVerdict + Send + 'static,
        P: BatchProcessor<J, R>,
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
                    tasks.spawn(shared.process_batch::<J, R>(batch, place, give_back));
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

    /// Leases, however often the store fails.
    async fn lease(&self, max: usize) -> Vec<Leased<S::Lease>> {
        let mut pauses = store_pauses();
        loop {
            match ask(|| self.store.lease(max)).await {
                Ok(leased) if leased.is_empty() => sleep(EMPTY_PAUSE).await,
                Ok(leased) => return leased,
                Err(error) => sleep(self.pause_after("lease", &error, &mut pauses)).await,
            }
        }
    }

    /// Settles, however often the store fails, until a stop runs out of time. Answers for
    /// each whether its lease held.
    pub(super) async fn settle(
        &self,
        verdicts: &[(S::Lease, Verdict)],
        give_back: &CancellationToken,
    ) -> Vec<Settled> {
        if verdicts.is_empty() {
            return Vec::new();
        }
        let out_of_time = async {
            give_back.cancelled().await;
            sleep(self.shutdown_timeout).await;
        };
        tokio::select! {
            biased;
            answers = self.settle_until_answered(verdicts) => answers,
            () = out_of_time => {
                let jobs = verdicts.len();
                tracing::error!(
                    name = self.name, jobs,
                    "the store did not take the jobs back; they are due when their leases end",
                );
                self.counts().unreleased += jobs;
                vec![Settled::Unknown; jobs]
            }
        }
    }

    async fn settle_until_answered(&self, verdicts: &[(S::Lease, Verdict)]) -> Vec<Settled> {
        let mut pauses = store_pauses();
        let mut repeated = false;
        loop {
            let pause = match ask(|| self.store.settle(verdicts)).await {
                Ok(mut answers) if answers.len() == verdicts.len() => {
                    // An earlier call may have settled what this one calls lost.
                    for answer in answers.iter_mut().filter(|_| repeated) {
                        if *answer == Settled::Lost {
                            *answer = Settled::Unknown;
                        }
                    }
                    return answers;
                }
                Ok(answers) => {
                    let error = WrongCount {
                        answers: answers.len(),
                        jobs: verdicts.len(),
                    };
                    self.pause_after("settle", &error, &mut pauses)
                }
                Err(error) => self.pause_after("settle", &error, &mut pauses),
            };
            repeated = true;
            sleep(pause).await;
        }
    }

    pub(super) fn log_dead(&self, job: &Leased<S::Lease>, reason: &str) {
        tracing::error!(
            name = self.name, id = %job.id, attempt = job.attempt, reason,
            "the job is dead",
        );
    }

    /// Returns how long to wait before the store is asked again.
    fn pause_after(
        &self,
        call: &str,
        error: &(dyn Error + 'static),
        pauses: &mut ExponentialBackoff,
    ) -> Duration {
        self.count_store_error(call, error);
        pauses.next().unwrap_or(EMPTY_PAUSE)
    }

    pub(super) fn count_store_error(&self, call: &str, error: &(dyn Error + 'static)) {
        tracing::warn!(
            name = self.name,
            call,
            error,
            "the store failed; it is asked again"
        );
        self.counts().drained.store_errors += 1;
    }

    pub(super) fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a call of the store has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError<E> {
    #[error(transparent)]
    Failed(E),
    #[error("the store panicked: {0}")]
    Panicked(String),
}

/// Calls the store. A panic of it is one more error: the leases of a task that panicked
/// would last as long as the process.
pub(super) async fn ask<T, E, F>(call: impl FnOnce() -> F) -> Result<T, CallError<E>>
where
    F: Future<Output = Result<T, E>>,
{
    match catch_async(call).await {
        Ok(answer) => answer.map_err(CallError::Failed),
        Err(message) => Err(CallError::Panicked(message)),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the store answered {answers} times for {jobs} jobs")]
pub(super) struct WrongCount {
    pub(super) answers: usize,
    pub(super) jobs: usize,
}

/// Pauses between two calls of a store that fails: from 20 ms to 5 s, with jitter.
fn store_pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}
