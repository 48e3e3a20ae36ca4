//! The peak of recent turns, by which the memory of a burst is given back once less has
//! been needed for a while.

use std::collections::VecDeque;

/// A window is this many records.
const WINDOW: u8 = 4;

/// A buffer of at most this capacity is not worth shrinking.
const SMALL: usize = 64;

/// Returns whether a buffer of this capacity is much larger than the peak that was
/// needed.
pub(crate) fn is_excess(capacity: usize, peak: usize) -> bool {
    capacity > peak.saturating_mul(4).max(SMALL)
}

/// The highest count of the current and the previous window.
#[derive(Debug, Default)]
pub(crate) struct RecentPeak {
    current: usize,
    previous: usize,
    records: u8,
}

impl RecentPeak {
    pub(crate) fn record(&mut self, count: usize) {
        if self.records == WINDOW {
            self.previous = self.current;
            self.current = 0;
            self.records = 0;
        }
        self.current = self.current.max(count);
        self.records += 1;
    }

    pub(crate) fn get(&self) -> usize {
        self.current.max(self.previous)
    }

    /// Shrinks a buffer that was much larger than needed lately.
    pub(crate) fn trim<T>(&self, buffer: &mut VecDeque<T>) {
        if is_excess(buffer.capacity(), self.get()) {
            buffer.shrink_to(self.get() * 2);
        }
    }
}
