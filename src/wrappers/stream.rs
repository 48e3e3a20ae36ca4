//! Streams of jobs, submitted as there is room and collected as their results
//! come.
//!
//! # Invariants
//!
//! - Every item that is pulled yields exactly one result.
//! - An item is pulled only into room that was reserved for it, or once there
//!   will never be room again.
//! - A stream that has more to pull, and can pull nothing until a result comes,
//!   never waits for the interval: unless a result is sure to come, it asks for a flush.
//! - Room is held only while the source is being polled, and a place in line
//!   only while a poll has said that the stream waits. So neither a slow source
//!   nor a consumer busy with a result keeps others from the queue.

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
use ready_queue::Slots;

impl<J: Send + 'static, R: Send + 'static> MicroBatch<J, R> {
    /// Submits the items of a stream as there is room, and yields their results
    /// in the same order.
    ///
    /// At most `concurrency` jobs are on their way: submitted, and their
    /// results not yet yielded. Make it at least twice `max_batch_size`, times
    /// `max_in_flight`, so that a batch fills while others are processed. Where
    /// all of them wait for their batch, so that nothing more can be pulled, the
    /// stream has them flushed and does not wait for the interval: with less than
    /// `max_batch_size` it makes batches of `concurrency`. What is left once the
    /// source has ended waits for company like any other job. Room in the queue is reserved before an item is pulled,
    /// so what has no room yet stays in the source.
    ///
    /// The stream holds a clone of this `MicroBatch`. It ends when the source
    /// has ended and every result is yielded. Like all streams it does nothing
    /// unless polled. Between a result and the next poll it holds neither room
    /// nor a place in line; but one that was polled, waits for room and is then
    /// left alone keeps its reservation, and in the end the room, until it is polled
    /// again or dropped.
    ///
    /// # Errors
    ///
    /// Each item yields its own result, and an error ends nothing. Once the
    /// micro-batcher is closed and the results that are due have been yielded,
    /// the items that are left are pulled one by one, and each yields
    /// [`JobError::Closed`]. Who stops at the first, as `TryStreamExt` does,
    /// leaves those behind it in the source.
    ///
    /// # Panics
    ///
    /// If `concurrency` is zero.
    ///
    /// A panic of the source reaches whoever polls. Polled again, the stream
    /// yields the results that are due and ends.
    ///
    /// # Cancel safety
    ///
    /// Dropping a future that awaits the next result loses nothing. Dropping
    /// the stream gives up its place in line and drops the handles of the jobs
    /// on their way: they are processed, or withdrawn under `cancel_on_drop`.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::{TryStreamExt, stream};
    /// use microbatch::{CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
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
            pump: Pump::new(self, jobs, concurrency, VecDeque::new()),
        }
    }

    /// Submits the items of a stream as there is room, and yields each result
    /// when it comes.
    ///
    /// In all else it is as [`submit_stream`](Self::submit_stream). It helps
    /// where jobs overtake one another, under `max_in_flight` or with a storage
    /// that has an order of its own. It costs a lock for each result, and a
    /// small allocation for each of the most jobs that were ever on their way
    /// at once.
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
    /// # #[tokio::main(flavor = "current_thread")]
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
            pump: Pump::new(self, jobs, concurrency, Slots::default()),
        }
    }
}

pin_project! {
    /// Yields the results of a stream of jobs in order, from
    /// [`MicroBatch::submit_stream`].
    #[must_use = "streams do nothing unless polled"]
    pub struct SubmitStream<S: Stream, R> {
        #[pin]
        pump: Pump<S, R, VecDeque<JobHandle<R>>>,
    }
}

pin_project! {
    /// Yields the results of a stream of jobs as they come, from
    /// [`MicroBatch::submit_stream_unordered`].
    #[must_use = "streams do nothing unless polled"]
    pub struct SubmitStreamUnordered<S: Stream, R> {
        #[pin]
        pump: Pump<S, R, Slots<R>>,
    }
}

impl<S, R> Stream for SubmitStream<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    type Item = Result<R, JobError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.project().pump.poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.pump.size_hint()
    }
}

impl<S, R> Stream for SubmitStreamUnordered<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    type Item = Result<R, JobError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.project().pump.poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.pump.size_hint()
    }
}

impl<S, R> FusedStream for SubmitStream<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    fn is_terminated(&self) -> bool {
        self.pump.is_done()
    }
}

impl<S, R> FusedStream for SubmitStreamUnordered<S, R>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
{
    fn is_terminated(&self) -> bool {
        self.pump.is_done()
    }
}

impl<S: Stream, R> fmt::Debug for SubmitStream<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pump.debug("SubmitStream", f)
    }
}

impl<S: Stream, R> fmt::Debug for SubmitStreamUnordered<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pump.debug("SubmitStreamUnordered", f)
    }
}

/// The jobs on their way, in the order in which their results are wanted.
trait OnTheWay<R> {
    fn len(&self) -> usize;

    fn push(&mut self, handle: JobHandle<R>);

    /// Waits for the next result; there is none where no job is on its way.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R, JobError>>>;
}

impl<R> OnTheWay<R> for VecDeque<JobHandle<R>> {
    fn len(&self) -> usize {
        self.len()
    }

    fn push(&mut self, handle: JobHandle<R>) {
        self.push_back(handle);
    }

    // All were accepted, so those behind the first need not be polled.
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
    /// What both streams do. The micro-batcher comes last, so that the jobs
    /// behind it are given up before its drop perhaps flushes them.
    struct Pump<S: Stream, R, Q> {
        #[pin]
        source: S,
        // Nothing more is pulled from the source.
        exhausted: bool,
        // The place in line, while waiting for it.
        reservation: Option<Reservation<S::Item, R>>,
        concurrency: usize,
        on_the_way: Q,
        // How many items were pulled, now and when a flush was last asked for.
        pulled: u64,
        flushed: u64,
        // To be yielded next. Kept here, where a panic of the source spares it.
        next: Option<Result<R, JobError>>,
        micro_batch: MicroBatch<S::Item, R>,
    }
}

impl<S: Stream, R, Q: OnTheWay<R>> Pump<S, R, Q> {
    #[track_caller]
    fn new(
        micro_batch: &MicroBatch<S::Item, R>,
        source: S,
        concurrency: usize,
        on_the_way: Q,
    ) -> Self {
        assert!(concurrency > 0, "`concurrency` must be greater than zero");
        Self {
            source,
            exhausted: false,
            reservation: None,
            concurrency,
            on_the_way,
            pulled: 0,
            flushed: 0,
            next: None,
            micro_batch: micro_batch.clone(),
        }
    }

    fn is_done(&self) -> bool {
        self.exhausted && self.due() == 0
    }

    /// How many results are due for what was pulled.
    fn due(&self) -> usize {
        self.on_the_way.len() + usize::from(self.next.is_some())
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

impl<S, R, Q> Pump<S, R, Q>
where
    S: Stream<Item: Send + 'static>,
    R: Send + 'static,
    Q: OnTheWay<R>,
{
    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<R, JobError>>> {
        // Before pulling, which may use up what Tokio allows a task to do in
        // one go, and would then keep the results from being seen for ever.
        self.as_mut().collect(cx);
        if self.as_mut().pull(cx) {
            // Nobody waits for these yet.
            self.as_mut().collect(cx);
        }
        let this = self.as_mut().project();
        if let Some(result) = this.next.take() {
            // The consumer may take its time, and room granted meanwhile would
            // lie idle.
            *this.reservation = None;
            return Poll::Ready(Some(result));
        }
        if self.is_done() {
            return Poll::Ready(None);
        }
        self.flush_if_stuck();
        Poll::Pending
    }

    /// Asks for a flush where nothing can be pulled before there is a result, and
    /// all jobs on their way wait for company. If one of them is in a batch, its
    /// result comes by itself.
    fn flush_if_stuck(self: Pin<&mut Self>) {
        let this = self.project();
        let jobs = this.on_the_way.len();
        if !*this.exhausted
            && jobs >= *this.concurrency
            && *this.pulled > *this.flushed
            && this.micro_batch.flush_if_all_wait(jobs)
        {
            *this.flushed = *this.pulled;
        }
    }

    /// Takes the next result, if it is there.
    fn collect(self: Pin<&mut Self>, cx: &mut Context<'_>) {
        let this = self.project();
        if this.next.is_none() {
            if let Poll::Ready(result) = this.on_the_way.poll(cx) {
                *this.next = result;
            }
        }
    }

    /// Submits what the source has, as long as there is room, and returns
    /// whether that was anything.
    fn pull(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let mut this = self.project();
        let mut any = false;
        while !*this.exhausted && this.on_the_way.len() < *this.concurrency {
            // A source without end must not keep the task to itself.
            let Poll::Ready(coop) = coop::poll_proceed(cx) else {
                break;
            };
            let reservation = this.reservation.take();
            let mut reservation = reservation.unwrap_or_else(|| this.micro_batch.reservation());
            let reserved = match reservation.poll_ready(cx) {
                Poll::Ready(Ok(())) => true,
                // Closed. What is left is pulled when its error is asked for.
                Poll::Ready(Err(_)) if this.on_the_way.len() > 0 || this.next.is_some() => break,
                Poll::Ready(Err(_)) => false,
                // No room is needed to hear that there is nothing left.
                Poll::Pending if this.source.size_hint().1 == Some(0) => false,
                Poll::Pending => {
                    *this.reservation = Some(reservation);
                    break;
                }
            };
            // Unless it says otherwise: if it panics, it is not polled again.
            *this.exhausted = true;
            let pulled = this.source.as_mut().poll_next(cx);
            *this.exhausted = matches!(pulled, Poll::Ready(None));
            let Poll::Ready(Some(job)) = pulled else {
                break;
            };
            coop.made_progress();
            any = true;
            *this.pulled += 1;
            this.on_the_way.push(if reserved {
                this.micro_batch.submit_into(reservation, job)
            } else {
                this.micro_batch.submit(job)
            });
        }
        any
    }
}
