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
//! - Whoever finds the hub `alive`, under the lock, has a loop that is counted
//!   from then on, so a stop waits for it.
//! - No code of the user's but that of keys runs under the lock.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::pin;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::KeyedJob;
use crate::error::{BuildError, JobError, ShutdownTimeout, StartError};
use crate::micro_batch::MicroBatch;
use crate::panics::guard;

pub(super) struct Hub<K, J, R> {
    make: Factory<K, J, R>,
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
    keys: HashMap<K, Line<K, J, R>>,
    /// Shared with every loop; the last to drop it cancels `ended`. Gone once
    /// stopped.
    alive: Option<Arc<DropGuard>>,
    /// The sum of those of all loops.
    timeout: Option<ShutdownTimeout>,
}

struct Line<K, J, R> {
    ticket: Weak<Ticket<K>>,
    micro_batch: MicroBatch<KeyedJob<K, J>, R>,
    /// Takes the micro-batcher to its loop when the key has no more jobs.
    idle: oneshot::Sender<MicroBatch<KeyedJob<K, J>, R>>,
}

/// A key's micro-batcher, and what keeps it.
type Entered<K, J, R> = (MicroBatch<KeyedJob<K, J>, R>, Arc<Ticket<K>>);

impl<K, J, R> Hub<K, J, R> {
    fn lock(&self) -> MutexGuard<'_, Lines<K, J, R>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops all loops. Whoever comes later is refused.
    pub(super) fn close(&self) {
        self.stop.cancel();
        let alive = self.lock().alive.take();
        drop(alive);
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
            make,
            runtime: Handle::current(),
            stop: cancel.child_token(),
            ended: ended.clone(),
            lines: Mutex::new(Lines {
                keys: HashMap::new(),
                alive: Some(Arc::new(ended.drop_guard())),
                timeout: None,
            }),
        })
    }

    /// Returns the key's micro-batcher, made and started if it has none.
    pub(super) fn enter(self: &Arc<Self>, key: K) -> Result<Entered<K, J, R>, JobError> {
        if let Some(found) = self.find(&self.lock(), &key)? {
            return Ok(found);
        }
        // Without the lock, because it calls the user's code.
        let made = guard(|| (self.make)()).map_err(JobError::Panicked)?;
        // The same options were found to be good before, unless they change.
        let micro_batch = made.map_err(|error| JobError::Failed(Arc::new(error)))?;
        let ticket = Arc::new(Ticket {
            key: key.clone(),
            hub: Arc::clone(self) as Arc<dyn Leave<K>>,
        });
        let (idle, retired) = oneshot::channel();
        let line = Line {
            ticket: Arc::downgrade(&ticket),
            micro_batch: micro_batch.clone(),
            idle,
        };
        let mut lines = self.lock();
        let found = self.find(&lines, &key);
        let alive = match (found, &lines.alive) {
            (Ok(None), Some(alive)) => Arc::clone(alive),
            // Somebody was faster, with a line or a stop.
            (found, _) => {
                drop(lines);
                return found?.ok_or(JobError::Closed);
            }
        };
        let replaced = lines.keys.insert(key, line);
        drop(lines);
        replaced.into_iter().for_each(Line::retire);
        let run = micro_batch.start(self.stop.clone());
        let hub = Arc::clone(self);
        self.runtime.spawn(async move {
            let _alive = alive;
            let mut run = pin!(run);
            let retire = async {
                if let Ok(micro_batch) = retired.await {
                    // The last batch is processed, and not quite over: its end
                    // must not be hurried by a stop.
                    micro_batch.flush().await;
                }
                // Dropped here, which ends the loop.
            };
            let ended = tokio::select! {
                ended = &mut run => ended,
                () = retire => run.await,
            };
            if let Err(StartError::ShutdownTimeout(timeout)) = ended {
                hub.time_out(timeout);
            }
        });
        Ok((micro_batch, ticket))
    }

    /// Returns the key's micro-batcher if it has one.
    fn find(&self, lines: &Lines<K, J, R>, key: &K) -> Result<Option<Entered<K, J, R>>, JobError> {
        if self.is_closed() {
            return Err(JobError::Closed);
        }
        Ok(lines.keys.get(key).and_then(|line| {
            let ticket = line.ticket.upgrade()?;
            Some((line.micro_batch.clone(), ticket))
        }))
    }

    /// Flushes all keys.
    pub(super) async fn flush(&self) {
        let flushes: Vec<_> = {
            let lines = self.lock();
            let flush = |line: &Line<K, J, R>| line.micro_batch.flush();
            lines.keys.values().map(flush).collect()
        };
        join_all(flushes).await;
    }
}

impl<K, J, R> Line<K, J, R> {
    fn retire(self) {
        // Where the loop has ended, it is just dropped.
        let _ = self.idle.send(self.micro_batch);
    }
}

/// Keeps a key alive. Its drop removes the key.
pub(super) struct Ticket<K> {
    key: K,
    hub: Arc<dyn Leave<K>>,
}

impl<K> Ticket<K> {
    pub(super) fn key(&self) -> &K {
        &self.key
    }
}

impl<K> Drop for Ticket<K> {
    fn drop(&mut self) {
        self.hub.leave(self);
    }
}

/// The hub as a ticket sees it, free of the bounds of its methods, which a
/// `Drop` may not have.
trait Leave<K>: Send + Sync {
    fn leave(&self, ticket: &Ticket<K>);
}

impl<K, J, R> Leave<K> for Hub<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    fn leave(&self, ticket: &Ticket<K>) {
        let mut lines = self.lock();
        let keys = &mut lines.keys;
        // The line holds on to the ticket's memory, so no other is there.
        let own = |line: &Line<K, J, R>| ptr::eq(line.ticket.as_ptr(), ticket);
        if !keys.get(&ticket.key).is_some_and(own) {
            return;
        }
        let left = keys.remove_entry(&ticket.key);
        // Of a flood of keys no memory is left either.
        if keys.capacity() > 64 && keys.len() < keys.capacity() / 4 {
            keys.shrink_to(keys.len() * 2);
        }
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
        drop(flood);
        assert!(hub.lock().keys.capacity() < 200);
        hub.close();
        assert_eq!(hub.drained().await, Ok(()));
    }
}
