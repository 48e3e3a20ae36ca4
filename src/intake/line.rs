//! Those for whom there was no room in the queue.
//!
//! # Invariants
//!
//! - Whoever has a ticket has a spot until the spot is vacated: by getting room,
//!   or by giving up. A spot is given away again under another number, so an old
//!   ticket finds out that its spot is gone.
//! - `order` names those who stand in line, first to last. Who gives up leaves a
//!   gap; gaps are closed once they are the greater part.

use std::collections::VecDeque;
use std::mem;
use std::task::Waker;

use crate::job::{PendingJob, Ticket};

pub(super) struct Line<J, R> {
    spots: Vec<Spot<J, R>>,
    vacant: Vec<usize>,
    order: VecDeque<Ticket>,
    gaps: usize,
    /// Number of the next ticket.
    next: u64,
}

struct Spot<J, R> {
    number: u64,
    who: Waiting<J, R>,
}

/// Who waits for room, with whom to wake when there is some.
pub(super) enum Waiting<J, R> {
    Job(PendingJob<J, R>, Option<Waker>),
    Reservation(Option<Waker>),
    /// The queue was closed first.
    Refused,
    Nobody,
}

impl<J, R> Default for Line<J, R> {
    fn default() -> Self {
        Self {
            spots: Vec::new(),
            vacant: Vec::new(),
            order: VecDeque::new(),
            gaps: 0,
            next: 0,
        }
    }
}

impl<J, R> Line<J, R> {
    /// Returns how many stand in line.
    pub(super) fn len(&self) -> usize {
        self.order.len() - self.gaps
    }

    /// Gives somebody a spot, not yet in line.
    #[inline]
    pub(super) fn admit(&mut self, who: Waiting<J, R>) -> Ticket {
        let number = self.next;
        self.next += 1;
        let spot = Spot { number, who };
        let at = if let Some(at) = self.vacant.pop() {
            self.spots[at] = spot;
            at
        } else {
            self.spots.push(spot);
            self.spots.len() - 1
        };
        Ticket { spot: at, number }
    }

    /// Puts the holder of the ticket at the end of the line.
    pub(super) fn join(&mut self, ticket: Ticket) {
        self.order.push_back(ticket);
    }

    /// Returns who has the ticket's spot, unless it was vacated.
    pub(super) fn get(&mut self, ticket: Ticket) -> Option<&mut Waiting<J, R>> {
        let spot = self.spots.get_mut(ticket.spot)?;
        let held = spot.number == ticket.number && !matches!(spot.who, Waiting::Nobody);
        held.then_some(&mut spot.who)
    }

    /// Vacates the ticket's spot.
    #[inline]
    pub(super) fn vacate(&mut self, ticket: Ticket) -> Option<Waiting<J, R>> {
        let who = mem::replace(self.get(ticket)?, Waiting::Nobody);
        self.vacant.push(ticket.spot);
        Some(who)
    }

    /// Vacates the spot of somebody who stands in line and gives up.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waiting<J, R>> {
        let who = self.vacate(ticket)?;
        self.gaps += 1;
        if self.gaps > self.order.len() / 2 {
            let mut order = mem::take(&mut self.order);
            order.retain(|ticket| self.get(*ticket).is_some());
            self.order = order;
            self.gaps = 0;
        }
        Some(who)
    }

    /// Vacates the spot of the first in line.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Waiting<J, R>> {
        loop {
            let ticket = self.order.pop_front()?;
            if let Some(who) = self.vacate(ticket) {
                return Some(who);
            }
            self.gaps -= 1;
        }
    }

    /// Refuses everybody, in line or not, and returns them.
    pub(super) fn refuse_all(&mut self) -> Vec<Waiting<J, R>> {
        self.order.clear();
        self.gaps = 0;
        let spots = self.spots.iter_mut();
        let waiting = spots.filter(|spot| !matches!(spot.who, Waiting::Nobody));
        waiting
            .map(|spot| mem::replace(&mut spot.who, Waiting::Refused))
            .collect()
    }
}
