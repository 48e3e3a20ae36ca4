//! Streams that submit their items as there is room, and yield the results.
//!
//! # Invariants
//!
//! - Every item that is pulled yields exactly one result.
//! - An item is pulled only into room that was reserved for it, or once the queue is
//!   closed.
//! - A stream that may pull more, but only after a result, never waits for the interval:
//!   unless one of its jobs is in a batch already, it requests a flush.
//! - Room is reserved only while the source is polled, and the stream is among the
//!   waiters only after a poll that returned `Pending`. So neither a slow source nor a
//!   slow consumer keeps room from other callers.

mod ready_queue;

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{FusedStream, Stream};
use pin_project_lite::pin_project;
use tokio::task::coop;

use crate::engine::queue::Reservation;
use crate::error::JobError;
use crate::handle::JobHandle;
use crate::micro_batch::MicroBatch;
use ready_queue::UnorderedHandles;

impl<J: Send + 'static, R: Send + 'static> MicroBatch<J, R> {
    /// Submits the items of a stream as there is room, and yields their results
    /// in the same order.
    ///
    /// At most `concurrency` jobs are in progress: submitted, and their results
    /// not yet yielded. Make it at least twice `max_batch_size`, times
    /// `max_in_flight`, so that a batch fills while others are processed. If all
    /// of them wait for their batch, so that nothing more can be pulled, the
    /// stream requests a flush and does not wait for the interval: with less than
    /// `max_batch_size` it makes batches of `concurrency`. The jobs that are left
    /// once the source has ended wait until their batch is due, like any other
    /// job. Room in the queue is reserved before an item is pulled, so an item
    /// without room stays in the source.
    ///
    /// The stream holds a clone of this `MicroBatch`. It ends when the source
    /// has ended and every result is yielded. Like all streams it does nothing
    /// unless polled. Between a result and the next poll it holds no room and does
    /// not wait for any. But a stream that was polled, waits for room and is not
    /// polled again keeps its position among the waiters, and later the room,
    /// until it is polled again or dropped.
    ///
    /// # Errors
    ///
    /// Each item yields its own result, and an error ends nothing. Once the
    /// micro-batcher is closed and the results that are due have been yielded,
    /// the items that are left are pulled one by one, and each yields
    /// [`JobError::Closed`]. A consumer that stops at the first error, as
    /// `TryStreamExt` does, leaves the items after it in the source.
    ///
    /// # Panics
    ///
    /// If `concurrency` is zero.
    ///
    /// A panic of the source passes through the poll of the stream. Polled again,
    /// the stream yields the results that are due and ends.
    ///
    /// # Cancel safety
    ///
    /// Dropping a future that awaits the next result loses nothing. Dropping
    /// the stream ends its wait for room and drops the handles of the jobs in
    /// progress: they are processed, or withdrawn under `cancel_on_drop`.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::{TryStreamExt, stream};
    /// use microbatch::{CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), microbatch::JobError> {
    /// let double = MicroBatch::new_running(CancellationToken::new(), |jobs: Vec<u64>| async move {
    ///     Ok::<_, String>(jobs.iter().map(|job| job * 2).collect())
    /// });
    ///
    /// let doubled = double.submit_stream(stream::iter(0..100), 32); // batches hold 3 jobs
    /// let doubled: Vec<_> = doubled.try_collect().await?;
    /// assert_eq!(doubled[..4], [0, 2, 4, 6]);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn submit_stream<S: Stream<Item = J>>(
        &self,
        jobs: S,
        concurrency: usize,
    ) -> SubmitStream<S, R> {
        SubmitStream {
            inner: BufferedSubmit::new(self, jobs, concurrency, VecDeque::new()),
        }
    }

    /// Submits the items of a stream as there is room, and yields each result
    /// when it comes.
    ///
    /// In all else it is as [`submit_stream`](Self::submit_stream). It helps
    /// if jobs finish out of order, under `max_in_flight` or with a storage
    /// that has an order of its own. It costs a lock for each result, and as many
    /// small allocations as the highest number of jobs that were in progress at
    /// once.
    ///
    /// # Errors
    ///
    /// As for [`submit_stream`](Self::submit_stream).
    ///
    /// # Panics
    ///
    /// As for [`submit_stream`](Self::submit_stream).
    ///
    /// # Cancel safety
    ///
    /// As for [`submit_stream`](Self::submit_stream).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures::{TryStreamExt, stream};
    /// use microbatch::{CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let naps = MicroBatch::builder(|naps: Vec<u64>| async move {
    ///     tokio::time::sleep(Duration::from_millis(naps[0])).await;
    ///     Ok::<_, String>(naps)
    /// })
    /// .max_batch_size(1)
    /// .max_in_flight(3)
    /// .build_running(CancellationToken::new())?;
    ///
    /// let woken = naps.submit_stream_unordered(stream::iter([60, 30, 1]), 3);
    /// let woken: Vec<_> = woken.try_collect().await?;
    /// assert_eq!(woken, [1, 30, 60]);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn submit_stream_unordered<S: Stream<Item = J>>(
        &self,
        jobs: S,
        concurrency: usize,
    ) -> SubmitStreamUnordered<S, R> {
        SubmitStreamUnordered {
            inner: BufferedSubmit::new(self, jobs, concurrency, UnorderedHandles::default()),
        }
    }
}

pin_project! {
    /// Yields the results of a stream of jobs in order, from
    /// [`MicroBatch::submit_stream`].
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::{Stream, StreamExt, stream};
    /// use microbatch::{CancellationToken, MicroBatch, SubmitStream};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let source = stream::iter([1, 2, 3, 4]);
    /// let mut results: SubmitStream<_, u8> = echo.submit_stream(source, 6);
    /// assert_eq!(results.size_hint(), (4, Some(4)));
    /// let mut sum = 0;
    /// while let Some(result) = results.next().await {
    ///     sum += result?;
    /// }
    /// assert_eq!(sum, 10);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "streams do nothing unless polled"]
    pub struct SubmitStream<S: Stream, R> {
        #[pin]
        inner: BufferedSubmit<S, R, VecDeque<JobHandle<R>>>,
    }
}

pin_project! {
    /// Yields the results of a stream of jobs as they come, from
    /// [`MicroBatch::submit_stream_unordered`].
    ///
    /// # Examples
    ///
    /// It is a stream like any other, so adaptors apply:
    ///
    /// ```
    /// use futures::{StreamExt, TryStreamExt, stream};
    /// use microbatch::{CancellationToken, MicroBatch, SubmitStreamUnordered};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let parse = |jobs: Vec<&'static str>| async move {
    /// #     Ok::<_, String>(jobs.iter().map(|job| job.parse::<u32>()).collect())
    /// # };
    /// # let parse = MicroBatch::new_running(CancellationToken::new(), parse);
    /// let lines = stream::iter(["3", "x", "4"]);
    /// let results: SubmitStreamUnordered<_, _> = parse.submit_stream_unordered(lines, 6);
    /// let numbers = results.try_filter_map(async |number| Ok(number.ok()));
    /// let mut numbers: Vec<u32> = numbers.take(2).try_collect().await?;
    /// numbers.sort();
    /// assert_eq!(numbers, [3, 4]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "streams do nothing unless polled"]
    pub struct SubmitStreamUnordered<S: Stream, R> {
        #[pin]
        inner: BufferedSubmit<S, R, UnorderedHandles<R>>,
    }
}

impl<S, R> Stream for SubmitStream<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    type Item = Result<R, JobError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.project().inner.poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl<S, R> Stream for SubmitStreamUnordered<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    type Item = Result<R, JobError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.project().inner.poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl<S, R> FusedStream for SubmitStream<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    fn is_terminated(&self) -> bool {
        self.inner.is_done()
    }
}

impl<S, R> FusedStream for SubmitStreamUnordered<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    fn is_terminated(&self) -> bool {
        self.inner.is_done()
    }
}

impl<S: Stream, R> fmt::Debug for SubmitStream<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.debug("SubmitStream", f)
    }
}

impl<S: Stream, R> fmt::Debug for SubmitStreamUnordered<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.debug("SubmitStreamUnordered", f)
    }
}

/// The handles of the jobs in progress.
trait Handles<R> {
    fn len(&self) -> usize;

    fn push(&mut self, handle: JobHandle<R>);

    /// Waits for the next result to yield; `None` if there are no handles.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R, JobError>>>;
}

impl<R> Handles<R> for VecDeque<JobHandle<R>> {
    fn len(&self) -> usize {
        self.len()
    }

    fn push(&mut self, handle: JobHandle<R>) {
        self.push_back(handle);
    }

    // The jobs of all handles are accepted or refused, so only the first is polled.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R, JobError>>> {
        let Some(first) = self.front_mut() else {
            return Poll::Ready(None);
        };
        let result = Pin::new(first).poll(cx);
        if result.is_ready() {
            self.pop_front();
        }
        result.map(Some)
    }
}

pin_project! {
    /// What both streams do. The micro-batcher is the last field, because its drop may
    /// begin a stop, which must find the jobs withdrawn under `cancel_on_drop`.
    struct BufferedSubmit<S: Stream, R, H> {
        #[pin]
        source: S,
        // Nothing more is pulled from the source.
        exhausted: bool,
        // Set while the stream waits for room.
        reservation: Option<Reservation<S::Item, R>>,
        concurrency: usize,
        in_progress: H,
        // How many items were pulled, so far and before the last request to flush.
        pulled: u64,
        flushed: u64,
        // Yielded next. Stored here, so that a panic of the source does not lose it.
        next: Option<Result<R, JobError>>,
        micro_batch: MicroBatch<S::Item, R>,
    }
}

impl<S: Stream, R, H: Handles<R>> BufferedSubmit<S, R, H> {
    #[track_caller]
    fn new(
        micro_batch: &MicroBatch<S::Item, R>,
        source: S,
        concurrency: usize,
        in_progress: H,
    ) -> Self {
        assert!(concurrency > 0, "`concurrency` must be greater than zero");
        Self {
            source,
            exhausted: false,
            reservation: None,
            concurrency,
            in_progress,
            pulled: 0,
            flushed: 0,
            next: None,
            micro_batch: micro_batch.clone(),
        }
    }

    fn is_done(&self) -> bool {
        self.exhausted && self.due() == 0
    }

    /// How many results will be yielded for the items that were pulled.
    fn due(&self) -> usize {
        self.in_progress.len() + usize::from(self.next.is_some())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let due = self.due();
        if self.exhausted {
            return (due, Some(due));
        }
        let (lower, upper) = self.source.size_hint();
        let upper = upper.and_then(|upper| upper.checked_add(due));
        (lower.saturating_add(due), upper)
    }

    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("concurrency", &self.concurrency)
            .field("due", &self.due())
            .field("exhausted", &self.exhausted)
            .finish_non_exhaustive()
    }
}

impl<S, R, H> BufferedSubmit<S, R, H>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
    H: Handles<R>,
{
    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<R, JobError>>> {
        // Before pulling, because a pull may use up Tokio's budget of the task each time, and
        // no result would ever be taken then.
        self.as_mut().collect(cx);
        if self.as_mut().pull(cx) {
            // The new handles have not been polled, so they would not wake this task.
            self.as_mut().collect(cx);
        }
        let this = self.as_mut().project();
        if let Some(result) = this.next.take() {
            // Until the next poll, room that is granted would be unused.
            *this.reservation = None;
            return Poll::Ready(Some(result));
        }
        if self.is_done() {
            return Poll::Ready(None);
        }
        self.flush_if_stuck();
        Poll::Pending
    }

    /// Requests a flush if nothing can be pulled before a result, and all jobs in
    /// progress wait for their batch. If one of them is in a batch, its result comes
    /// without a flush.
    fn flush_if_stuck(self: Pin<&mut Self>) {
        let this = self.project();
        let jobs = this.in_progress.len();
        if !*this.exhausted
            && jobs >= *this.concurrency
            && *this.pulled > *this.flushed
            && this.micro_batch.flush_if_all_wait(jobs)
        {
            *this.flushed = *this.pulled;
        }
    }

    /// Takes the next result, if there is one.
    fn collect(self: Pin<&mut Self>, cx: &mut Context<'_>) {
        let this = self.project();
        if this.next.is_none() {
            if let Poll::Ready(result) = this.in_progress.poll(cx) {
                *this.next = result;
            }
        }
    }

    /// Submits the items of the source while there is room. Returns whether there were
    /// any.
    fn pull(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let mut this = self.project();
        let mut any = false;
        while !*this.exhausted && this.in_progress.len() < *this.concurrency {
            // However many items the source has, the task must yield to others.
            let Poll::Ready(coop) = coop::poll_proceed(cx) else {
                break;
            };
            let reservation = this.reservation.take();
            let mut reservation = reservation.unwrap_or_else(|| this.micro_batch.reservation());
            let reserved = match reservation.poll_ready(cx) {
                Poll::Ready(Ok(())) => true,
                // Closed. The other items are pulled once all results were yielded.
                Poll::Ready(Err(_)) if this.in_progress.len() > 0 || this.next.is_some() => break,
                Poll::Ready(Err(_)) => false,
                // The source has no more items, so it needs no room to say so.
                Poll::Pending if this.source.size_hint().1 == Some(0) => false,
                Poll::Pending => {
                    *this.reservation = Some(reservation);
                    break;
                }
            };
            // Set in case the source panics: it is not polled again then.
            *this.exhausted = true;
            let pulled = this.source.as_mut().poll_next(cx);
            *this.exhausted = matches!(pulled, Poll::Ready(None));
            let Poll::Ready(Some(job)) = pulled else {
                break;
            };
            coop.made_progress();
            any = true;
            *this.pulled += 1;
            this.in_progress.push(if reserved {
                this.micro_batch.submit_into(reservation, job)
            } else {
                this.micro_batch.submit(job)
            });
        }
        any
    }
}
