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
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::collections::VecDeque;
    /// # use microbatch::{BatchStorage, CancellationToken, MicroBatch, PendingJob};
    /// struct TwoQueues {
    ///     urgent: VecDeque<PendingJob<i32, usize>>,
    ///     other: VecDeque<PendingJob<i32, usize>>,
    /// }
    ///
    /// impl BatchStorage<i32, usize> for TwoQueues {
    ///     fn len(&self) -> usize {
    ///         self.urgent.len() + self.other.len() // all jobs, wherever they are held
    ///     }
    ///     fn append(&mut self, job: PendingJob<i32, usize>) {
    ///         let urgent = *job.job() < 0;
    ///         if urgent { self.urgent.push_back(job) } else { self.other.push_back(job) }
    ///     }
    ///     fn take(&mut self, max_jobs: usize, _: usize) -> Vec<PendingJob<i32, usize>> {
    ///         let queue = if self.urgent.is_empty() { &mut self.other } else { &mut self.urgent };
    ///         queue.drain(..max_jobs.min(queue.len())).collect()
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let storage = TwoQueues { urgent: VecDeque::new(), other: VecDeque::new() };
    /// # let sizes = MicroBatch::builder(|jobs: Vec<i32>| async move {
    /// #     Ok::<_, String>(vec![jobs.len(); jobs.len()])
    /// # })
    /// # .storage(storage)
    /// # .build()?;
    /// let handles = [1, -1, 2, -2].map(|job| sizes.submit(job));
    /// tokio::spawn(sizes.start(CancellationToken::new()));
    /// for handle in handles {
    ///     assert_eq!(handle.await?, 2); // two batches of two
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn len(&self) -> usize;

    /// Returns whether no job is held.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::collections::{BTreeMap, VecDeque};
    /// # use microbatch::{BatchStorage, CancellationToken, MicroBatch, PendingJob};
    /// struct ByTenant(BTreeMap<u8, VecDeque<PendingJob<u8, u8>>>);
    ///
    /// impl BatchStorage<u8, u8> for ByTenant {
    ///     fn len(&self) -> usize {
    ///         self.0.values().map(VecDeque::len).sum()
    ///     }
    ///     fn is_empty(&self) -> bool {
    ///         self.0.is_empty() // no sum, because a tenant without jobs is removed
    ///     }
    ///     // `append` and `take` as usual.
    /// #     fn append(&mut self, job: PendingJob<u8, u8>) {
    /// #         self.0.entry(*job.job()).or_default().push_back(job);
    /// #     }
    /// #     fn take(&mut self, _: usize, _: usize) -> Vec<PendingJob<u8, u8>> {
    /// #         self.0.pop_first().map_or_else(Vec::new, |(_, jobs)| jobs.into())
    /// #     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let storage = ByTenant(BTreeMap::new());
    /// assert!(storage.is_empty());
    /// # let echo = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    /// #     .storage(storage)
    /// #     .build_running(CancellationToken::new())?;
    /// # assert_eq!(tokio::try_join!(echo.submit(7), echo.submit(8))?, (7, 8));
    /// # Ok(())
    /// # }
    /// ```
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a job in. It may refuse: dropping a [`PendingJob`], this one or
    /// one held before, resolves its handle as
    /// [`JobError::Abandoned`](crate::JobError::Abandoned).
    ///
    /// # Examples
    ///
    /// A storage that takes in each job once:
    ///
    /// ```
    /// # use std::collections::VecDeque;
    /// # use microbatch::{BatchStorage, CancellationToken, JobError, MicroBatch, PendingJob};
    /// struct Distinct(VecDeque<PendingJob<u8, u8>>);
    ///
    /// impl BatchStorage<u8, u8> for Distinct {
    ///     fn append(&mut self, job: PendingJob<u8, u8>) {
    ///         let known = self.0.iter().any(|other| other.job() == job.job());
    ///         if !known {
    ///             self.0.push_back(job);
    ///         }
    ///     }
    /// #     fn len(&self) -> usize {
    /// #         self.0.len()
    /// #     }
    /// #     fn take(&mut self, max_jobs: usize, _: usize) -> Vec<PendingJob<u8, u8>> {
    /// #         self.0.drain(..max_jobs.min(self.0.len())).collect()
    /// #     }
    ///     // `len` and `take` as usual.
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let batch = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
    /// # let wakeups = MicroBatch::builder(batch).storage(Distinct(VecDeque::new())).build()?;
    /// let [first, again, other] = [7, 7, 8].map(|job| wakeups.submit(job));
    /// tokio::spawn(wakeups.start(CancellationToken::new()));
    /// assert!(matches!(again.await, Err(JobError::Abandoned)));
    /// assert_eq!((first.await?, other.await?), (7, 8));
    /// # Ok(())
    /// # }
    /// ```
    fn append(&mut self, job: PendingJob<J, R>);

    /// Takes in all the jobs, in their order; as provided, one by one. What it
    /// leaves behind is appended one by one.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::VecDeque;
    /// # use microbatch::{BatchStorage, CancellationToken, MicroBatch, PendingJob};
    ///
    /// struct Newest(Vec<PendingJob<u32, u32>>);
    ///
    /// impl BatchStorage<u32, u32> for Newest {
    ///     fn append_all(&mut self, jobs: &mut VecDeque<PendingJob<u32, u32>>) {
    ///         self.0.extend(jobs.drain(..)); // grows once, not for each job
    ///     }
    /// #     fn len(&self) -> usize {
    /// #         self.0.len()
    /// #     }
    ///     fn append(&mut self, job: PendingJob<u32, u32>) {
    ///         self.0.push(job);
    ///     }
    /// #     fn take(&mut self, max_jobs: usize, _: usize) -> Vec<PendingJob<u32, u32>> {
    /// #         self.0.drain(self.0.len().saturating_sub(max_jobs)..).rev().collect()
    /// #     }
    ///     // `len` and `take` as usual.
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let firsts = MicroBatch::builder(|jobs: Vec<u32>| async move {
    /// #     Ok::<_, String>(vec![jobs[0]; jobs.len()])
    /// # })
    /// # .storage(Newest(Vec::new()))
    /// # .build()?;
    /// let handles = [1, 2, 3].map(|job| firsts.submit(job)); // each learns the first of its batch
    /// tokio::spawn(firsts.start(CancellationToken::new()));
    /// for handle in handles {
    ///     assert_eq!(handle.await?, 3);
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// A storage whose batches hold jobs of one kind, here of one sign:
    ///
    /// ```
    /// # use std::collections::VecDeque;
    /// # use microbatch::{BatchStorage, CancellationToken, MicroBatch, PendingJob};
    /// struct OneKind(VecDeque<PendingJob<i32, usize>>);
    ///
    /// impl BatchStorage<i32, usize> for OneKind {
    ///     fn take(&mut self, max_jobs: usize, _: usize) -> Vec<PendingJob<i32, usize>> {
    ///         let Some(kind) = self.0.front().map(|job| job.job().signum()) else {
    ///             return Vec::new();
    ///         };
    ///         let jobs = self.0.iter().take(max_jobs);
    ///         let count = jobs.take_while(|job| job.job().signum() == kind).count();
    ///         self.0.drain(..count).collect()
    ///     }
    /// #     fn len(&self) -> usize {
    /// #         self.0.len()
    /// #     }
    /// #     fn append(&mut self, job: PendingJob<i32, usize>) {
    /// #         self.0.push_back(job);
    /// #     }
    ///     // `len` and `append` as usual.
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let sizes = MicroBatch::builder(|jobs: Vec<i32>| async move {
    /// #     Ok::<_, String>(vec![jobs.len(); jobs.len()])
    /// # })
    /// # .storage(OneKind(VecDeque::new()))
    /// # .build()?;
    /// let handles = [1, 2, -1].map(|job| sizes.submit(job)); // each learns the size of its batch
    /// tokio::spawn(sizes.start(CancellationToken::new()));
    /// let [first, second, third] = handles;
    /// assert_eq!((first.await?, second.await?, third.await?), (2, 2, 1));
    /// # Ok(())
    /// # }
    /// ```
    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>>;
}

/// The default storage: a queue in memory, first in, first out.
///
/// # Examples
///
/// A storage of your own may hold it, and add what it needs:
///
/// ```
/// # use microbatch::{CancellationToken, JobError, MicroBatch};
/// use microbatch::{BatchStorage, MemoryStorage, PendingJob};
///
/// struct AtMost<J, R>(usize, MemoryStorage<J, R>);
///
/// impl<J: Send + 'static, R: Send + 'static> BatchStorage<J, R> for AtMost<J, R> {
///     fn len(&self) -> usize {
///         self.1.len()
///     }
///     fn append(&mut self, job: PendingJob<J, R>) {
///         if self.len() < self.0 {
///             self.1.append(job);
///         }
///     }
///     fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>> {
///         self.1.take(max_jobs, max_weight)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let batch = |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) };
/// # let storage = AtMost(2, MemoryStorage::new());
/// # let batcher = MicroBatch::builder(batch).storage(storage).build()?;
/// let [first, second, third] = [1, 2, 3].map(|job| batcher.submit(job));
/// tokio::spawn(batcher.start(CancellationToken::new()));
/// assert!(matches!(third.await, Err(JobError::Abandoned)));
/// assert_eq!((first.await?, second.await?), (1, 2));
/// # Ok(())
/// # }
/// ```
pub struct MemoryStorage<J, R> {
    jobs: VecDeque<PendingJob<J, R>>,
}

impl<J, R> MemoryStorage<J, R> {
    /// Returns an empty storage.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{BatchStorage, CancellationToken, MemoryStorage, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let storage = MemoryStorage::new();
    /// assert!(storage.is_empty());
    ///
    /// let echo = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .storage(storage)
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(echo.submit(7).await?, 7);
    /// # Ok(())
    /// # }
    /// ```
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
