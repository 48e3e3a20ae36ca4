//! Where everybody finds how a job stands.
//!
//! # Invariants
//!
//! - An id is in `live` from before its job is submitted until after its
//!   outcome is in `finished`, and whoever asks looks into `live` first. So an
//!   id that is known is never missed in between, and its states go forward
//!   only.
//! - Who puts an id into `live` submits its job; all others who come with the
//!   id wait for that job. `finished` is asked with the id claimed, when nobody
//!   else can put it there or take it up again.
//! - A claim is invisible until the job is accepted, or waits for room, so a
//!   refusal leaves no trace.
//! - No code of the user's but the comparison of ids runs under the lock.
//! - Nothing here panics, whatever the code of ids, results and wakers does: it
//!   runs in drops.

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
use crate::wrappers::id_map::{ByValue, Hashes, Id, IdMap, Needle, shrink};

/// A hundred years. The cache refuses an age of a thousand; nobody will miss the
/// rest.
const FOR_EVER: Duration = Duration::from_secs(3_153_600_000);

pub(super) struct Board<K, R> {
    hasher: RandomState,
    live: Mutex<IdMap<K, Live<K, R>>>,
    finished: Cache<ByValue<K>, Outcome<R>, Hashes>,
}

type Outcome<R> = Arc<Shielded<Result<R, JobError>>>;

struct Live<K, R> {
    record: Arc<Record<K>>,
    /// Those who came with the same id.
    others: Vec<ReplySender<R>>,
}

impl<K, R> Board<K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    pub(super) fn new(jobs: usize, age: Duration) -> Arc<Self> {
        // Not the default policy, which may prefer what it has to what is new.
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
            finished: cache.build_with_hasher(Hashes::default()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, IdMap<K, Live<K, R>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims an id for a job of the caller's, or joins those who wait for it.
    pub(super) fn claim(self: &Arc<Self>, id: K) -> Result<Claimed<'_, K, R>, JobHandle<R>> {
        let refused = |message| JobHandle::refused(JobError::Panicked(message));
        let id = Id::new(&self.hasher, Shielded::new(id)).map_err(refused)?;
        let record = Arc::new(Record {
            id: id.clone(),
            stage: Mutex::new(Stage::Claimed),
        });
        let live = Live {
            record: Arc::clone(&record),
            others: Vec::new(),
        };
        let needle = record.id.needle();
        let mut all = self.lock();
        if let Some(found) = all.get_mut(needle.probe()) {
            let (handle, gone) = found.join();
            drop(all);
            // Only now: with a reply goes the waker of who waited for it.
            discard(gone, None);
            return Err(handle);
        }
        if let Some(message) = needle.panicked() {
            drop(all);
            return Err(refused(message));
        }
        all.insert(id, live);
        drop(all);
        let claim = Claim {
            board: self,
            record: Arc::clone(&record),
            settled: false,
        };
        if let Some(outcome) = self.finished.get(needle.probe()) {
            let (reply, receiver) = reply::channel();
            answer(reply, &outcome);
            claim.release(&outcome);
            return Err(JobHandle::from_reply(receiver));
        }
        if let Some(message) = needle.panicked() {
            claim.release(&Err(JobError::Panicked(Arc::clone(&message))));
            return Err(refused(message));
        }
        drop(needle);
        let slot = Slot {
            record,
            ledger: Arc::clone(self) as Arc<dyn Ledger<K, R>>,
            resolved: false,
        };
        Ok((claim, slot))
    }

    /// Gives up a claim, and answers those who joined it.
    fn release(&self, id: &Id<K>, outcome: &Result<R, JobError>) {
        let left = self.lock().remove_entry(id);
        for reply in left.into_iter().flat_map(|(_, live)| live.others) {
            answer(reply, outcome);
        }
    }

    pub(super) fn status<Q>(&self, id: &Q) -> Option<JobStatus<R>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let needle = Needle::new(&self.hasher, id)?;
        match self.stage(&needle) {
            Some(Stage::Submitted) => Some(JobStatus::Submitted),
            Some(Stage::Processing) => Some(JobStatus::Processing),
            // Of a claim there is nothing to tell, but of the job before it.
            _ => {
                let outcome = self.finished.get(needle.probe())?;
                Some(JobStatus::Completed(copy(&outcome)))
            }
        }
    }

    /// Ends the retention of a finished job, if there is one.
    pub(super) fn forget<Q>(&self, id: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(needle) = Needle::new(&self.hasher, id) else {
            return false;
        };
        // `remove` would find an entry that is too old to be found.
        let found = self.finished.contains_key(needle.probe());
        self.finished.invalidate(needle.probe());
        found
    }

    fn stage<Q>(&self, needle: &Needle<'_, Q>) -> Option<Stage>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let all = self.lock();
        Some(*all.get(needle.probe())?.record.stage())
    }
}

impl<K, R> Ledger<K, R> for Board<K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    fn finish(&self, finished: Vec<(Arc<Record<K>>, Outcome<R>)>) {
        for (record, outcome) in &finished {
            let outcome = Arc::clone(outcome);
            self.finished.insert(ByValue(record.id.clone()), outcome);
        }
        // Only now, so that whoever does not find a job here finds it there.
        let mut all = self.lock();
        let records = finished.iter().map(|(record, _)| record);
        let left: Vec<_> = records.map(|record| all.remove_entry(&record.id)).collect();
        // Of a flood of jobs no memory is left.
        shrink(&mut all);
        drop(all);
        // The cache puts its housekeeping off, and holds too much until then.
        self.finished.run_pending_tasks();
        for ((_, outcome), left) in finished.iter().zip(left) {
            for reply in left.into_iter().flat_map(|(_, live)| live.others) {
                answer(reply, outcome);
            }
        }
    }
}

/// Completes the jobs of a batch.
pub(super) fn finish<K, R>(
    slots: Vec<Slot<K, R>>,
    outcomes: impl Iterator<Item = Result<R, JobError>>,
) {
    let Some(first) = slots.first() else {
        return;
    };
    let ledger = Arc::clone(&first.ledger);
    let records = slots.into_iter().map(Slot::resolve);
    let outcomes = outcomes.map(|outcome| Arc::new(Shielded::new(outcome)));
    ledger.finish(records.zip(outcomes).collect());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Submitted by its claim alone; not seen by others.
    Claimed,
    Submitted,
    Processing,
    /// Dropped before the submission was settled, which then decides what that
    /// means.
    Dropped,
}

/// What a claim, a job's slot and the board have in common.
struct Record<K> {
    id: Id<K>,
    stage: Mutex<Stage>,
}

impl<K> Record<K> {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the state of a claim, unless somebody else was faster.
    fn leave_claim(&self, to: Stage) -> Result<(), Stage> {
        let mut stage = self.stage();
        if *stage != Stage::Claimed {
            return Err(*stage);
        }
        *stage = to;
        Ok(())
    }
}

/// A claim, and the slot for the job that it is for.
pub(super) type Claimed<'a, K, R> = (Claim<'a, K, R>, Slot<K, R>);

/// The right to submit the job of an id.
pub(super) struct Claim<'a, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    board: &'a Board<K, R>,
    record: Arc<Record<K>>,
    settled: bool,
}

impl<K, R> Claim<'_, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    /// Gives the claim up, for this outcome.
    fn release(mut self, outcome: &Result<R, JobError>) {
        self.settled = true;
        self.board.release(&self.record.id, outcome);
    }

    /// Says what became of the submission.
    pub(super) fn settle(mut self, refused: Option<JobError>) {
        if let Some(error) = refused {
            return self.release(&Err(error));
        }
        self.settled = true;
        if self.record.leave_claim(Stage::Submitted) == Err(Stage::Dropped) {
            self.board
                .finish(vec![(Arc::clone(&self.record), abandoned())]);
        }
    }
}

impl<K, R> Drop for Claim<'_, K, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    R: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        // The submission panicked. Where its job is gone, it was refused, and
        // its drop panicked.
        if !self.settled && self.record.leave_claim(Stage::Submitted) == Err(Stage::Dropped) {
            let abandoned = Err(JobError::Abandoned);
            self.board.release(&self.record.id, &abandoned);
        }
    }
}

/// What a job owes the board. Dropping it completes the job as abandoned.
pub(super) struct Slot<K, R> {
    record: Arc<Record<K>>,
    ledger: Arc<dyn Ledger<K, R>>,
    resolved: bool,
}

impl<K, R> Slot<K, R> {
    pub(super) fn id(&self) -> &K {
        self.record.id.key()
    }

    /// The processor has the job in hand.
    pub(super) fn process(&self) {
        *self.record.stage() = Stage::Processing;
    }

    fn resolve(mut self) -> Arc<Record<K>> {
        self.resolved = true;
        Arc::clone(&self.record)
    }
}

impl<K, R> Drop for Slot<K, R> {
    fn drop(&mut self) {
        if !self.resolved && self.record.leave_claim(Stage::Dropped).is_err() {
            self.ledger
                .finish(vec![(Arc::clone(&self.record), abandoned())]);
        }
    }
}

/// The board as a slot sees it, free of the bounds of its methods, which a
/// `Drop` may not have.
trait Ledger<K, R>: Send + Sync {
    fn finish(&self, finished: Vec<(Arc<Record<K>>, Outcome<R>)>);
}

impl<K, R> Live<K, R> {
    /// Returns a handle for one who came with the same id, and the replies of
    /// those who have gone, some of them, to be dropped without the lock.
    fn join(&mut self) -> (JobHandle<R>, Vec<ReplySender<R>>) {
        let others = &mut self.others;
        let mut gone = Vec::new();
        if others.len() == others.capacity() {
            // Those who have gone make room for those who come, so that asking
            // again and again costs nothing. At least half of it is free then,
            // so this pays for itself.
            (gone, *others) = mem::take(others)
                .into_iter()
                .partition(ReplySender::is_closed);
            if others.len() > others.capacity() / 2 {
                others.reserve(others.capacity());
            }
        }
        let (reply, receiver) = reply::channel();
        others.push(reply);
        (JobHandle::from_reply(receiver), gone)
    }
}

/// Sends a copy of the outcome. Others wait for theirs, so that neither the
/// clone nor the waker of who waits for this one may hurt.
fn answer<R: Clone>(reply: ReplySender<R>, outcome: &Result<R, JobError>) {
    let copy = copy(outcome);
    if let Err(error) = catch(|| reply.send(copy)) {
        trace(|| error!(%error, "the waker of a caller or the drop of a result panicked"));
    }
}

/// Clones an outcome, which where that panics is the panic.
fn copy<R: Clone>(outcome: &Result<R, JobError>) -> Result<R, JobError> {
    catch(|| outcome.clone()).unwrap_or_else(|message| Err(JobError::Panicked(message)))
}

fn abandoned<R>() -> Outcome<R> {
    Arc::new(Shielded::new(Err(JobError::Abandoned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_gave_up_make_room_for_those_who_come() {
        let board = Board::<u32, u32>::new(1, FOR_EVER);
        let Ok((claim, slot)) = board.claim(1) else {
            panic!("it is free");
        };
        let room = || {
            let live = board.lock();
            let mut live = live.values().map(|live| live.others.capacity());
            live.next().expect("it is live")
        };
        for _ in 0..1000 {
            assert!(board.claim(1).is_err());
        }
        assert!(room() < 10, "{}", room());
        let joined: Vec<_> = (0..1000).map(|_| board.claim(1).err()).collect();
        assert!(room() < 4000, "{}", room());
        claim.settle(None);
        drop(slot);
        for handle in joined.into_iter().flatten() {
            assert!(handle.is_finished());
        }
    }

    #[test]
    fn a_flood_of_jobs_leaves_no_memory() {
        let board = Board::<u32, u32>::new(1, FOR_EVER);
        let flood: Vec<_> = (0..10_000)
            .filter_map(|id| {
                let (claim, slot) = board.claim(id).ok()?;
                claim.settle(None);
                Some(slot)
            })
            .collect();
        assert!(board.lock().capacity() >= 10_000);
        drop(flood);
        assert!(board.lock().capacity() < 200);
    }
}
