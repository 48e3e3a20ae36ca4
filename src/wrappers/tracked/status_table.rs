//! The table in which a job's status is found by the job's id.
//!
//! # Invariants
//!
//! - An id is in `live` from before its job is submitted until after its outcome is in
//!   `finished`, and a query reads `live` first. So a query never misses an id that is
//!   known, and a status goes forward only.
//! - The call that inserts an id into `live` submits its job; other calls with the same
//!   id wait for that job. The call reads `finished` while the id is in `live`, when no
//!   other call can insert the id into `finished` or submit it again.
//! - A job is invisible until it is accepted or waits for room, so a job that is refused
//!   leaves no trace.
//! - Of user code, only the comparison of ids runs under the lock.
//! - Nothing here panics, whatever the code of ids, results and wakers does, because
//!   drops call it.

use std::borrow::Borrow;
use std::hash::{Hash, RandomState};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tracing::error;

use super::JobStatus;
use crate::engine::panics::{Shielded, catch, discard, trace};
use crate::engine::reply::{self, ReplySender};
use crate::error::JobError;
use crate::handle::JobHandle;
use crate::wrappers::id_map::{BuildIdentityHasher, EqByKey, Id, IdMap, Lookup, shrink};

/// A hundred years. The cache panics for an age of more than a thousand.
const FOR_EVER: Duration = Duration::from_secs(3_153_600_000);

pub(super) struct StatusTable<K, R> {
    hasher: RandomState,
    live: Mutex<IdMap<K, LiveJob<K, R>>>,
    finished: Cache<EqByKey<K>, Retained<R>, BuildIdentityHasher>,
}

/// The outcome of a finished job.
type Retained<R> = Arc<Shielded<Result<R, JobError>>>;

/// A job that has not finished.
struct LiveJob<K, R> {
    record: Arc<JobRecord<K>>,
    /// The callers that submitted the same id later.
    joined: Vec<ReplySender<R>>,
}

impl<K, R> StatusTable<K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    pub(super) fn new(jobs: usize, age: Duration) -> Arc<Self> {
        // The default policy may reject a new entry in favour of an old one.
        let cache = Cache::builder()
            .max_capacity(jobs as u64)
            .eviction_policy(EvictionPolicy::lru());
        let cache = if age < FOR_EVER {
            cache.time_to_live(age)
        } else {
            cache
        };
        Arc::new(Self {
            hasher: RandomState::new(),
            live: Mutex::default(),
            finished: cache.build_with_hasher(BuildIdentityHasher::default()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, IdMap<K, LiveJob<K, R>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inserts the id of a job that the caller is about to submit. If the id is known,
    /// returns a handle for the outcome of its job instead.
    pub(super) fn begin(self: &Arc<Self>, id: K) -> Result<JobGuards<'_, K, R>, JobHandle<R>> {
        let refused = |message| JobHandle::refused(JobError::Panicked(message));
        let id = Id::new(&self.hasher, Shielded::new(id)).map_err(refused)?;
        let record = Arc::new(JobRecord {
            id: id.clone(),
            state: Mutex::new(RecordState::Submitting),
        });
        let job = LiveJob {
            record: Arc::clone(&record),
            joined: Vec::new(),
        };
        let lookup = record.id.lookup();
        let mut live = self.lock();
        if let Some(found) = live.get_mut(lookup.as_key()) {
            let (handle, closed) = found.join();
            drop(live);
            // After the lock is released, because a reply may hold a waker, whose drop is
            // foreign code.
            discard(closed, None);
            return Err(handle);
        }
        if let Some(message) = lookup.take_panic() {
            drop(live);
            return Err(refused(message));
        }
        live.insert(id, job);
        drop(live);
        let submit_guard = SubmitGuard {
            table: self,
            record: Arc::clone(&record),
            ended: false,
        };
        if let Some(outcome) = self.finished.get(lookup.as_key()) {
            let (reply, receiver) = reply::channel();
            send_clone(reply, &outcome);
            submit_guard.undo(&outcome);
            return Err(JobHandle::from_reply(receiver));
        }
        if let Some(message) = lookup.take_panic() {
            submit_guard.undo(&Err(JobError::Panicked(Arc::clone(&message))));
            return Err(refused(message));
        }
        drop(lookup);
        let status_guard = StatusGuard {
            record,
            table: Arc::clone(self) as Arc<dyn FinishJobs<K, R>>,
            disarmed: false,
        };
        Ok((submit_guard, status_guard))
    }

    /// Removes the id of a job that was not submitted, and sends the outcome to the
    /// callers that joined it.
    fn remove(&self, id: &Id<K>, outcome: &Result<R, JobError>) {
        let removed = self.lock().remove_entry(id);
        for reply in removed.into_iter().flat_map(|(_, job)| job.joined) {
            send_clone(reply, outcome);
        }
    }

    pub(super) fn status<Q>(&self, id: &Q) -> Option<JobStatus<R>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let lookup = Lookup::new(&self.hasher, id)?;
        match self.record_state(&lookup) {
            Some(RecordState::Submitted) => Some(JobStatus::Submitted),
            Some(RecordState::Processing) => Some(JobStatus::Processing),
            // A job in state `Submitting` is invisible; an earlier one may be retained.
            _ => {
                let outcome = self.finished.get(lookup.as_key())?;
                Some(JobStatus::Completed(clone_outcome(&outcome)))
            }
        }
    }

    /// Ends the retention of a finished job. Returns whether there was one.
    pub(super) fn forget<Q>(&self, id: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(lookup) = Lookup::new(&self.hasher, id) else {
            return false;
        };
        // `remove` would also return an entry whose retention has ended.
        let found = self.finished.contains_key(lookup.as_key());
        self.finished.invalidate(lookup.as_key());
        found
    }

    fn record_state<Q>(&self, lookup: &Lookup<'_, Q>) -> Option<RecordState>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let live = self.lock();
        Some(*live.get(lookup.as_key())?.record.lock())
    }
}

/// The table as a [`StatusGuard`] sees it, without the bounds of its methods, which a
/// `Drop` must not have.
trait FinishJobs<K, R>: Send + Sync {
    /// Retains the outcomes of the jobs, and sends them to the callers that joined.
    fn finish_jobs(&self, finished: Vec<(Arc<JobRecord<K>>, Retained<R>)>);
}

impl<K, R> FinishJobs<K, R> for StatusTable<K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    fn finish_jobs(&self, finished: Vec<(Arc<JobRecord<K>>, Retained<R>)>) {
        for (record, outcome) in &finished {
            let outcome = Arc::clone(outcome);
            self.finished.insert(EqByKey(record.id.clone()), outcome);
        }
        // After the inserts, so that a query that misses a job here finds it there.
        let mut live = self.lock();
        let records = finished.iter().map(|(record, _)| record);
        let removed: Vec<_> = records
            .map(|record| live.remove_entry(&record.id))
            .collect();
        shrink(&mut live);
        drop(live);
        // Evicts now. By itself the cache evicts later, and holds too many entries until then.
        self.finished.run_pending_tasks();
        for ((_, outcome), removed) in finished.iter().zip(removed) {
            for reply in removed.into_iter().flat_map(|(_, job)| job.joined) {
                send_clone(reply, outcome);
            }
        }
    }
}

/// Completes the jobs of a batch.
pub(super) fn finish_batch<K, R>(
    guards: Vec<StatusGuard<K, R>>,
    outcomes: impl Iterator<Item = Result<R, JobError>>,
) {
    let Some(first) = guards.first() else {
        return;
    };
    let table = Arc::clone(&first.table);
    let records = guards.into_iter().map(StatusGuard::disarm);
    let outcomes = outcomes.map(|outcome| Arc::new(Shielded::new(outcome)));
    table.finish_jobs(records.zip(outcomes).collect());
}

/// The state of a job that has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordState {
    /// Its submission has not ended; no query sees it.
    Submitting,
    Submitted,
    Processing,
    /// Dropped while its submission had not ended. The end of the submission decides
    /// whether it was refused or abandoned.
    Dropped,
}

/// What both guards of a job and the table share.
struct JobRecord<K> {
    id: Id<K>,
    state: Mutex<RecordState>,
}

impl<K> JobRecord<K> {
    fn lock(&self) -> MutexGuard<'_, RecordState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state that follows `Submitting`. Fails with the current state if another
    /// call has set it before.
    fn end_submitting(&self, next: RecordState) -> Result<(), RecordState> {
        let mut state = self.lock();
        if *state != RecordState::Submitting {
            return Err(*state);
        }
        *state = next;
        Ok(())
    }
}

/// The guards of a job that is being submitted.
pub(super) type JobGuards<'a, K, R> = (SubmitGuard<'a, K, R>, StatusGuard<K, R>);

/// Owned by the call that submits the job of an id.
pub(super) struct SubmitGuard<'a, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    table: &'a StatusTable<K, R>,
    record: Arc<JobRecord<K>>,
    ended: bool,
}

impl<K, R> SubmitGuard<'_, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    /// Removes the id, and sends the outcome to the callers that joined.
    fn undo(mut self, outcome: &Result<R, JobError>) {
        self.ended = true;
        self.table.remove(&self.record.id, outcome);
    }

    /// Ends the submission: the job was refused with this error, or it is submitted.
    pub(super) fn end(mut self, refused: Option<JobError>) {
        if let Some(error) = refused {
            return self.undo(&Err(error));
        }
        self.ended = true;
        if self.record.end_submitting(RecordState::Submitted) == Err(RecordState::Dropped) {
            self.table
                .finish_jobs(vec![(Arc::clone(&self.record), abandoned())]);
        }
    }
}

impl<K, R> Drop for SubmitGuard<'_, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        // Not ended, so the submission panicked. If the job was dropped, it was refused,
        // and the panic came from its drop.
        if !self.ended
            && self.record.end_submitting(RecordState::Submitted) == Err(RecordState::Dropped)
        {
            let abandoned = Err(JobError::Abandoned);
            self.table.remove(&self.record.id, &abandoned);
        }
    }
}

/// Owned by the job. Its drop completes the job as abandoned, unless it was disarmed.
pub(super) struct StatusGuard<K, R> {
    record: Arc<JobRecord<K>>,
    table: Arc<dyn FinishJobs<K, R>>,
    disarmed: bool,
}

impl<K, R> StatusGuard<K, R> {
    pub(super) fn id(&self) -> &K {
        self.record.id.key()
    }

    /// Notes that the job is in a batch that is being processed.
    pub(super) fn set_processing(&self) {
        *self.record.lock() = RecordState::Processing;
    }

    fn disarm(mut self) -> Arc<JobRecord<K>> {
        self.disarmed = true;
        Arc::clone(&self.record)
    }
}

impl<K, R> Drop for StatusGuard<K, R> {
    fn drop(&mut self) {
        if !self.disarmed && self.record.end_submitting(RecordState::Dropped).is_err() {
            self.table
                .finish_jobs(vec![(Arc::clone(&self.record), abandoned())]);
        }
    }
}

impl<K, R> LiveJob<K, R> {
    /// Returns a handle for a caller that submitted the same id, and replies whose
    /// handles were dropped, to be dropped without the lock.
    fn join(&mut self) -> (JobHandle<R>, Vec<ReplySender<R>>) {
        let joined = &mut self.joined;
        let mut closed = Vec::new();
        if joined.len() == joined.capacity() {
            // Removes the replies whose handles were dropped before it grows, so that
            // a caller that submits again and again takes no memory. At least half of
            // the capacity is free afterwards, so the cost per call is constant.
            (closed, *joined) = mem::take(joined)
                .into_iter()
                .partition(ReplySender::is_closed);
            if joined.len() > joined.capacity() / 2 {
                joined.reserve(joined.capacity());
            }
        }
        let (reply, receiver) = reply::channel();
        joined.push(reply);
        (JobHandle::from_reply(receiver), closed)
    }
}

/// Sends a clone of the outcome. Panics of the clone and of the receiver's waker are
/// caught, because the other callers must get their replies.
fn send_clone<R: Clone>(reply: ReplySender<R>, outcome: &Result<R, JobError>) {
    let clone = clone_outcome(outcome);
    if let Err(error) = catch(|| reply.send(clone)) {
        trace(|| error!(%error, "the waker of a caller or the drop of a result panicked"));
    }
}

/// Clones an outcome. If that panics, returns the panic as an error.
fn clone_outcome<R: Clone>(outcome: &Result<R, JobError>) -> Result<R, JobError> {
    catch(|| outcome.clone()).unwrap_or_else(|message| Err(JobError::Panicked(message)))
}

fn abandoned<R>() -> Retained<R> {
    Arc::new(Shielded::new(Err(JobError::Abandoned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_whose_handles_were_dropped_take_no_memory() {
        let table = StatusTable::<u32, u32>::new(1, FOR_EVER);
        let Ok((submit_guard, status_guard)) = table.begin(1) else {
            panic!("the id is not known");
        };
        let room = || {
            let live = table.lock();
            let mut capacities = live.values().map(|job| job.joined.capacity());
            capacities.next().expect("it is live")
        };
        for _ in 0..1000 {
            assert!(table.begin(1).is_err());
        }
        assert!(room() < 10, "{}", room());
        let joined: Vec<_> = (0..1000).map(|_| table.begin(1).err()).collect();
        assert!(room() < 4000, "{}", room());
        submit_guard.end(None);
        drop(status_guard);
        for handle in joined.into_iter().flatten() {
            assert!(handle.is_finished());
        }
    }

    #[test]
    fn a_burst_of_jobs_leaves_no_memory() {
        let table = StatusTable::<u32, u32>::new(1, FOR_EVER);
        let guards: Vec<_> = (0..10_000)
            .filter_map(|id| {
                let (submit_guard, status_guard) = table.begin(id).ok()?;
                submit_guard.end(None);
                Some(status_guard)
            })
            .collect();
        assert!(table.lock().capacity() >= 10_000);
        drop(guards);
        assert!(table.lock().capacity() < 200);
    }
}
