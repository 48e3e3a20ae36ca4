//! What a burst leaves behind is given back, once there has been less for a
//! while.

use std::collections::VecDeque;

/// So many notes make a window.
const WINDOW: u8 = 4;

/// With less than that there is nothing to gain.
const SMALL: usize = 64;

/// Whether room for so many is much more than the most that was needed.
pub(crate) fn is_excess(capacity: usize, most: usize) -> bool {
    capacity > most.saturating_mul(4).max(SMALL)
}

/// The most there was of something, in this window of notes and in the last one.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    this: usize,
    last: usize,
    notes: u8,
}

impl Recent {
    pub(crate) fn note(&mut self, count: usize) {
        if self.notes == WINDOW {
            self.last = self.this;
            self.this = 0;
            self.notes = 0;
        }
        self.this = self.this.max(count);
        self.notes += 1;
    }

    pub(crate) fn most(&self) -> usize {
        self.this.max(self.last)
    }

    /// Gives memory back that was not needed lately.
    pub(crate) fn trim<T>(&self, buffer: &mut VecDeque<T>) {
        if is_excess(buffer.capacity(), self.most()) {
            buffer.shrink_to(self.most() * 2);
        }
    }
}
