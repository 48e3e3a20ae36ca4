//! Where pending jobs wait for their batch.

mod lanes;
mod similar;

use std::collections::VecDeque;
use std::{fmt, mem};

pub use lanes::Lanes;
pub use similar::Similar;

use crate::job::{PendingJob, total_weight};

/// Holds the jobs that the loop has taken up until their batch is cut: in an
/// order and within limits of its own.
///
/// The loop alone calls it, from one task, so it needs no locks. A storage
/// given to [`storage`](crate::MicroBatchBuilder::storage) is handed up to
/// `queue_capacity` jobs (and at least a batch) before the loop leaves the
/// others in the queue, so that it has something to choose from.
///
/// # Panics
///
/// A panic in `append` or `take` abandons the jobs that it drops, and nothing
/// else.
///
/// # Examples
///
/// Newest first:
///
/// ```
/// use microbatch::{BatchStorage, PendingJob};
///
/// struct Stack<J, R>(Vec<PendingJob<J, R>>);
///
/// impl<J: Send + 'static, R: Send + 'static> BatchStorage<J, R> for Stack<J, R> {
///     fn len(&self) -> usize {
///         self.0.len()
///     }
///     fn append(&mut self, job: PendingJob<J, R>) {
///         self.0.push(job);
///     }
///     fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>> {
///         let mut room = max_weight;
///         let fits = self.0.iter().rev().take(max_jobs).take_while(|job| {
///             let fits = job.weight() <= room;
///             room = room.saturating_sub(job.weight());
///             fits
///         });
///         let kept = self.0.len() - fits.count();
///         self.0.drain(kept..).rev().collect()
///     }
/// }
///
/// # let stack = Stack(Vec::new());
/// # let batcher = microbatch::MicroBatch::builder(
/// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
/// # )
/// # .storage(stack)
/// # .build();
/// # assert!(batcher.is_ok());
/// ```
pub trait BatchStorage<J, R>: Send + 'static {
    /// Returns how many jobs are held.
    fn len(&self) -> usize;

    /// Returns whether no job is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a job in. It may refuse: dropping a [`PendingJob`], this one or
    /// one held before, resolves its handle as
    /// [`JobError::Abandoned`](crate::JobError::Abandoned).
    fn append(&mut self, job: PendingJob<J, R>);

    /// Takes in all the jobs, in their order; as provided, one by one. What it
    /// leaves behind is appended one by one.
    fn append_all(&mut self, jobs: &mut VecDeque<PendingJob<J, R>>) {
        while let Some(job) = jobs.pop_front() {
            self.append(job);
        }
    }

    /// Returns the next batch: at most `max_jobs` jobs that weigh at most
    /// `max_weight` together.
    ///
    /// What is returned beyond either limit is appended again. A storage that
    /// holds jobs and returns none is asked again when something has happened,
    /// or after the interval; if its [`len`](Self::len) is zero then, the jobs
    /// that it was given count as dropped.
    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>>;
}

/// The default storage: a queue in memory, first in, first out.
pub struct MemoryStorage<J, R> {
    jobs: VecDeque<PendingJob<J, R>>,
}

impl<J, R> MemoryStorage<J, R> {
    /// Returns an empty storage.
    #[must_use]
    pub fn new() -> Self {
        Self {
            jobs: VecDeque::new(),
        }
    }
}

impl<J: Send + 'static, R: Send + 'static> BatchStorage<J, R> for MemoryStorage<J, R> {
    fn len(&self) -> usize {
        self.jobs.len()
    }

    fn append(&mut self, job: PendingJob<J, R>) {
        self.jobs.push_back(job);
    }

    fn append_all(&mut self, jobs: &mut VecDeque<PendingJob<J, R>>) {
        if self.jobs.is_empty() {
            mem::swap(&mut self.jobs, jobs);
        } else {
            self.jobs.append(jobs);
        }
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>> {
        if self.jobs.len() <= max_jobs && total_weight(&self.jobs) <= max_weight as u128 {
            // All there is: hand out the buffer itself.
            return mem::take(&mut self.jobs).into();
        }
        let count = fitting(self.jobs.iter().take(max_jobs), max_weight);
        self.jobs.drain(..count).collect()
    }
}

/// Returns how many of the jobs, from the first, fit under `max_weight`.
pub(crate) fn fitting<'a, J: 'a, R: 'a>(
    jobs: impl Iterator<Item = &'a PendingJob<J, R>>,
    max_weight: usize,
) -> usize {
    let mut room = max_weight;
    jobs.map_while(|job| {
        room = room.checked_sub(job.weight())?;
        Some(())
    })
    .count()
}

impl<J, R> Default for MemoryStorage<J, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<J, R> fmt::Debug for MemoryStorage<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage")
            .field("len", &self.jobs.len())
            .finish()
    }
}
