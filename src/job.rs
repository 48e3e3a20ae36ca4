//! A job on its way through, and the handle that waits for its result. The
//! only file that names the oneshot between the two.
//!
//! # Invariants
//!
//! - A [`Reply`] is answered exactly once: by `send`, or by its drop, which
//!   says [`JobError::Abandoned`]. So no handle outlives its job unanswered,
//!   whichever way the job is lost.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tracing::Span;

use crate::error::JobError;

type Answer<R> = Result<R, JobError>;

/// The sending half: what the loop answers a job with.
pub(crate) struct Reply<R>(Option<oneshot::Sender<Answer<R>>>);

impl<R> Reply<R> {
    /// Returns a reply that is owed, and the receiver from which its handle is
    /// made.
    pub(crate) fn new() -> (Self, Receipt<R>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(sender)), Receipt(receiver))
    }

    pub(crate) fn send(mut self, answer: Answer<R>) {
        if let Some(sender) = self.0.take() {
            // A caller that has gone does not want to know.
            let _ = sender.send(answer);
        }
    }

    /// Whether the handle was dropped.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.0.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(Err(JobError::Abandoned));
        }
    }
}

/// A job that waits for its batch, as a [`BatchStorage`](crate::BatchStorage)
/// holds it.
///
/// Dropping it resolves the job's handle as
/// [`JobError::Abandoned`].
pub struct PendingJob<J, R> {
    job: J,
    reply: Reply<R>,
    weight: usize,
    /// The span the job was submitted in; boxed, because it is nearly always
    /// absent and every job is moved several times.
    span: Option<Box<Span>>,
}

impl<J, R> PendingJob<J, R> {
    /// Returns the job with the reply it is owed, and the receiver of that
    /// reply.
    pub(crate) fn new(job: J, weight: usize) -> (Self, Receipt<R>) {
        let (reply, receipt) = Reply::new();
        let pending = Self {
            job,
            reply,
            weight,
            span: current_span(),
        };
        (pending, receipt)
    }

    /// Returns the job.
    pub fn job(&self) -> &J {
        &self.job
    }

    /// Returns what the weight function of
    /// [`max_batch_weight`](crate::MicroBatchBuilder::max_batch_weight) said of
    /// the job; zero where none is set.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Whether the handle was dropped.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.reply.is_unwanted()
    }

    pub(crate) fn into_parts(self) -> (J, Reply<R>, Option<Box<Span>>) {
        (self.job, self.reply, self.span)
    }

    /// Gives the job back to a caller who gets no handle for it.
    pub(crate) fn into_job(self) -> J {
        self.job
    }

    /// Answers that the job was never accepted.
    pub(crate) fn refuse(self) {
        self.reply.send(Err(JobError::Closed));
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

/// Asks for the current span only where the span of a batch would be recorded,
/// so that a job costs one comparison where nobody listens.
fn current_span() -> Option<Box<Span>> {
    if !tracing::span_enabled!(tracing::Level::DEBUG) {
        return None;
    }
    let span = Span::current();
    (!span.is_none()).then(|| Box::new(span))
}

/// A job's place on the way into the queue, held by a handle whose job found
/// no room. Dropping it withdraws the job unless it was accepted.
pub(crate) trait Place: Send + Sync {
    /// Stands in line for room, once; from then on the job may be accepted at
    /// any moment.
    fn stand_in_line(&mut self);

    /// Waits until the job is accepted or refused.
    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), JobError>>;
}

/// The receiving half of a job's reply.
pub(crate) struct Receipt<R>(oneshot::Receiver<Answer<R>>);

impl<R> Receipt<R> {
    pub(crate) fn accepted(self) -> JobHandle<R> {
        JobHandle(State::Accepted(self.0))
    }

    pub(crate) fn waiting(self, place: Box<dyn Place>) -> JobHandle<R> {
        JobHandle(State::Waiting(place, self.0))
    }
}

/// Resolves, exactly once, to the job's own result.
///
/// Awaiting it waits for the whole of the job's way: for room in the queue, if
/// there was none at [`submit`](crate::MicroBatch::submit), for its batch to
/// fill or fall due, and for the processor.
///
/// Dropping the handle of an accepted job leaves the job to be processed, or
/// withdraws it under
/// [`cancel_on_drop`](crate::MicroBatchBuilder::cancel_on_drop). Dropping the
/// handle of a job that still waits for room withdraws it, always.
///
/// # Errors
///
/// Every [`JobError`]; each says whether the job was accepted.
///
/// # Panics
///
/// Polled again after it has resolved, like most futures.
///
/// # Cancel safety
///
/// Awaiting `&mut handle`, in a `select!` or under a timeout, loses nothing:
/// neither the result nor the place in line.
#[must_use = "dropping the handle loses the result and, where the queue is full, the job"]
pub struct JobHandle<R>(State<R>);

enum State<R> {
    Accepted(oneshot::Receiver<Answer<R>>),
    /// No room yet: the place holds the job.
    Waiting(Box<dyn Place>, oneshot::Receiver<Answer<R>>),
    Refused(JobError),
}

impl<R> JobHandle<R> {
    /// A handle that says why its job was not accepted.
    pub(crate) fn refused(error: JobError) -> Self {
        Self(State::Refused(error))
    }

    /// Waits until the job has been accepted, and no longer: fire and forget,
    /// with backpressure. Returns at once for a job that was accepted before.
    ///
    /// # Errors
    ///
    /// [`JobError::Closed`] or [`JobError::TooHeavy`] where the job will never
    /// be accepted, or [`JobError::Panicked`] where the weight function
    /// panicked. Awaiting the handle afterwards gives the same error.
    ///
    /// # Cancel safety
    ///
    /// The place in line is kept by the handle.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), JobError> {
    /// # let rows = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |rows: Vec<u64>| async move { Ok::<_, String>(rows) },
    /// # );
    /// for row in 0..1000 {
    ///     rows.submit(row).accepted().await?; // never more than the queue holds
    /// }
    /// rows.flush().await;
    /// assert_eq!(rows.stats().completed, 1000);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn accepted(&mut self) -> Result<(), JobError> {
        poll_fn(|cx| self.poll_accepted(cx)).await
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        match &mut self.0 {
            State::Accepted(_) => Poll::Ready(Ok(())),
            State::Refused(error) => Poll::Ready(Err(error.clone())),
            State::Waiting(place, _) => {
                let accepted = ready!(place.poll_accepted(cx));
                // The outcome of waiting is remembered, and the place given up.
                let error = accepted.clone().err().unwrap_or(JobError::Abandoned);
                let waited = std::mem::replace(&mut self.0, State::Refused(error));
                if let (Ok(()), State::Waiting(_, receiver)) = (&accepted, waited) {
                    self.0 = State::Accepted(receiver);
                }
                Poll::Ready(accepted)
            }
        }
    }

    /// Returns whether the handle would resolve at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            State::Accepted(receiver) | State::Waiting(_, receiver) => {
                receiver.is_terminated() || !receiver.is_empty()
            }
            State::Refused(_) => true,
        }
    }

    /// Blocks the current thread until the result is there: for threads outside
    /// any runtime.
    ///
    /// # Errors
    ///
    /// As for awaiting the handle.
    ///
    /// # Panics
    ///
    /// Within an asynchronous context, as everything in Tokio that blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), JobError> {
    /// # let double = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u64>| async move { Ok::<_, String>(jobs.iter().map(|job| job * 2).collect()) },
    /// # );
    /// let thread = std::thread::spawn(move || double.submit(21).blocking_wait());
    /// # let thread = tokio::task::spawn_blocking(move || thread.join()).await.expect("joined");
    /// assert_eq!(thread.expect("no panic")?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn blocking_wait(self) -> Result<R, JobError> {
        let answer = match self.0 {
            State::Accepted(receiver) => receiver.blocking_recv(),
            State::Waiting(mut place, receiver) => {
                place.stand_in_line();
                // The place stays alive while waiting: its drop withdraws.
                let answer = receiver.blocking_recv();
                drop(place);
                answer
            }
            State::Refused(error) => return Err(error),
        };
        answer.unwrap_or(Err(JobError::Abandoned))
    }
}

impl<R> Future for JobHandle<R> {
    type Output = Result<R, JobError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let receiver = match &mut self.0 {
            State::Accepted(receiver) => receiver,
            State::Waiting(place, receiver) => {
                place.stand_in_line();
                receiver
            }
            State::Refused(error) => return Poll::Ready(Err(error.clone())),
        };
        let answer = ready!(Pin::new(receiver).poll(cx));
        Poll::Ready(answer.unwrap_or(Err(JobError::Abandoned)))
    }
}

impl<R> fmt::Debug for JobHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            State::Waiting(..) if !self.is_finished() => "waiting for room",
            State::Refused(_) => "refused",
            _ if self.is_finished() => "finished",
            _ => "accepted",
        };
        f.debug_tuple("JobHandle").field(&state).finish()
    }
}
