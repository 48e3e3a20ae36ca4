//! The keys that have jobs, and their micro-batchers.
//!
//! # Invariants
//!
//! - A key's [`KeyGuard`] is held by its jobs, and for a moment by each call that
//!   submits one. It is dropped with the last of them, and not before the batch of that
//!   job is processed. Its drop removes the key; then the key's loop ends.
//! - An entry whose guard is gone is replaced, never used again. A guard removes the
//!   entry that it was made for, and no other. So of the micro-batchers of a key only
//!   one at a time has jobs.
//! - A micro-batcher is in `loops` from before its first job until all its jobs have
//!   their replies, which is later than its key is removed. So a flush of all `loops`
//!   flushes every job.
//! - A call that finds the `end_guard`, under the lock, clones it for a loop, so from
//!   then on a stop waits for that loop.
//! - Of user code, only the comparison of keys runs under the lock.

use std::collections::HashMap;
use std::hash::{Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::error;

use crate::engine::panics::{Call, Shielded, catch, discard, trace};
use crate::engine::queue::SharedLimit;
use crate::error::{BuildError, JobError, ReconfigureError, ShutdownTimeout, StartError};
use crate::micro_batch::MicroBatch;
use crate::report::Stats;
use crate::settings::Settings;
use crate::wrappers::id_map::{Id, IdMap, Lookup, shrink};

/// Its jobs are of type `J`; each must own the [`KeyGuard`] of its key.
pub(super) struct KeyMap<K, J, R> {
    make: Shielded<Factory<J, R>>,
    /// On the jobs of all keys.
    limit: Arc<SharedLimit>,
    /// The options have a weight function.
    weighs: bool,
    hasher: RandomState,
    runtime: Handle,
    /// Stops all loops.
    stop: CancellationToken,
    /// Cancelled when the last loop has ended after a stop.
    ended: CancellationToken,
    state: Mutex<KeyMapState<K, J, R>>,
}

/// Makes the micro-batcher of a key.
pub(super) type Factory<J, R> = Box<dyn Fn() -> Result<MicroBatch<J, R>, BuildError> + Send + Sync>;

struct KeyMapState<K, J, R> {
    keys: IdMap<K, KeyEntry<K, J, R>>,
    /// The micro-batchers that may have jobs without a reply, by number.
    loops: HashMap<u64, MicroBatch<J, R>>,
    /// The number of the next micro-batcher.
    next_number: u64,
    /// Every loop has a clone, and the drop of the last one cancels `ended`. `None` once
    /// stopped.
    end_guard: Option<Arc<DropGuard>>,
    /// The sum over all loops.
    timeout: Option<ShutdownTimeout>,
    /// Those of every key, also of keys to come.
    settings: Settings,
    paused: bool,
    /// The numbers of micro-batchers that were removed, and of jobs refused here.
    past: Stats,
}

struct KeyEntry<K, J, R> {
    guard: Weak<KeyGuard<K>>,
    micro_batch: MicroBatch<J, R>,
    /// Tells the loop that the key has no more jobs.
    idle: oneshot::Sender<()>,
}

/// The micro-batcher of a key, and the guard that a job must hold.
pub(super) struct ActiveKey<K, J, R> {
    pub(super) micro_batch: MicroBatch<J, R>,
    pub(super) guard: Arc<KeyGuard<K>>,
}

impl<K, J, R> KeyMap<K, J, R> {
    fn lock(&self) -> MutexGuard<'_, KeyMapState<K, J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops all loops, and refuses jobs from now on.
    pub(super) fn close(&self) {
        // The wakers of those that wait for the token are foreign code.
        let _ = catch(|| self.stop.cancel());
        let end_guard = self.lock().end_guard.take();
        discard(end_guard, None);
        self.limit.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(super) fn settings(&self) -> Settings {
        self.lock().settings
    }

    pub(super) fn reconfigure(
        &self,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Settings, ReconfigureError> {
        let mut settings = self.settings();
        change(&mut settings);
        if self.is_closed() {
            return Err(ReconfigureError::Closed);
        }
        let mut settings = settings.validated()?;
        if !self.weighs {
            settings.max_batch_weight = usize::MAX;
        }
        let mut state = self.lock();
        state.settings = settings;
        // Under the lock, so that of concurrent changes one wins for all keys. A closed
        // loop needs none.
        for micro_batch in state.loops.values() {
            let _ = micro_batch.queue().reconfigure(settings);
        }
        Ok(settings)
    }

    pub(super) fn set_paused(&self, paused: bool) {
        let mut state = self.lock();
        state.paused = paused;
        for micro_batch in state.loops.values() {
            micro_batch.queue().set_paused(paused);
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.lock().paused && !self.is_closed()
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        let mut sum = state.past;
        for micro_batch in state.loops.values() {
            sum.add(&micro_batch.queue().stats());
        }
        drop(state);
        sum.waiting += self.limit.waiting();
        sum
    }

    pub(super) fn limit(&self) -> &SharedLimit {
        &self.limit
    }

    /// Counts a job that left while it waited for room over all keys.
    pub(super) fn count_left(&self) {
        self.lock().past.leave_waiting();
    }

    #[cfg(feature = "metrics")]
    pub(super) fn record_metrics(&self) {
        // Without the lock, because the recorder is user code.
        let loops: Vec<_> = self.lock().loops.values().cloned().collect();
        for micro_batch in &loops {
            micro_batch.queue().record_metrics();
        }
        discard(loops, None);
    }

    /// Counts a job that is refused before it has a micro-batcher.
    pub(super) fn count_refused(&self) {
        self.lock().past.refused += 1;
    }

    pub(super) fn live_keys(&self) -> usize {
        self.lock().keys.len()
    }

    /// Waits until all loops have ended, after [`close`](Self::close).
    pub(super) async fn wait_for_end(&self) -> Result<(), ShutdownTimeout> {
        self.ended.cancelled().await;
        self.lock().timeout.map_or(Ok(()), Err)
    }

    /// Notes that the stop of a loop ran out of time.
    fn add_timeout(&self, timeout: ShutdownTimeout) {
        let none = ShutdownTimeout { abandoned: 0 };
        let mut state = self.lock();
        state.timeout.get_or_insert(none).abandoned += timeout.abandoned;
    }

    /// Removes a micro-batcher whose jobs all have their replies.
    fn remove_loop(&self, number: u64) {
        let mut state = self.lock();
        let removed = state.loops.remove(&number);
        if let Some(removed) = &removed {
            let stats = removed.queue().stats();
            state.past.add(&stats);
        }
        shrink(&mut state.loops);
        drop(state);
        discard(removed, None);
    }
}

impl<K, J, R> KeyMap<K, J, R>
where
    K: Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// Flushes all loops, also those of keys that were removed.
    pub(super) async fn flush(&self) {
        let flushes: Vec<_> = {
            let state = self.lock();
            state.loops.values().map(MicroBatch::flush).collect()
        };
        join_all(flushes).await;
    }

    async fn flush_loop(&self, number: u64) {
        let flush = self.lock().loops.get(&number).map(MicroBatch::flush);
        if let Some(flush) = flush {
            flush.await;
        }
    }
}

impl<K, J, R> KeyMap<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// The loops will run on the current runtime.
    pub(super) fn new(
        make: Factory<J, R>,
        limit: Arc<SharedLimit>,
        settings: Settings,
        weighs: bool,
        cancel: &CancellationToken,
    ) -> Arc<Self> {
        let ended = CancellationToken::new();
        Arc::new(Self {
            make: Shielded::new(make),
            limit,
            weighs,
            hasher: RandomState::new(),
            runtime: Handle::current(),
            stop: cancel.child_token(),
            ended: ended.clone(),
            state: Mutex::new(KeyMapState {
                keys: IdMap::default(),
                loops: HashMap::new(),
                next_number: 0,
                end_guard: Some(Arc::new(ended.drop_guard())),
                timeout: None,
                settings,
                paused: false,
                past: Stats::default(),
            }),
        })
    }

    /// Hashes a key.
    pub(super) fn id(&self, key: K) -> Result<Id<K>, JobError> {
        let key = Shielded::new(key);
        if self.is_closed() {
            return Err(JobError::Closed);
        }
        Id::new(&self.hasher, key).map_err(JobError::Panicked)
    }

    /// Returns the key's micro-batcher if there is one.
    pub(super) fn find(&self, id: &Id<K>) -> Result<Option<ActiveKey<K, J, R>>, JobError> {
        let lookup = id.lookup();
        self.find_in(&self.lock(), &lookup)
    }

    /// Returns the key's micro-batcher. Makes and starts it if there is none.
    pub(super) fn get_or_start(
        self: &Arc<Self>,
        id: Id<K>,
    ) -> Result<ActiveKey<K, J, R>, JobError> {
        // Declared before the guards of the lock, so that it is dropped after them.
        let lookup = id.lookup();
        let found = self.find_in(&self.lock(), &lookup)?;
        if let Some(found) = found {
            return Ok(found);
        }
        // Without the lock, because it calls user code.
        let made = catch(|| (self.make)()).map_err(JobError::Panicked)?;
        // The builder has checked the same options before, but they may have changed.
        let micro_batch = made.map_err(|error| JobError::Failed(Arc::new(error)))?;
        let guard = Arc::new(KeyGuard {
            id: id.clone(),
            key_map: Arc::clone(self) as Arc<dyn RemoveKey<K>>,
        });
        let (idle, idle_receiver) = oneshot::channel();
        let entry = KeyEntry {
            guard: Arc::downgrade(&guard),
            micro_batch: micro_batch.clone(),
            idle,
        };
        let mut state = self.lock();
        let found = self.find_in(&state, &lookup);
        let end_guard = match (found, &state.end_guard) {
            (Ok(None), Some(end_guard)) => Arc::clone(end_guard),
            // Meanwhile another call has started the key, or all keys were stopped.
            (found, _) => {
                drop(state);
                // After the lock is released, because the drop of a storage is user code.
                discard([entry.micro_batch, micro_batch], None);
                return found?.ok_or(JobError::Closed);
            }
        };
        // It is not started, so this wakes nothing.
        let _ = micro_batch.queue().reconfigure(state.settings);
        micro_batch.queue().set_paused(state.paused);
        // `insert` alone would keep the id of the replaced entry.
        let replaced = state.keys.remove_entry(lookup.as_key());
        state.keys.insert(id.clone(), entry);
        let number = state.next_number;
        state.next_number += 1;
        state.loops.insert(number, micro_batch.clone());
        drop(state);
        if let Some((_, entry)) = replaced {
            entry.end_when_idle();
        }
        let key_loop = KeyLoop {
            run: Call::new(|| micro_batch.start(self.stop.clone())),
            idle: idle_receiver,
            guard: LoopGuard {
                key_map: Arc::clone(self),
                number,
                _end_guard: Shielded::new(end_guard),
            },
        };
        self.runtime.spawn(key_loop.run());
        Ok(ActiveKey { micro_batch, guard })
    }

    fn find_in(
        &self,
        state: &KeyMapState<K, J, R>,
        lookup: &Lookup<'_, K>,
    ) -> Result<Option<ActiveKey<K, J, R>>, JobError> {
        if self.is_closed() {
            return Err(JobError::Closed);
        }
        let Some(entry) = state.keys.get(lookup.as_key()) else {
            // After a panic the key may have an entry that was not found, and must not
            // get a second one.
            let panicked = lookup.take_panic().map(JobError::Panicked);
            return panicked.map_or(Ok(None), Err);
        };
        let guard = entry.guard.upgrade();
        Ok(guard.map(|guard| ActiveKey {
            micro_batch: entry.micro_batch.clone(),
            guard,
        }))
    }
}

impl<K, J, R> KeyEntry<K, J, R> {
    /// Ends the loop of a key without jobs, after its last batch.
    fn end_when_idle(self) {
        // An error means that the loop has ended.
        let _ = self.idle.send(());
        // If the runtime is gone, this may drop the worker and its storage.
        discard([self.micro_batch], None);
    }
}

/// The loop of a micro-batcher. The fields are dropped in this order.
struct KeyLoop<K, J, R, F> {
    run: Call<F>,
    idle: oneshot::Receiver<()>,
    guard: LoopGuard<K, J, R>,
}

impl<K, J, R, F> KeyLoop<K, J, R, F>
where
    K: Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
    F: Future<Output = Result<(), StartError>>,
{
    /// Runs until stopped, or until the key is removed and all jobs have their replies.
    async fn run(self) {
        // Moved as a whole, so that the fields are dropped in their order.
        let mut this = self;
        let (key_map, number) = (&this.guard.key_map, this.guard.number);
        let remove_when_idle = async {
            if (&mut this.idle).await.is_ok() {
                // The last batch is processed, but may not have ended. The flush waits for
                // its end, so that the stop below has nothing left that could time out.
                key_map.flush_loop(number).await;
                // The drop of the last clone of the micro-batcher stops its loop.
                key_map.remove_loop(number);
            }
        };
        let ended = tokio::select! {
            ended = &mut this.run => ended,
            () = remove_when_idle => (&mut this.run).await,
        };
        match ended {
            Ok(Err(StartError::ShutdownTimeout(timeout))) => key_map.add_timeout(timeout),
            Ok(_) => {}
            Err(error) => trace(|| error!(%error, "the loop of a key panicked")),
        }
    }
}

/// Its drop removes the micro-batcher from `loops`, however its loop ends.
struct LoopGuard<K, J, R> {
    key_map: Arc<KeyMap<K, J, R>>,
    number: u64,
    /// The last field, so that a stop waits for the drop of the others. Its own drop may
    /// call wakers.
    _end_guard: Shielded<Arc<DropGuard>>,
}

impl<K, J, R> Drop for LoopGuard<K, J, R> {
    fn drop(&mut self) {
        self.key_map.remove_loop(self.number);
        if self.key_map.is_closed() {
            // The token was cancelled, and jobs may wait that have no loop.
            self.key_map.limit.close();
        }
    }
}

/// Its drop removes the key.
pub(super) struct KeyGuard<K> {
    id: Id<K>,
    key_map: Arc<dyn RemoveKey<K>>,
}

impl<K> KeyGuard<K> {
    pub(super) fn key(&self) -> &K {
        self.id.key()
    }
}

impl<K> Drop for KeyGuard<K> {
    fn drop(&mut self) {
        self.key_map.remove_key(&self.id);
    }
}

/// The key map as a guard sees it, whatever the types of its jobs and results.
trait RemoveKey<K>: Send + Sync {
    fn remove_key(&self, id: &Id<K>);
}

impl<K, J, R> RemoveKey<K> for KeyMap<K, J, R>
where
    K: Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    fn remove_key(&self, id: &Id<K>) {
        let mut state = self.lock();
        // An id is equal to itself only, so this finds no other entry of the key.
        let removed = state.keys.remove_entry(id);
        shrink(&mut state.keys);
        drop(state);
        if let Some((_, entry)) = removed {
            entry.end_when_idle();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_of_keys_leaves_no_memory() {
        let make: Factory<u8, u8> = Box::new(|| {
            let echo = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
            Ok(MicroBatch::new(echo))
        });
        let limit = Arc::new(SharedLimit::new(usize::MAX));
        let cancel = CancellationToken::new();
        let key_map = KeyMap::new(make, limit, Settings::DEFAULT, false, &cancel);
        let guards: Vec<_> = (0..10_000)
            .map(|key| {
                let id = key_map.id(key).unwrap();
                key_map.get_or_start(id).unwrap().guard
            })
            .collect();
        assert!(key_map.lock().keys.capacity() >= 10_000);
        assert!(key_map.lock().loops.capacity() >= 10_000);
        drop(guards);
        assert!(key_map.lock().keys.capacity() < 200);
        while !key_map.lock().loops.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(key_map.lock().loops.capacity() < 200);
        key_map.close();
        assert_eq!(key_map.wait_for_end().await, Ok(()));
    }
}
