//! When the queued jobs were accepted, without asking the clock for each.
//!
//! # Invariants
//!
//! - The runs cover the first `timed` jobs of the queue, in order. The jobs behind
//!   them are untimed.
//! - An untimed job gets its time when the worker next receives, or gets that of the
//!   timed job before it if the two will certainly share a batch.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::RecentPeak;

#[derive(Default)]
pub(super) struct AcceptTimes {
    /// How many consecutive jobs were accepted when.
    runs: VecDeque<(Instant, usize)>,
    timed: usize,
}

impl AcceptTimes {
    /// Gives this time to the untimed ones of the queued jobs.
    pub(super) fn record(&mut self, queued: usize, time: Instant) {
        let untimed = queued - self.timed;
        if untimed == 0 {
            return;
        }
        self.timed = queued;
        match self.runs.back_mut() {
            Some((last, jobs)) if *last >= time => *jobs += untimed,
            _ => self.runs.push_back((time, untimed)),
        }
    }

    /// Gives the time of the last timed job to those untimed that are among the first
    /// `jobs` of the queue.
    pub(super) fn extend_last(&mut self, jobs: usize) {
        if let Some((_, count)) = self.runs.back_mut() {
            let untimed = jobs.saturating_sub(self.timed);
            *count += untimed;
            self.timed += untimed;
        }
    }

    /// How many jobs of the queue have a time.
    pub(super) fn timed(&self) -> usize {
        self.timed
    }

    /// Moves the times of all jobs into `taken`.
    pub(super) fn take_all(&mut self, taken: &mut Vec<(Instant, usize)>) {
        taken.extend(self.runs.drain(..));
        self.timed = 0;
    }

    /// Moves the times of the first jobs into `taken`.
    pub(super) fn take(&mut self, mut jobs: usize, taken: &mut Vec<(Instant, usize)>) {
        self.timed -= jobs;
        while let Some((time, count)) = self.runs.front_mut().filter(|_| jobs > 0) {
            let of_these = jobs.min(*count);
            match taken.last_mut() {
                Some((last, count)) if last == time => *count += of_these,
                _ => taken.push((*time, of_these)),
            }
            *count -= of_these;
            jobs -= of_these;
            if *count == 0 {
                self.runs.pop_front();
            }
        }
    }

    /// Keeps the times of some jobs: `kept_before` says how many of the jobs before a
    /// position stay.
    pub(super) fn retain(&mut self, kept_before: impl Fn(usize) -> usize) {
        let mut end = 0;
        let mut timed = 0;
        self.runs.retain_mut(|(_, count)| {
            end += *count;
            *count = kept_before(end) - timed;
            timed += *count;
            *count > 0
        });
        self.timed = timed;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn trim(&mut self, peak: &RecentPeak) {
        peak.trim(&mut self.runs);
    }
}
