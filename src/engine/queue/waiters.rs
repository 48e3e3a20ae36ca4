//! The jobs and reservations that wait for room in the queue, first come, first served.
//!
//! # Invariants
//!
//! - Entries are sorted by their ids, which are given in the order of arrival.
//! - A waiter that leaves becomes a gap. The first entry is never a gap, and gaps are
//!   removed once they outnumber the waiters.
//! - Once closed there are no waiters. Those that were not served by then are refused:
//!   all from one id on, because they are served in order.

use std::collections::VecDeque;
use std::task::Waker;

use crate::engine::peak::is_excess;
use crate::job::PendingJob;

/// Identifies a waiter of a queue; lower ids came first.
pub(crate) type WaiterId = u64;

pub(super) struct Waiters<J, R> {
    entries: VecDeque<WaiterEntry<J, R>>,
    gaps: usize,
    next_id: WaiterId,
    /// Set once closed.
    refused_from: Option<WaiterId>,
}

struct WaiterEntry<J, R> {
    id: WaiterId,
    /// `None` for a gap.
    waiter: Option<Waiter<J, R>>,
}

/// What waits for room, with the task to wake when there is some.
pub(super) enum Waiter<J, R> {
    Job(PendingJob<J, R>, Option<Waker>),
    Reservation(Option<Waker>),
}

/// What became of a waiter that has not left.
pub(super) enum WaiterStatus<'a> {
    Waiting(&'a mut Option<Waker>),
    Served,
    Refused,
}

impl<J, R> Default for Waiters<J, R> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            gaps: 0,
            next_id: 0,
            refused_from: None,
        }
    }
}

impl<J, R> Waiters<J, R> {
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.gaps
    }

    pub(super) fn push(&mut self, waiter: Waiter<J, R>) -> WaiterId {
        self.push_as(self.next_id, waiter)
    }

    /// Adds a waiter under an id that is higher than all before.
    pub(super) fn push_as(&mut self, id: WaiterId, waiter: Waiter<J, R>) -> WaiterId {
        self.next_id = id + 1;
        self.entries.push_back(WaiterEntry {
            id,
            waiter: Some(waiter),
        });
        id
    }

    /// The id of the first waiter.
    pub(super) fn first(&self) -> Option<WaiterId> {
        self.entries.front().map(|entry| entry.id)
    }

    /// Returns the status of a waiter that has not left.
    pub(super) fn status(&mut self, id: WaiterId) -> WaiterStatus<'_> {
        if self.refused_from.is_some_and(|first| id >= first) {
            return WaiterStatus::Refused;
        }
        match self.find(id).and_then(|entry| entry.waiter.as_mut()) {
            Some(Waiter::Job(_, waker) | Waiter::Reservation(waker)) => {
                WaiterStatus::Waiting(waker)
            }
            None => WaiterStatus::Served,
        }
    }

    fn find(&mut self, id: WaiterId) -> Option<&mut WaiterEntry<J, R>> {
        let at = self.entries.binary_search_by_key(&id, |entry| entry.id);
        self.entries.get_mut(at.ok()?)
    }

    /// Removes and returns a waiter that leaves; `None` if it was served or refused.
    pub(super) fn remove(&mut self, id: WaiterId) -> Option<Waiter<J, R>> {
        let left = self.find(id)?.waiter.take()?;
        self.gaps += 1;
        if self.gaps > self.entries.len() / 2 {
            self.entries.retain(|entry| entry.waiter.is_some());
            self.gaps = 0;
        }
        self.trim();
        Some(left)
    }

    /// Removes and returns the first waiter.
    pub(super) fn pop(&mut self) -> Option<Waiter<J, R>> {
        let first = self.entries.pop_front()?.waiter;
        self.trim();
        first
    }

    /// Removes the gaps before the first waiter, and excess memory.
    fn trim(&mut self) {
        while self.gaps > 0 && self.entries.front().is_some_and(|e| e.waiter.is_none()) {
            self.entries.pop_front();
            self.gaps -= 1;
        }
        if is_excess(self.entries.capacity(), self.entries.len()) {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// Refuses all waiters, and returns them and how many of them are jobs.
    pub(super) fn close(&mut self) -> (impl Iterator<Item = Waiter<J, R>> + use<J, R>, usize) {
        self.gaps = 0;
        let entries = std::mem::take(&mut self.entries);
        let first = entries.front().map_or(self.next_id, |entry| entry.id);
        self.refused_from = Some(first);
        let is_job = |entry: &&WaiterEntry<J, R>| matches!(entry.waiter, Some(Waiter::Job(..)));
        let jobs = entries.iter().filter(is_job).count();
        (entries.into_iter().filter_map(|entry| entry.waiter), jobs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_waiters_leave_no_memory() {
        let mut waiters = Waiters::<u8, u8>::default();
        let ids: Vec<_> = (0..100_000)
            .map(|_| waiters.push(Waiter::Reservation(None)))
            .collect();
        for id in ids.iter().step_by(2) {
            assert!(waiters.remove(*id).is_some() && waiters.remove(*id).is_none());
        }
        assert_eq!(waiters.len(), 50_000);
        while waiters.pop().is_some() {}
        assert!(waiters.entries.capacity() < 200 && waiters.gaps == 0);
    }
}
