//! The most urgent first.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tracing::error;

use super::BatchStorage;
use crate::engine::panics::{catch, trace};
use crate::job::PendingJob;

/// A storage with lanes of different urgency: a batch takes the jobs of lane 0 first, then
/// those of lane 1, and so on; within a lane the oldest first.
///
/// Use it where some callers wait for their result and others do not: requests of users
/// before prefetches, payments before reports. The priority is strict, so a lane gets a
/// place in a batch only once all lanes before it are empty. Where the more urgent jobs
/// alone may fill every batch, set [`age`](Self::age), or the others wait for ever.
///
/// The queue in front of the storage is first come, first served, and an urgent job
/// overtakes only what is in the storage. The loop gives the storage up to
/// [`queue_capacity`](crate::MicroBatchBuilder::queue_capacity) jobs, and leaves up to as
/// many in the queue. So let the capacity exceed what is pending under load: then an urgent
/// job comes to the storage at once. Otherwise it first waits until the loop has taken up
/// the jobs before it in the queue, at most `queue_capacity`, and before that for room in
/// the queue, behind the callers that wait already. Less urgent jobs that may fill the
/// storage are better refused, for example by a limit on how many their callers have on
/// their way.
///
/// A batch ends at the first job that does not fit under the weight limit. No lighter job
/// of a later lane takes its place, so a heavy job is not passed over for ever.
///
/// Each job's lane is asked for once, when the loop takes it up. If that panics the job
/// goes to the last lane.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use microbatch::{CancellationToken, Lanes, MicroBatch};
///
/// #[derive(Debug, Clone, Copy, PartialEq)]
/// enum Page {
///     Requested(u32),
///     Prefetched(u32),
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lane = |page: &Page| match page {
///     Page::Requested(_) => 0,
///     Page::Prefetched(_) => 1,
/// };
/// let (log, mut batches) = tokio::sync::mpsc::unbounded_channel();
/// let pages = MicroBatch::builder(move |pages: Vec<Page>| {
///     let logged = log.send(pages.clone());
///     async move { logged.map(|()| pages) }
/// })
/// .max_batch_size(2)
/// .storage(Lanes::new(2, lane).age(Duration::from_secs(5)))
/// .build()?;
///
/// use Page::{Prefetched, Requested};
/// let handles = [Prefetched(7), Requested(1), Prefetched(8), Requested(2)]
///     .map(|page| pages.submit(page));
/// tokio::spawn(pages.start(CancellationToken::new()));
/// for handle in handles {
///     handle.await?;
/// }
/// assert_eq!(batches.recv().await, Some(vec![Requested(1), Requested(2)]));
/// assert_eq!(batches.recv().await, Some(vec![Prefetched(7), Prefetched(8)]));
/// # Ok(())
/// # }
/// ```
///
/// Under [`Keyed`](crate::Keyed) and `Tracked` the function sees their entry, whose `job()`
/// is the job: `options.storage(Lanes::new(2, |entry: &KeyedJob<_, Page>| lane(entry.job())))`.
pub struct Lanes<J, R> {
    /// The lanes that hold jobs, by number.
    lanes: BTreeMap<usize, Lane<J, R>>,
    len: usize,
    last: usize,
    lane_of: Box<dyn Fn(&J) -> usize + Send>,
    age: Option<Duration>,
    /// How many batches were taken.
    turns: u64,
}

/// The jobs of a lane, each with the time when it was accepted.
struct Lane<J, R> {
    jobs: VecDeque<(Instant, PendingJob<J, R>)>,
    /// When a batch last took jobs from it and left these.
    served: Option<LaneTurn>,
}

/// When a batch was taken, and its number, because several may be taken at one time.
type LaneTurn = (Instant, u64);

impl<J, R> Lane<J, R> {
    /// Since when the lane is passed over: since its oldest job was accepted, or since the
    /// last turn of the lane, if that came later.
    fn passed_over_since(&self) -> Option<LaneTurn> {
        let oldest = self.jobs.front().map(|(accepted, _)| (*accepted, 0));
        oldest.max(self.served)
    }
}

impl<J, R> Lanes<J, R> {
    /// Returns an empty storage with that many lanes, and the function that tells the lane
    /// of a job; 0 is the most urgent.
    ///
    /// A number beyond the last lane means the last. There is always one lane, so zero
    /// lanes are the same as one. A lane without jobs takes no memory, so there may be any
    /// number of lanes.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use microbatch::{CancellationToken, Lanes, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # static BATCHES: AtomicU32 = AtomicU32::new(0);
    /// # let numbers = |jobs: Vec<usize>| async move {
    /// #     Ok::<_, String>(vec![BATCHES.fetch_add(1, Ordering::Relaxed); jobs.len()])
    /// # };
    /// // Here a job is its own lane. Lane 9 is beyond the last, 2, and so is the same.
    /// let batcher = MicroBatch::builder(numbers)
    ///     .max_batch_size(2)
    ///     .storage(Lanes::new(3, |job: &usize| *job))
    ///     .build()?;
    /// let handles = [2, 9, 1, 0].map(|job| batcher.submit(job));
    /// tokio::spawn(batcher.start(CancellationToken::new()));
    ///
    /// let mut batches = Vec::new(); // each job learns the number of its batch
    /// for handle in handles {
    ///     batches.push(handle.await?);
    /// }
    /// assert_eq!(batches, [1, 1, 0, 0]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new<F>(lanes: usize, lane: F) -> Self
    where
        F: Fn(&J) -> usize + Send + 'static,
    {
        Self {
            lanes: BTreeMap::new(),
            len: 0,
            last: lanes.saturating_sub(1),
            lane_of: Box::new(lane),
            age: None,
            turns: 0,
        }
    }

    /// Sets the longest time that a lane may be passed over. Default none: without limit.
    ///
    /// Once the oldest job of a lane has waited that long since it was accepted, and no
    /// batch has taken a job of the lane for that long, the lane comes first in the next
    /// batch, and the others follow by urgency. Of several such lanes the one that was
    /// passed over the longest comes first in the next batch, another one in the batch
    /// after that. So a lane is passed over for this time and, with `n` lanes, `n` batches
    /// at most, if jobs do not wait in the queue.
    ///
    /// Let it be longer than the interval and than a batch takes: with less, and with zero,
    /// every lane has waited that long when its batch is cut, and the lanes take turns.
    /// [`Duration::MAX`] means without limit.
    ///
    /// This is ageing, the remedy of operating systems against the starvation of processes
    /// of low priority. It is applied to the lane and not to the job, because under load
    /// that lasts every job has waited long, and the order would be that of acceptance.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use microbatch::{CancellationToken, Lanes, MicroBatch};
    /// # use tokio::time::sleep;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let slow = |jobs: Vec<u8>| async move {
    /// #     sleep(Duration::from_secs(2)).await;
    /// #     Ok::<_, String>(jobs)
    /// # };
    /// let batcher = MicroBatch::builder(slow) // takes 2 s for a batch
    ///     .flush_when_idle(true)
    ///     .max_batch_size(1)
    ///     .storage(Lanes::new(2, |job: &u8| usize::from(*job)).age(Duration::from_secs(5)))
    ///     .build_running(CancellationToken::new())?;
    ///
    /// let later = batcher.submit(1);
    /// let urgent: Vec<_> = (0..100).map(|_| batcher.submit(0)).collect(); // enough for 200 s
    /// assert_eq!(later.await?, 1);
    /// let before = urgent.iter().filter(|handle| handle.is_finished()).count();
    /// assert_eq!(before, 3); // at 0 s, 2 s and 4 s; then it had waited for 5 s
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }

    /// Returns the lanes that hold jobs, in the order in which the next batch takes them.
    fn order(&self, now: Instant) -> Vec<usize> {
        let Some(age) = self.age else {
            return self.lanes.keys().copied().collect();
        };
        let overdue = |lane: &Lane<J, R>| {
            let since = lane.passed_over_since()?;
            (now.saturating_duration_since(since.0) >= age).then_some(since)
        };
        let lanes = self.lanes.iter().map(|(number, lane)| {
            let since = overdue(lane);
            (since.is_none(), since, *number)
        });
        let mut order: Vec<_> = lanes.collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, number)| number).collect()
    }
}

impl<J: Send + 'static, R: Send + 'static> BatchStorage<J, R> for Lanes<J, R> {
    fn len(&self) -> usize {
        self.len
    }

    fn append(&mut self, job: PendingJob<J, R>) {
        let lane = catch(|| (self.lane_of)(job.job())).unwrap_or_else(|error| {
            trace(|| error!(%error, "the lane of a job panicked"));
            self.last
        });
        // A job that is appended again keeps the time when it was accepted.
        let accepted = job.accepted().unwrap_or_else(Instant::now);
        let lane = self.lanes.entry(lane.min(self.last)).or_insert(Lane {
            jobs: VecDeque::new(),
            served: None,
        });
        lane.jobs.push_back((accepted, job));
        self.len += 1;
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>> {
        let now = Instant::now();
        self.turns += 1;
        let mut batch = Vec::new();
        let mut room = max_weight;
        'batch: for number in self.order(now) {
            let Some(lane) = self.lanes.get_mut(&number) else {
                continue;
            };
            while let Some((_, next)) = lane.jobs.front() {
                if batch.len() == max_jobs || next.weight() > room {
                    break 'batch;
                }
                room -= next.weight();
                // A withdrawn job is left out of the batch.
                if !next.is_withdrawn() {
                    lane.served = Some((now, self.turns));
                }
                batch.extend(lane.jobs.pop_front().map(|(_, job)| job));
            }
            self.lanes.remove(&number);
        }
        self.len -= batch.len();
        batch
    }
}

impl<J, R> fmt::Debug for Lanes<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes")
            .field("lanes", &self.last.saturating_add(1))
            .field("age", &self.age)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
