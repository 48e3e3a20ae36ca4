//! Those who wait for room in the queue.

use std::collections::VecDeque;
use std::mem;
use std::task::Waker;

use crate::job::PendingJob;

/// Those who wait for room, first come first served. Each holds a number, and
/// leaves a gap when it gives up.
pub(super) struct Line<J, R> {
    entries: VecDeque<(u64, Entry<J, R>)>,
    gaps: usize,
    next: u64,
    /// All numbers below have left the line, and those that had not given up
    /// got room.
    pub(super) served: u64,
}

pub(super) enum Entry<J, R> {
    Job(PendingJob<J, R>, Option<Waker>),
    Reservation(Option<Waker>),
    Gone,
}

impl<J, R> Default for Line<J, R> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            gaps: 0,
            next: 0,
            served: 0,
        }
    }
}

impl<J, R> Line<J, R> {
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.gaps
    }

    pub(super) fn push(&mut self, entry: Entry<J, R>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.entries.push_back((number, entry));
        number
    }

    pub(super) fn pop(&mut self) -> Option<Entry<J, R>> {
        let (number, entry) = self.entries.pop_front()?;
        self.served = number + 1;
        if matches!(entry, Entry::Gone) {
            self.gaps -= 1;
        }
        Some(entry)
    }

    pub(super) fn get(&mut self, number: u64) -> Option<&mut Entry<J, R>> {
        let at = self.entries.binary_search_by_key(&number, |entry| entry.0);
        at.ok().map(|at| &mut self.entries[at].1)
    }

    /// Leaves a gap and returns what was there. Gaps are closed once they are
    /// the greater part, so giving up is cheap and leaves nothing behind.
    pub(super) fn leave(&mut self, number: u64) -> Option<Entry<J, R>> {
        let left = mem::replace(self.get(number)?, Entry::Gone);
        self.gaps += 1;
        if self.gaps > self.entries.len() / 2 {
            self.entries
                .retain(|(_, entry)| !matches!(entry, Entry::Gone));
            self.gaps = 0;
        }
        Some(left)
    }

    pub(super) fn clear(&mut self) -> Vec<Entry<J, R>> {
        self.gaps = 0;
        let entries = mem::take(&mut self.entries);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}
