//! The methods that put decorators around a processor.

use std::time::Duration;

use super::bisect::Bisect;
use super::coalesce::Coalesce;
#[cfg(feature = "retry")]
use super::retry::Retry;
#[cfg(feature = "retry")]
use super::retry_items::RetryItems;
use super::timeout::Timeout;
use super::{Always, BatchProcessor};

/// Decorates any [`BatchProcessor`]. The decorators are written in the order in which
/// they act, and nest: `insert.retry(backoff).bisect()` splits a batch once its
/// retries are used up.
///
/// Each decorated processor is itself a processor, so the limits, the order and the
/// stop of the [`MicroBatch`](crate::MicroBatch) hold for it, too: a stop that runs
/// out of time drops its future, whatever that is doing. A decorator makes its first
/// call in [`process`](BatchProcessor::process) itself, and not in the future, so
/// batches start in order through all of them.
///
/// A panic passes through [`timeout`](Self::timeout), `retry` and
/// [`coalesce`](Self::coalesce) as a panic, and so does one in the first call of
/// `retry_items`. A panic in the drop of a job, result or error is caught, and no caller
/// loses a result by it.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use microbatch::{BatchProcessorExt, CancellationToken, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let insert = |rows: Vec<u32>| async move {
///     if rows.contains(&7) {
///         std::future::pending::<()>().await; // it hangs
///     }
///     Ok::<_, String>(rows)
/// };
/// // Each call has a limit of 1 s. A batch beyond it is split, to find the row.
/// let insert = insert.timeout(Duration::from_secs(1)).bisect();
/// let rows = MicroBatch::new_running(CancellationToken::new(), insert);
/// let (six, seven, eight) = tokio::try_join!(rows.submit(6), rows.submit(7), rows.submit(8))?;
/// assert!(six.is_ok() && seven.is_err() && eight.is_ok());
/// # Ok(())
/// # }
/// ```
pub trait BatchProcessorExt<J, R>: BatchProcessor<J, R> + Sized {
    /// Tries a failed batch again after each pause of `backoff`, which is any
    /// builder of the [`backon`](https://docs.rs/backon) crate.
    ///
    /// Only for processors whose batches are all-or-nothing or idempotent.
    /// Limit it with [`when`](Retry::when) to errors that are temporary. A panic is
    /// not retried, and a panic in `when`, in `backoff` or in the clone of a job fails
    /// the batch. Every attempt clones the jobs.
    ///
    /// A batch stays in flight during the pauses, and the batches after it wait for as
    /// long: with [`max_in_flight`](crate::MicroBatchBuilder::max_in_flight) at 1,
    /// pauses of a minute hold up all other batches for that minute. Keep the sum of
    /// the pauses to what the callers can wait, and allow more batches in flight.
    ///
    /// The first attempts of the batches start in order, a later attempt starts when
    /// its pause is over.
    ///
    /// # Errors
    ///
    /// Those of the processor: the last one, when the pauses are used up.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use backon::ConstantBuilder;
    /// use microbatch::{BatchProcessorExt, CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), microbatch::JobError> {
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    /// let flaky = |jobs: Vec<u8>| async move {
    ///     match CALLS.fetch_add(1, Ordering::Relaxed) {
    ///         0 | 1 => Err("connection reset"),
    ///         _ => Ok(jobs),
    ///     }
    /// };
    /// let steady = flaky
    ///     .retry(ConstantBuilder::default().with_max_times(3))
    ///     .when(|error| error.contains("connection"));
    /// let batcher = MicroBatch::new_running(CancellationToken::new(), steady);
    /// assert_eq!(batcher.submit(7).await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "retry")]
    fn retry<B>(self, backoff: B) -> Retry<Self, B>
    where
        B: backon::BackoffBuilder + Clone,
    {
        Retry::new(self, backoff, Always)
    }

    /// Tries the failed jobs of a batch again, without the others, after each pause of
    /// `backoff`, which is any builder of the [`backon`](https://docs.rs/backon) crate.
    ///
    /// For bulk calls that say of each item whether it was done, and reject some of them
    /// under load:
    ///
    /// - DynamoDB's `BatchWriteItem` and `BatchGetItem` return `UnprocessedItems` and
    ///   `UnprocessedKeys`;
    /// - Elasticsearch's `_bulk` returns a status for each item, 429 for the rejected ones;
    /// - Kinesis's `PutRecords` returns a `FailedRecordCount`, and an `ErrorCode` for each
    ///   record;
    /// - SQS's `SendMessageBatch` returns the entries that were `Failed`.
    ///
    /// They return in success although items have failed, so [`retry`](Self::retry) does
    /// not see it; and it would send again what was done. Limit it with
    /// [`when`](RetryItems::when) to errors that are temporary. A job is tried again until
    /// it has a result that is `Ok`, an error for which `when` does not hold, or no pause
    /// is left. The failed jobs are processed in a call of their own, in the order in which
    /// they were in the batch, and do not wait for a full batch.
    ///
    /// Every job of the batch is cloned before the first call, and the failed ones once
    /// more before each later call. A clone is dropped as soon as its job is done.
    ///
    /// A batch stays in flight during the pauses, and its callers get their results
    /// together, when the last job is done: a job that was done in the first call waits for
    /// those that were not. With [`max_in_flight`](crate::MicroBatchBuilder::max_in_flight)
    /// at 1 the batches after it wait as well. Keep the sum of the pauses to what the
    /// callers can wait, and allow more batches in flight.
    ///
    /// Write [`timeout`](Self::timeout) before it, so that each call has the limit. A
    /// timeout after it drops the whole batch, also the jobs that were done.
    ///
    /// The first attempts of the batches start in order, a later attempt starts when
    /// its pause is over.
    ///
    /// # Errors
    ///
    /// A failed job has its last error as its result.
    ///
    /// If the first call fails, panics, or returns a wrong number of results, the batch
    /// fails as it does without the decorator. If a later call does, nothing is tried again
    /// after it: what was done stays done, the jobs of that call keep the errors that they
    /// had before it, and a warning is logged. To try such calls again, write
    /// [`retry`](Self::retry) before it: `put.retry(backoff).retry_items(backoff)`.
    ///
    /// A job for whose error `when` panics, or whose clone panics, is not tried again and
    /// keeps its error. After a panic of `backoff` no job is tried again.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use backon::ExponentialBuilder;
    /// use microbatch::{BatchProcessorExt, CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), microbatch::JobError> {
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    /// // Refuses all but the first record of a call, and negative ones for ever.
    /// let put = |records: Vec<i32>| async move {
    ///     CALLS.fetch_add(1, Ordering::Relaxed);
    ///     let puts = records.into_iter().enumerate().map(|(at, record)| match at {
    ///         _ if record < 0 => Err("malformed"),
    ///         0 => Ok(record),
    ///         _ => Err("throughput exceeded"),
    ///     });
    ///     Ok::<_, String>(puts.collect::<Vec<_>>())
    /// };
    /// let patient = put
    ///     .retry_items(ExponentialBuilder::default())
    ///     .when(|error| *error == "throughput exceeded");
    /// let batcher = MicroBatch::new_running(CancellationToken::new(), patient);
    /// let (one, bad, three) =
    ///     tokio::join!(batcher.submit(1), batcher.submit(-2), batcher.submit(3));
    /// assert_eq!((one?, bad?, three?), (Ok(1), Err("malformed"), Ok(3)));
    /// assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "retry")]
    fn retry_items<B>(self, backoff: B) -> RetryItems<Self, B>
    where
        B: backon::BackoffBuilder + Clone,
    {
        RetryItems::new(self, backoff, Always)
    }

    /// Drops a batch that takes longer than `limit` and fails it with
    /// [`Elapsed`](super::timeout::Elapsed).
    ///
    /// What the processor has done so far is not undone, and only the waiting
    /// ends: a task that the processor has spawned, work that it has handed to a
    /// thread, as [`BlockingProcessor`](super::BlockingProcessor) does, or a
    /// statement that a server has begun goes on, while the batch is no longer in
    /// flight and the next one may start. A processor that blocks its thread is not
    /// interrupted at all.
    ///
    /// The time counts from the first poll of the batch's future. Tokio's timer
    /// rounds up to the next millisecond; [`Duration::MAX`] means no limit.
    ///
    /// # Errors
    ///
    /// Those of the processor, and `Elapsed`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch::{BatchProcessorExt, CancellationToken, Elapsed, JobError, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let hung = |_: Vec<u8>| std::future::pending::<Result<Vec<u8>, String>>();
    /// let limited = hung.timeout(Duration::from_secs(3));
    /// let batcher = MicroBatch::new_running(CancellationToken::new(), limited);
    /// let Err(JobError::Failed(cause)) = batcher.submit(7).await else { panic!() };
    /// assert!(cause.is::<Elapsed>());
    /// # }
    /// ```
    fn timeout(self, limit: Duration) -> Timeout<Self> {
        Timeout::new(self, limit)
    }

    /// Splits a batch that fails or panics in halves until each job that fails is
    /// alone in its call: such a job gets its own error, every other job its result.
    ///
    /// Only for processors whose batches are all-or-nothing or idempotent: a
    /// job of a failed batch is processed again. One bad job in 1024 costs at
    /// most 21 calls, `k` bad ones in `n` at most `k * 2 * log2(n) + 1`. Limit
    /// it with [`when`](Bisect::when) to errors that a job can cause, and not, for
    /// example, the loss of a database connection. Every call with more than one job
    /// clones its jobs.
    ///
    /// The decorators before it act at every call. `timeout(limit).bisect()` gives a
    /// batch of `n` jobs up to `2 * n - 1` times the limit, if every call hangs;
    /// `bisect().timeout(limit)` limits all calls together, and fails the whole batch.
    /// `retry(backoff).bisect()` pauses and tries again for every half that holds a
    /// bad job, unless the `when` of the retry leaves out the errors that a job
    /// causes.
    ///
    /// # Errors
    ///
    /// The batch never fails; each job has a `Result` of its own. A job whose
    /// clone panics gets that as [`JobError::Panicked`](crate::JobError::Panicked)
    /// and is not processed again. The same is true of each job of a call whose error
    /// makes `when` panic.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch::{BatchProcessorExt, CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), microbatch::JobError> {
    /// let all_or_nothing = |jobs: Vec<i32>| async move {
    ///     match jobs.iter().any(|job| *job < 0) {
    ///         true => Err("check constraint: positive"),
    ///         false => Ok(jobs),
    ///     }
    /// };
    /// let batcher = MicroBatch::new_running(CancellationToken::new(), all_or_nothing.bisect());
    /// let (one, bad, three) =
    ///     tokio::join!(batcher.submit(1), batcher.submit(-2), batcher.submit(3));
    /// assert!(one?.is_ok() && bad?.is_err() && three?.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    fn bisect(self) -> Bisect<Self> {
        Bisect::new(self, Always)
    }

    /// Processes equal jobs of a batch once and gives all their callers the
    /// result.
    ///
    /// The first of equal jobs is processed. The others are dropped, with the fields
    /// that `Eq` does not compare. So it is for reads: of two equal orders one
    /// would not be carried out, although both callers get a result.
    ///
    /// The last of equal jobs gets the result itself and those before it get clones,
    /// so a batch of distinct jobs clones no result. A job whose hash or comparison panics
    /// counts as equal to no other.
    ///
    /// # Errors
    ///
    /// Those of the processor. A panic in the clone of a result fails the batch,
    /// although it was processed, because one job has no result then. A wrong number
    /// of results for the distinct jobs is a
    /// [`JobError::ResultCount`](crate::JobError::ResultCount), which counts the
    /// distinct jobs.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch::{BatchProcessorExt, CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), microbatch::JobError> {
    /// let load = |ids: Vec<u32>| async move {
    ///     assert_eq!(ids, [7, 8]);
    ///     Ok::<_, String>(ids.iter().map(|id| format!("user {id}")).collect())
    /// };
    /// let users = MicroBatch::new_running(CancellationToken::new(), load.coalesce());
    /// let (a, b, c) = tokio::join!(users.submit(7), users.submit(8), users.submit(7));
    /// assert_eq!((a?, b?, c?), ("user 7".into(), "user 8".into(), "user 7".into()));
    /// # Ok(())
    /// # }
    /// ```
    fn coalesce(self) -> Coalesce<Self> {
        Coalesce::new(self)
    }
}

impl<J, R, P: BatchProcessor<J, R>> BatchProcessorExt<J, R> for P {}
