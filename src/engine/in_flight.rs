//! The batches in flight, and the requested flushes that wait for them.
//!
//! # Invariants
//!
//! - Batches are numbered in the order in which they are cut, so they stay sorted.
//! - A requested flush is replied to when all batches that were cut before it ended, and
//!   not earlier.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::BatchReplies;
use super::peak::RecentPeak;
use super::reply::{ReplySender, send_all};

pub(super) struct InFlight<R> {
    /// The replies owed for each batch, with its number, oldest first.
    batches: VecDeque<(u64, Arc<BatchReplies<R>>)>,
    /// Of how many were in flight.
    peak: RecentPeak,
    /// Those of ended batches, to be used again.
    spare: Vec<Arc<BatchReplies<R>>>,
    /// The number of the next batch.
    next: u64,
    /// The callers of each flush. They wait for all batches below the number.
    flushes: VecDeque<(u64, Vec<ReplySender<()>>)>,
}

impl<R> Default for InFlight<R> {
    fn default() -> Self {
        Self {
            batches: VecDeque::new(),
            peak: RecentPeak::default(),
            spare: Vec::new(),
            next: 0,
            flushes: VecDeque::new(),
        }
    }
}

impl<R> InFlight<R> {
    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }

    pub(super) fn peak(&self) -> usize {
        self.peak.get()
    }

    /// The number of the next batch.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &BatchReplies<R>> {
        self.batches.iter().map(|(_, replies)| &**replies)
    }

    /// Returns the replies for the next batch, of an ended one if there is one.
    pub(super) fn spare(&mut self) -> Arc<BatchReplies<R>> {
        self.spare.pop().unwrap_or_default()
    }

    /// Adds the next batch.
    pub(super) fn push(&mut self, replies: Arc<BatchReplies<R>>) {
        self.batches.push_back((self.next, replies));
        self.peak.record(self.batches.len());
        self.next += 1;
    }

    /// Removes an ended batch.
    pub(super) fn remove(&mut self, number: u64) -> Option<Arc<BatchReplies<R>>> {
        let found = self.batches.binary_search_by_key(&number, |batch| batch.0);
        let (_, replies) = found.ok().and_then(|at| self.batches.remove(at))?;
        self.spare.push(Arc::clone(&replies));
        self.spare.truncate(self.peak.get());
        self.peak.trim(&mut self.batches);
        Some(replies)
    }

    /// Has these callers wait for all batches so far.
    pub(super) fn wait(&mut self, flush: Vec<ReplySender<()>>) {
        self.flushes.push_back((self.next, flush));
    }

    /// Replies to the callers whose batches have all ended.
    pub(super) fn reply_to_flushes(&mut self) {
        let oldest = self.batches.front().map_or(self.next, |batch| batch.0);
        while self.flushes.front().is_some_and(|(end, _)| *end <= oldest) {
            let (_, replies) = self.flushes.pop_front().unwrap_or_default();
            send_all(replies.into_iter().map(|reply| (reply, Ok(()))));
        }
    }
}
