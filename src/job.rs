//! A job on its way to a batch.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::Span;
use tracing::level_filters::LevelFilter;

use crate::engine::departures::{DepartureGuard, Departures};
use crate::engine::panics::{catch, discard};
use crate::engine::reply::{self, ReplyReceiver, ReplySender, send_all};
use crate::engine::withdrawal::Withdrawal;
use crate::error::JobError;

/// A job that waits for its batch, as a [`BatchStorage`](crate::BatchStorage)
/// holds it.
///
/// Dropping it resolves the job's handle as
/// [`JobError::Abandoned`].
///
/// # Examples
///
/// A storage that holds two jobs at most, and drops the oldest for a new one:
///
/// ```
/// use std::collections::VecDeque;
/// use microbatch::{BatchStorage, CancellationToken, JobError, MicroBatch, PendingJob};
///
/// struct Newest(VecDeque<PendingJob<u8, u8>>);
///
/// impl BatchStorage<u8, u8> for Newest {
///     fn append(&mut self, job: PendingJob<u8, u8>) {
///         if self.0.len() == 2 {
///             self.0.pop_front();
///         }
///         self.0.push_back(job);
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
/// let frames = MicroBatch::builder(|frames: Vec<u8>| async move { Ok::<_, String>(frames) })
///     .storage(Newest(VecDeque::new()))
///     .build()?;
/// let [first, second, third] = [1, 2, 3].map(|frame| frames.submit(frame));
/// tokio::spawn(frames.start(CancellationToken::new()));
/// assert!(matches!(first.await, Err(JobError::Abandoned)));
/// assert_eq!((second.await?, third.await?), (2, 3));
/// # Ok(())
/// # }
/// ```
pub struct PendingJob<J, R> {
    job: J,
    reply: ReplySender<R>,
    weight: usize,
    /// Boxed, because it is nearly always absent and every job is moved several
    /// times.
    extra: Option<Box<Extra>>,
}

/// What few jobs have.
#[derive(Default)]
pub(crate) struct Extra {
    /// The span the job was submitted in, unless the `withdrawal` has it. Held open until
    /// the batch is cut, so that the batch can be linked with it.
    span: Option<Span>,
    /// Set while the job is in a storage, if pending jobs are counted one by one.
    departure: Option<DepartureGuard>,
    /// Set under `cancel_on_drop`.
    withdrawal: Option<Arc<Withdrawal>>,
}

impl Extra {
    /// Takes the span out, whose drop calls the subscriber.
    pub(crate) fn take_span(&mut self) -> Option<Span> {
        match &self.withdrawal {
            Some(withdrawal) => withdrawal.take_span(),
            None => self.span.take(),
        }
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        discard(self.take_span(), None);
    }
}

impl<J, R> PendingJob<J, R> {
    /// Returns the job and the receiver of its reply.
    pub(crate) fn new(job: J, weight: usize) -> (Self, ReplyReceiver<R>) {
        let (reply, receiver) = reply::channel();
        (Self::with_reply(job, weight, reply), receiver)
    }

    /// Returns a job that replies through this sender.
    pub(crate) fn with_reply(job: J, weight: usize, reply: ReplySender<R>) -> Self {
        Self {
            job,
            reply,
            weight,
            extra: origin(),
        }
    }

    /// Lets the job be withdrawn once it is accepted.
    pub(crate) fn withdrawable(&mut self) -> Arc<Withdrawal> {
        let extra = self.extra.get_or_insert_default();
        let withdrawal = Arc::new(Withdrawal::new(self.weight, extra.span.take()));
        extra.withdrawal = Some(Arc::clone(&withdrawal));
        withdrawal
    }

    /// Returns the job.
    ///
    /// # Examples
    ///
    /// A storage that gives the smallest numbers first:
    ///
    /// ```
    /// # use microbatch::{BatchStorage, CancellationToken, MicroBatch, PendingJob};
    /// struct Sorted(Vec<PendingJob<u32, u32>>);
    ///
    /// impl BatchStorage<u32, u32> for Sorted {
    ///     fn append(&mut self, pending: PendingJob<u32, u32>) {
    ///         let place = self.0.partition_point(|other| other.job() <= pending.job());
    ///         self.0.insert(place, pending);
    ///     }
    ///     // `len` and `take` as usual.
    /// #     fn len(&self) -> usize {
    /// #         self.0.len()
    /// #     }
    /// #     fn take(&mut self, max_jobs: usize, _: usize) -> Vec<PendingJob<u32, u32>> {
    /// #         self.0.drain(..max_jobs.min(self.0.len())).collect()
    /// #     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let firsts = MicroBatch::builder(|jobs: Vec<u32>| async move {
    /// #     Ok::<_, String>(vec![jobs[0]; jobs.len()])
    /// # })
    /// # .storage(Sorted(Vec::new()))
    /// # .build()?;
    /// let handles = [9, 2, 7].map(|job| firsts.submit(job)); // each learns the first of its batch
    /// tokio::spawn(firsts.start(CancellationToken::new()));
    /// for handle in handles {
    ///     assert_eq!(handle.await?, 2);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn job(&self) -> &J {
        &self.job
    }

    /// Returns what the weight function of
    /// [`max_batch_weight`](crate::MicroBatchBuilder::max_batch_weight) said of
    /// the job; zero where none is set.
    ///
    /// # Examples
    ///
    /// A storage that holds 10 bytes at most, and refuses what goes beyond:
    ///
    /// ```
    /// # use std::collections::VecDeque;
    /// # use microbatch::{BatchStorage, CancellationToken, JobError, MicroBatch, PendingJob};
    /// struct Bounded(VecDeque<PendingJob<&'static str, ()>>);
    ///
    /// impl BatchStorage<&'static str, ()> for Bounded {
    ///     fn append(&mut self, job: PendingJob<&'static str, ()>) {
    ///         let held: usize = self.0.iter().map(PendingJob::weight).sum();
    ///         if held + job.weight() <= 10 {
    ///             self.0.push_back(job); // otherwise it is dropped
    ///         }
    ///     }
    ///     // `len` and `take` as usual.
    /// #     fn len(&self) -> usize {
    /// #         self.0.len()
    /// #     }
    /// #     fn take(&mut self, max_jobs: usize, _: usize) -> Vec<PendingJob<&'static str, ()>> {
    /// #         self.0.drain(..max_jobs.min(self.0.len())).collect()
    /// #     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let texts = MicroBatch::builder(|texts: Vec<&'static str>| async move {
    ///     Ok::<_, String>(vec![(); texts.len()])
    /// })
    /// .max_batch_weight(100, |text| text.len())
    /// .storage(Bounded(VecDeque::new()))
    /// .build()?;
    /// let (fits, too_much) = (texts.submit("8 bytes."), texts.submit("bytes"));
    /// tokio::spawn(texts.start(CancellationToken::new()));
    /// assert!(matches!(too_much.await, Err(JobError::Abandoned)));
    /// fits.await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn weight(&self) -> usize {
        self.weight
    }

    #[inline]
    pub(crate) fn withdrawal(&self) -> Option<&Withdrawal> {
        self.extra.as_ref()?.withdrawal.as_deref()
    }

    /// Whether the job was withdrawn.
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.withdrawal().is_some_and(Withdrawal::is_withdrawn)
    }

    /// When the job was accepted, if it reports its departure.
    pub(crate) fn accepted(&self) -> Option<Instant> {
        Some(self.extra.as_ref()?.departure.as_ref()?.accepted)
    }

    /// Has the job report when it leaves the storage.
    pub(crate) fn report_departure(&mut self, departures: &Arc<Departures>, accepted: Instant) {
        let extra = self.extra.get_or_insert_default();
        if let Some(withdrawal) = &extra.withdrawal {
            withdrawal.set_accepted(accepted);
        }
        extra.departure = Some(DepartureGuard {
            departures: Arc::clone(departures),
            weight: self.weight,
            accepted,
            withdrawal: extra.withdrawal.clone(),
        });
    }

    /// Reports the departure of the job, which goes into a batch. Returns false if
    /// it was withdrawn.
    pub(crate) fn leave_storage(&mut self) -> bool {
        if let Some(extra) = &mut self.extra {
            extra.departure = None;
        }
        !self.is_withdrawn()
    }

    #[inline]
    pub(crate) fn into_parts(self) -> (J, ReplySender<R>, Option<Box<Extra>>) {
        (self.job, self.reply, self.extra)
    }

    /// Returns the job, to be given back to its caller.
    pub(crate) fn into_job(self) -> J {
        self.job
    }

    /// Replies that the job was never accepted, and drops it.
    pub(crate) fn refuse(self, name: Option<&str>) {
        send_all([(self.reply, Err(JobError::Closed))]);
        discard([self.job], name);
    }
}

impl<J: fmt::Debug, R> fmt::Debug for PendingJob<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingJob")
            .field("job", &self.job)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

/// Returns the summed weight of the jobs, which may exceed `usize`.
pub(crate) fn total_weight<'a, J: 'a, R: 'a>(
    jobs: impl IntoIterator<Item = &'a PendingJob<J, R>>,
) -> u128 {
    jobs.into_iter().map(|job| job.weight as u128).sum()
}

/// Returns the current span, if the span of a batch would be recorded. Without a
/// subscriber this costs a job one comparison.
#[inline]
fn origin() -> Option<Box<Extra>> {
    if LevelFilter::current() < LevelFilter::INFO {
        return None;
    }
    current_span()
}

#[inline(never)]
fn current_span() -> Option<Box<Extra>> {
    // A subscriber that panics loses the link, not the job.
    let current = || tracing::span_enabled!(tracing::Level::INFO).then(Span::current);
    let span = catch(current).ok()??;
    if span.is_none() {
        return None;
    }
    let mut extra = Box::<Extra>::default();
    extra.span = Some(span);
    Some(extra)
}
