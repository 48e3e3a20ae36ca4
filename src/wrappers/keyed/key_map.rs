//! The keys that have jobs, and their micro-batchers.
//!
//! # Invariants
//!
//! - A key's ticket is held by its jobs, and for a moment by those who submit
//!   one. It is dropped with the last of them, and not before its batch is
//!   processed; its drop removes the key, whose loop then ends.
//! - A line whose ticket is gone is replaced, never revived; a ticket removes
//!   the line that it was made for, and no other. So a key has one
//!   micro-batcher at a time that has jobs.
//! - A micro-batcher is in `loops` from before its first job until all its jobs
//!   are answered, which is later than its key leaves. So whoever flushes those
//!   flushes all that is owed.
//! - Whoever finds the hub `alive`, under the lock, has a loop that is counted
//!   from then on, so a stop waits for it.
//! - No code of the user's but the comparison of keys runs under the lock.

use std::collections::HashMap;
use std::hash::{Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::error;

use super::KeyedJob;
use crate::engine::panics::{Call, Shielded, catch, discard, trace};
use crate::error::{BuildError, JobError, ShutdownTimeout, StartError};
use crate::micro_batch::MicroBatch;
use crate::wrappers::id_map::{Id, IdMap, Needle, shrink};

pub(super) struct Hub<K, J, R> {
    make: Shielded<Factory<K, J, R>>,
    hasher: RandomState,
    runtime: Handle,
    /// Stops all loops.
    stop: CancellationToken,
    /// Cancelled when the last loop has ended after a stop.
    ended: CancellationToken,
    lines: Mutex<Lines<K, J, R>>,
}

/// Makes the micro-batcher of a key.
pub(super) type Factory<K, J, R> =
    Box<dyn Fn() -> Result<MicroBatch<KeyedJob<K, J>, R>, BuildError> + Send + Sync>;

struct Lines<K, J, R> {
    keys: IdMap<K, Line<K, J, R>>,
    /// All micro-batchers that may owe something, by number.
    loops: HashMap<u64, MicroBatch<KeyedJob<K, J>, R>>,
    /// Number of the next micro-batcher.
    next: u64,
    /// Shared with every loop; the last to drop it cancels `ended`. Gone once
    /// stopped.
    alive: Option<Arc<DropGuard>>,
    /// The sum of those of all loops.
    timeout: Option<ShutdownTimeout>,
}

struct Line<K, J, R> {
    ticket: Weak<Ticket<K>>,
    micro_batch: MicroBatch<KeyedJob<K, J>, R>,
    /// Tells the loop that the key has no more jobs.
    idle: oneshot::Sender<()>,
}

/// A key's micro-batcher, and what keeps it.
type Entered<K, J, R> = (MicroBatch<KeyedJob<K, J>, R>, Arc<Ticket<K>>);

impl<K, J, R> Hub<K, J, R> {
    fn lock(&self) -> MutexGuard<'_, Lines<K, J, R>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops all loops. Whoever comes later is refused.
    pub(super) fn close(&self) {
        // Whoever is woken by the end may panic.
        let _ = catch(|| self.stop.cancel());
        let alive = self.lock().alive.take();
        discard(alive, None);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(super) fn live_keys(&self) -> usize {
        self.lock().keys.len()
    }

    /// Waits until all loops have ended, after [`close`](Self::close).
    pub(super) async fn drained(&self) -> Result<(), ShutdownTimeout> {
        self.ended.cancelled().await;
        self.lock().timeout.map_or(Ok(()), Err)
    }

    fn time_out(&self, timeout: ShutdownTimeout) {
        let none = ShutdownTimeout { abandoned: 0 };
        let mut lines = self.lock();
        lines.timeout.get_or_insert(none).abandoned += timeout.abandoned;
    }

    /// Removes a micro-batcher that owes nothing more.
    fn remove(&self, number: u64) {
        let mut lines = self.lock();
        let ended = lines.loops.remove(&number);
        shrink(&mut lines.loops);
        drop(lines);
        discard(ended, None);
    }
}

impl<K, J, R> Hub<K, J, R>
where
    K: Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// Flushes all that is owed, of keys that have left as well.
    pub(super) async fn flush(&self) {
        let flushes: Vec<_> = {
            let lines = self.lock();
            lines.loops.values().map(MicroBatch::flush).collect()
        };
        join_all(flushes).await;
    }

    async fn flush_one(&self, number: u64) {
        let flush = self.lock().loops.get(&number).map(MicroBatch::flush);
        if let Some(flush) = flush {
            flush.await;
        }
    }
}

impl<K, J, R> Hub<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// Loops run on the current runtime.
    pub(super) fn new(make: Factory<K, J, R>, cancel: &CancellationToken) -> Arc<Self> {
        let ended = CancellationToken::new();
        Arc::new(Self {
            make: Shielded::new(make),
            hasher: RandomState::new(),
            runtime: Handle::current(),
            stop: cancel.child_token(),
            ended: ended.clone(),
            lines: Mutex::new(Lines {
                keys: IdMap::default(),
                loops: HashMap::new(),
                next: 0,
                alive: Some(Arc::new(ended.drop_guard())),
                timeout: None,
            }),
        })
    }

    /// Returns the key's micro-batcher, made and started if it has none.
    pub(super) fn enter(self: &Arc<Self>, key: K) -> Result<Entered<K, J, R>, JobError> {
        let key = Shielded::new(key);
        if self.is_closed() {
            return Err(JobError::Closed);
        }
        let id = Id::new(&self.hasher, key).map_err(JobError::Panicked)?;
        // Before every lock, so that it is dropped after it.
        let needle = id.needle();
        let found = self.find(&self.lock(), &needle)?;
        if let Some(found) = found {
            return Ok(found);
        }
        // Without the lock, because it calls the user's code.
        let made = catch(|| (self.make)()).map_err(JobError::Panicked)?;
        // The same options were found to be good before, unless they change.
        let micro_batch = made.map_err(|error| JobError::Failed(Arc::new(error)))?;
        let ticket = Arc::new(Ticket {
            id: id.clone(),
            hub: Arc::clone(self) as Arc<dyn Leave<K>>,
        });
        let (idle, retired) = oneshot::channel();
        let line = Line {
            ticket: Arc::downgrade(&ticket),
            micro_batch: micro_batch.clone(),
            idle,
        };
        let mut lines = self.lock();
        let found = self.find(&lines, &needle);
        let alive = match (found, &lines.alive) {
            (Ok(None), Some(alive)) => Arc::clone(alive),
            // Somebody was faster, with a line or a stop.
            (found, _) => {
                drop(lines);
                // The storage and the hooks in it are the user's.
                discard([line.micro_batch, micro_batch], None);
                return found?.ok_or(JobError::Closed);
            }
        };
        // Not by inserting in its place, which would keep the id that is there.
        let replaced = lines.keys.remove_entry(needle.probe());
        lines.keys.insert(id.clone(), line);
        let number = lines.next;
        lines.next += 1;
        lines.loops.insert(number, micro_batch.clone());
        drop(lines);
        if let Some((_, line)) = replaced {
            line.retire();
        }
        let one = Loop {
            run: Call::new(|| micro_batch.start(self.stop.clone())),
            retired,
            place: Place {
                hub: Arc::clone(self),
                number,
                _alive: Shielded::new(alive),
            },
        };
        self.runtime.spawn(one.run());
        Ok((micro_batch, ticket))
    }

    /// Returns the key's micro-batcher if it has one.
    fn find(
        &self,
        lines: &Lines<K, J, R>,
        needle: &Needle<'_, K>,
    ) -> Result<Option<Entered<K, J, R>>, JobError> {
        if self.is_closed() {
            return Err(JobError::Closed);
        }
        let Some(line) = lines.keys.get(needle.probe()) else {
            // It may be there, and then must not get another one.
            let panicked = needle.panicked().map(JobError::Panicked);
            return panicked.map_or(Ok(None), Err);
        };
        let ticket = line.ticket.upgrade();
        Ok(ticket.map(|ticket| (line.micro_batch.clone(), ticket)))
    }
}

impl<K, J, R> Line<K, J, R> {
    /// Ends the loop when its last batch is over.
    fn retire(self) {
        // Where the loop has ended, nobody hears.
        let _ = self.idle.send(());
        // It may be the last that is left of a runtime that is gone.
        discard([self.micro_batch], None);
    }
}

/// The loop of a micro-batcher. Fields are dropped in this order.
struct Loop<K, J, R, F> {
    run: Call<F>,
    retired: oneshot::Receiver<()>,
    place: Place<K, J, R>,
}

impl<K, J, R, F> Loop<K, J, R, F>
where
    K: Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
    F: Future<Output = Result<(), StartError>>,
{
    /// Runs until stopped, or until the key is gone and all is answered.
    async fn run(self) {
        // Whole, so that its fields are dropped in their order.
        let mut this = self;
        let (hub, number) = (&this.place.hub, this.place.number);
        let retire = async {
            if (&mut this.retired).await.is_ok() {
                // The last batch is processed, and not quite over: its end
                // must not be hurried by a stop.
                hub.flush_one(number).await;
                // The last one is gone, which ends the loop.
                hub.remove(number);
            }
        };
        let ended = tokio::select! {
            ended = &mut this.run => ended,
            () = retire => (&mut this.run).await,
        };
        match ended {
            Ok(Err(StartError::ShutdownTimeout(timeout))) => hub.time_out(timeout),
            Ok(_) => {}
            Err(error) => trace(|| error!(%error, "the loop of a key panicked")),
        }
    }
}

/// A loop's place in the hub. Its drop removes the micro-batcher, however the
/// loop ends.
struct Place<K, J, R> {
    hub: Arc<Hub<K, J, R>>,
    number: u64,
    /// Last, so that a stop waits for the rest. It may wake who waits.
    _alive: Shielded<Arc<DropGuard>>,
}

impl<K, J, R> Drop for Place<K, J, R> {
    fn drop(&mut self) {
        self.hub.remove(self.number);
    }
}

/// Keeps a key alive. Its drop removes the key.
pub(super) struct Ticket<K> {
    id: Id<K>,
    hub: Arc<dyn Leave<K>>,
}

impl<K> Ticket<K> {
    pub(super) fn key(&self) -> &K {
        self.id.key()
    }
}

impl<K> Drop for Ticket<K> {
    fn drop(&mut self) {
        self.hub.leave(&self.id);
    }
}

/// The hub as a ticket sees it, free of the types of jobs and results.
trait Leave<K>: Send + Sync {
    fn leave(&self, id: &Id<K>);
}

impl<K, J, R> Leave<K> for Hub<K, J, R>
where
    K: Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    fn leave(&self, id: &Id<K>) {
        let mut lines = self.lock();
        // An id is its own ticket's, so no other line is found.
        let left = lines.keys.remove_entry(id);
        // Of a flood of keys no memory is left either.
        shrink(&mut lines.keys);
        drop(lines);
        if let Some((_, line)) = left {
            line.retire();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_of_keys_leaves_no_memory() {
        let make: Factory<u32, u8, u8> = Box::new(|| {
            let echo = |jobs: Vec<KeyedJob<u32, u8>>| async move {
                Ok::<_, String>(jobs.iter().map(|entry| *entry.job()).collect())
            };
            Ok(MicroBatch::new(echo))
        });
        let hub = Hub::new(make, &CancellationToken::new());
        let flood: Vec<_> = (0..10_000).map(|key| hub.enter(key).unwrap().1).collect();
        assert!(hub.lock().keys.capacity() >= 10_000);
        assert!(hub.lock().loops.capacity() >= 10_000);
        drop(flood);
        assert!(hub.lock().keys.capacity() < 200);
        while !hub.lock().loops.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(hub.lock().loops.capacity() < 200);
        hub.close();
        assert_eq!(hub.drained().await, Ok(()));
    }
}
