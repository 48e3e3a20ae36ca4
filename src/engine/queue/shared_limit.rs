//! A limit on accepted jobs that several queues share, and what a queue does under it.
//!
//! # Invariants
//!
//! - `used` counts the jobs that the queues have accepted and that are not in a batch
//!   yet, and room given to a waiter that is about to use it. It never exceeds
//!   `capacity`.
//! - Room goes to the waiter with the lowest number. Another job takes room only while
//!   there are no waiters, so it overtakes none.
//! - While there are waiters, the room is used up, or a call of `release` is giving it
//!   away. So no waiter is forgotten.
//! - The lock is taken under that of a queue, never the other way round.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use tokio::time::Instant;

use super::{Queue, QueueState, WaiterId, wake};

pub(crate) struct SharedLimit {
    capacity: usize,
    next_number: AtomicU64,
    state: Mutex<SharedLimitState>,
}

#[derive(Default)]
struct SharedLimitState {
    used: usize,
    waiters: BTreeMap<u64, Arc<dyn LimitWaiter>>,
    closed: bool,
}

/// What waits for room under a [`SharedLimit`]. Called without any lock.
pub(crate) trait LimitWaiter: Send + Sync {
    /// Uses the room of one job. Returns false if it has no use for it.
    fn admit(&self) -> bool;

    /// There will be no room any more.
    fn refuse(&self);

    /// Whether it is a single job, and not a queue that counts its own waiters.
    fn is_job(&self) -> bool;
}

impl SharedLimit {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            next_number: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SharedLimitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a number for a waiter, higher than all before.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes the room of one job, if there is some and no waiter.
    pub(crate) fn try_take(&self) -> bool {
        self.lock().try_take(self.capacity)
    }

    /// Whether a new job would find room.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.lock();
        state.used < self.capacity && state.waiters.is_empty()
    }

    /// How many jobs wait here, apart from those in queues.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.lock();
        let outside = |waiter: &&Arc<dyn LimitWaiter>| waiter.is_job();
        state.waiters.values().filter(outside).count()
    }

    /// Takes the room of one job, or else has the waiter wait for it under its number.
    /// Returns whether there was room.
    pub(crate) fn take_or_wait(
        &self,
        number: u64,
        waiter: impl FnOnce() -> Option<Arc<dyn LimitWaiter>>,
    ) -> bool {
        let mut state = self.lock();
        // One that waits already takes its turn.
        if state.waiters.contains_key(&number) {
            return false;
        }
        if state.try_take(self.capacity) {
            return true;
        }
        if let Some(waiter) = waiter().filter(|_| !state.closed) {
            state.waiters.insert(number, waiter);
        }
        false
    }

    /// Removes a waiter, and returns it if it was waiting.
    pub(crate) fn leave(&self, number: u64) -> Option<Arc<dyn LimitWaiter>> {
        self.lock().waiters.remove(&number)
    }

    /// Frees the room of jobs, and gives it to waiters.
    pub(crate) fn release(&self, jobs: usize) {
        let mut state = self.lock();
        state.used -= jobs;
        while state.used < self.capacity {
            let Some((_, waiter)) = state.waiters.pop_first() else {
                return;
            };
            state.used += 1;
            drop(state);
            let admitted = waiter.admit();
            drop(waiter);
            state = self.lock();
            if !admitted {
                state.used -= 1;
            }
        }
    }

    /// Refuses all waiters, and those to come.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waiters = mem::take(&mut state.waiters);
        drop(state);
        waiters.into_values().for_each(|waiter| waiter.refuse());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

impl SharedLimitState {
    fn try_take(&mut self, capacity: usize) -> bool {
        let has_room = self.used < capacity && self.waiters.is_empty();
        self.used += usize::from(has_room);
        has_room
    }
}

/// A queue under a limit that it shares with others.
pub(super) struct LimitMember {
    pub(super) limit: Arc<SharedLimit>,
    /// The queue itself, to wait for room.
    queue: Weak<dyn LimitWaiter>,
}

impl LimitMember {
    /// Takes room for a waiter, which otherwise waits for it.
    fn take_or_wait(&self, number: WaiterId) -> bool {
        self.limit.take_or_wait(number, || self.queue.upgrade())
    }
}

impl<J, R> Queue<J, R> {
    /// Takes room under the shared limit for a new job, unless others wait before it.
    pub(super) fn take_shared_room(&self, state: &QueueState<J, R>) -> bool {
        let member = self.shared_limit.as_ref();
        member.is_none_or(|member| state.waiters.len() == 0 && member.limit.try_take())
    }

    /// Frees the room of jobs that are in a batch now, or gone. Without the lock.
    pub(super) fn release_shared_room(&self, jobs: usize) {
        if let Some(member) = self.shared_limit.as_ref().filter(|_| jobs > 0) {
            member.limit.release(jobs);
        }
    }

    /// Gives up the place of a waiter that has left under the shared limit, and has the
    /// next one wait there instead.
    pub(super) fn leave_shared_limit(
        &self,
        state: &mut QueueState<J, R>,
        id: WaiterId,
    ) -> Vec<Waker> {
        let member = self.shared_limit.as_ref();
        match member.and_then(|member| member.limit.leave(id)) {
            Some(_) => self.admit_waiters(state),
            None => Vec::new(),
        }
    }

    /// Takes room under the shared limit for the first waiter, if there is one.
    pub(super) fn take_room_of_waiter(&self, state: &QueueState<J, R>) -> bool {
        let first = state.waiters.first();
        first.is_some_and(|first| {
            let member = self.shared_limit.as_ref();
            member.is_none_or(|member| member.take_or_wait(first))
        })
    }
}

impl<J: Send + 'static, R: Send + 'static> Queue<J, R> {
    /// Returns a queue that shares a limit on accepted jobs with others. Permits are not
    /// counted.
    pub(crate) fn under(mut self, limit: Option<Arc<SharedLimit>>) -> Arc<Self> {
        let Some(limit) = limit else {
            return Arc::new(self);
        };
        Arc::new_cyclic(|queue: &Weak<Self>| {
            let queue = Weak::clone(queue) as Weak<dyn LimitWaiter>;
            self.shared_limit = Some(LimitMember { limit, queue });
            self
        })
    }
}

impl<J: Send, R: Send> LimitWaiter for Queue<J, R> {
    fn admit(&self) -> bool {
        let mut state = self.lock();
        if state.waiters.len() == 0 || !state.has_room(self.options.capacity) {
            return false;
        }
        let queued = state.jobs.len();
        state.accept_times.record(queued, Instant::now());
        let mut wakers: Vec<_> = state.admit_waiter().into_iter().collect();
        wakers.extend(self.admit_waiters(&mut state));
        drop(state);
        wakers.into_iter().for_each(wake);
        true
    }

    /// The queue refuses its waiters when it is closed itself.
    fn refuse(&self) {}

    fn is_job(&self) -> bool {
        false
    }
}
