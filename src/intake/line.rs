//! Those for whom there was no room in the queue, in the order in which they
//! came.
//!
//! # Invariants
//!
//! - Entries are numbered as they join, so they stay sorted by their numbers.
//! - Who gives up leaves a gap. The first entry is none, and gaps are closed
//!   once they are the greater part.
//! - Once closed, nobody stands in line. Whoever joined and was not served by
//!   then was refused: from a number on, because the line is served in order.

use std::collections::VecDeque;
use std::task::Waker;

use crate::job::{PendingJob, Ticket};
use crate::recent::is_excess;

pub(super) struct Line<J, R> {
    entries: VecDeque<Entry<J, R>>,
    gaps: usize,
    /// Number of the next entry.
    next: Ticket,
    /// Set once closed.
    refused_from: Option<Ticket>,
}

struct Entry<J, R> {
    number: Ticket,
    /// None where somebody gave up.
    waiting: Option<Waiting<J, R>>,
}

/// Who waits for room, with whom to wake when there is some.
pub(super) enum Waiting<J, R> {
    Job(PendingJob<J, R>, Option<Waker>),
    Reservation(Option<Waker>),
}

/// How somebody who joined the line stands.
pub(super) enum Standing<'a> {
    Waiting(&'a mut Option<Waker>),
    Served,
    Refused,
}

impl<J, R> Default for Line<J, R> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            gaps: 0,
            next: 0,
            refused_from: None,
        }
    }
}

impl<J, R> Line<J, R> {
    /// Returns how many stand in line.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.gaps
    }

    /// Puts somebody at the end of the line.
    pub(super) fn join(&mut self, waiting: Waiting<J, R>) -> Ticket {
        let number = self.next;
        self.next += 1;
        self.entries.push_back(Entry {
            number,
            waiting: Some(waiting),
        });
        number
    }

    /// Returns how the holder of the ticket stands, who has not left the line.
    pub(super) fn standing(&mut self, ticket: Ticket) -> Standing<'_> {
        if self.refused_from.is_some_and(|first| ticket >= first) {
            return Standing::Refused;
        }
        match self.find(ticket).and_then(|entry| entry.waiting.as_mut()) {
            Some(Waiting::Job(_, waker) | Waiting::Reservation(waker)) => Standing::Waiting(waker),
            None => Standing::Served,
        }
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Entry<J, R>> {
        let at = self
            .entries
            .binary_search_by_key(&ticket, |entry| entry.number);
        self.entries.get_mut(at.ok()?)
    }

    /// Removes somebody who gives up, and returns who it was; nobody if the
    /// holder of the ticket has been served or refused.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waiting<J, R>> {
        let left = self.find(ticket)?.waiting.take()?;
        self.gaps += 1;
        if self.gaps > self.entries.len() / 2 {
            self.entries.retain(|entry| entry.waiting.is_some());
            self.gaps = 0;
        }
        self.close_up();
        Some(left)
    }

    /// Removes the first in line.
    pub(super) fn pop(&mut self) -> Option<Waiting<J, R>> {
        let first = self.entries.pop_front()?.waiting;
        self.close_up();
        first
    }

    /// Drops the gaps before the first in line, and memory that a longer line
    /// has left.
    fn close_up(&mut self) {
        while self.gaps > 0 && self.entries.front().is_some_and(|e| e.waiting.is_none()) {
            self.entries.pop_front();
            self.gaps -= 1;
        }
        if is_excess(self.entries.capacity(), self.entries.len()) {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// Refuses everybody, and returns them.
    pub(super) fn close(&mut self) -> impl Iterator<Item = Waiting<J, R>> + use<J, R> {
        self.gaps = 0;
        let entries = std::mem::take(&mut self.entries);
        let first = entries.front().map_or(self.next, |entry| entry.number);
        self.refused_from = Some(first);
        entries.into_iter().filter_map(|entry| entry.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_leaves_no_memory() {
        let mut line = Line::<u8, u8>::default();
        let tickets: Vec<_> = (0..100_000)
            .map(|_| line.join(Waiting::Reservation(None)))
            .collect();
        for ticket in tickets.iter().step_by(2) {
            assert!(line.leave(*ticket).is_some() && line.leave(*ticket).is_none());
        }
        assert_eq!(line.len(), 50_000);
        while line.pop().is_some() {}
        assert!(line.entries.capacity() < 200 && line.gaps == 0);
    }
}
