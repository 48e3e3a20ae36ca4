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
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Span;

use crate::error::JobError;
use crate::panics::discard;

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

    pub(crate) fn send(self, answer: Answer<R>) {
        // Once the sender is out there is nothing left to drop, and to say so
        // saves looking on every job.
        let mut owed = ManuallyDrop::new(self);
        if let Some(sender) = owed.0.take() {
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
    /// Boxed, because it is nearly always absent and every job is moved several
    /// times.
    extra: Option<Box<Extra>>,
}

/// What few jobs have.
#[derive(Default)]
pub(crate) struct Extra {
    /// The span the job was submitted in.
    pub(crate) span: Option<Span>,
    /// Set where the storage is a user's own.
    watched: Option<Watched>,
}

/// Tells, by its drop, that a job has left its storage. A user's storage may
/// drop any job at any moment, and what is pending is known all the same.
struct Watched {
    departures: Arc<Departures>,
    weight: usize,
    taken_up: Instant,
}

/// The jobs that have left their storage, each with its weight and with when it
/// was taken up.
#[derive(Default)]
pub(crate) struct Departures(Mutex<Vec<(usize, Instant)>>);

impl Departures {
    pub(crate) fn take(&self) -> Vec<(usize, Instant)> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut departures = self.departures.0.lock();
        let departures = departures.as_mut().unwrap_or_else(|error| error.get_mut());
        departures.push((self.weight, self.taken_up));
    }
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
            extra: origin(),
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

    pub(crate) fn unwatch(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.watched = None;
        }
    }

    #[inline]
    pub(crate) fn into_parts(self) -> (J, Reply<R>, Option<Box<Extra>>) {
        (self.job, self.reply, self.extra)
    }

    /// Gives the job back to a caller who gets no handle for it.
    pub(crate) fn into_job(self) -> J {
        self.job
    }

    /// Answers that the job was never accepted by the micro-batcher of that name.
    pub(crate) fn refuse(self, name: Option<&str>) {
        self.reply.send(Err(JobError::Closed));
        discard([self.job], name);
    }

    /// Has the job tell when it leaves the storage, taken or dropped.
    pub(crate) fn watch(&mut self, departures: &Arc<Departures>, now: Instant) {
        self.extra.get_or_insert_default().watched = Some(Watched {
            departures: Arc::clone(departures),
            weight: self.weight,
            taken_up: now,
        });
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

/// Returns the summed weight of the jobs, which may be more than one number of
/// theirs can say.
pub(crate) fn total_weight<'a, J: 'a, R: 'a>(
    jobs: impl IntoIterator<Item = &'a PendingJob<J, R>>,
) -> u128 {
    jobs.into_iter().map(|job| job.weight as u128).sum()
}

/// Asks for the current span only where the span of a batch would be recorded,
/// so that a job costs one comparison where nobody listens.
fn origin() -> Option<Box<Extra>> {
    if !tracing::span_enabled!(tracing::Level::DEBUG) {
        return None;
    }
    let span = Some(Span::current()).filter(|span| !span.is_none())?;
    Some(Box::new(Extra {
        span: Some(span),
        ..Extra::default()
    }))
}

/// Where jobs wait for room, whatever their type.
pub(crate) trait Room: Send + Sync {
    /// Puts the job at the end of the line, from where it may be accepted at any
    /// moment; or accepts it at once.
    fn stand_in_line(&self, ticket: Ticket);

    /// Waits until the job, which stands in line, is accepted or refused.
    fn poll_accepted(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), JobError>>;

    /// Drops the job, unless it was accepted.
    fn withdraw(&self, ticket: Ticket, in_line: bool);
}

/// A job's spot among those that wait for room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    pub(crate) spot: usize,
    pub(crate) number: u64,
}

/// What keeps a job out of the queue.
enum Way {
    Waiting(Wait),
    /// It will never be accepted.
    Refused(JobError),
}

/// A job that waits for room. Dropping it withdraws the job unless it was
/// accepted since.
struct Wait {
    room: Arc<dyn Room>,
    ticket: Ticket,
    in_line: bool,
    answered: bool,
}

impl Wait {
    fn stand_in_line(&mut self) {
        if !self.in_line {
            self.in_line = true;
            self.room.stand_in_line(self.ticket);
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.answered {
            self.room.withdraw(self.ticket, self.in_line);
        }
    }
}

/// The receiving half of a job's reply.
pub(crate) struct Receipt<R>(oneshot::Receiver<Answer<R>>);

impl<R> Receipt<R> {
    pub(crate) fn accepted(self) -> JobHandle<R> {
        self.handle(None)
    }

    pub(crate) fn waiting(self, room: Arc<dyn Room>, ticket: Ticket) -> JobHandle<R> {
        self.handle(Some(Way::Waiting(Wait {
            room,
            ticket,
            in_line: false,
            answered: false,
        })))
    }

    /// A handle that says why its job was not accepted; the reply says the same.
    pub(crate) fn refused(self, error: JobError) -> JobHandle<R> {
        self.handle(Some(Way::Refused(error)))
    }

    fn handle(self, way: Option<Way>) -> JobHandle<R> {
        JobHandle { reply: self.0, way }
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
pub struct JobHandle<R> {
    reply: oneshot::Receiver<Answer<R>>,
    /// None once the job has been accepted.
    way: Option<Way>,
}

impl<R> JobHandle<R> {
    /// A handle that says why its job was not accepted.
    pub(crate) fn refused(error: JobError) -> Self {
        let (reply, receipt) = Reply::new();
        reply.send(Err(error.clone()));
        receipt.refused(error)
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
        let accepted = match &mut self.way {
            None => return Ok(()),
            Some(Way::Refused(error)) => return Err(error.clone()),
            Some(Way::Waiting(wait)) => {
                wait.stand_in_line();
                poll_fn(|cx| wait.room.poll_accepted(wait.ticket, cx)).await
            }
        };
        self.way = accepted.clone().err().map(Way::Refused);
        accepted
    }

    /// Returns whether the handle would resolve at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.reply.is_terminated() || !self.reply.is_empty()
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
    pub fn blocking_wait(mut self) -> Result<R, JobError> {
        self.stand_in_line();
        let answer = self.reply.blocking_recv();
        note_answer(&mut self.way);
        answer.unwrap_or(Err(JobError::Abandoned))
    }

    #[inline]
    fn stand_in_line(&mut self) {
        if let Some(Way::Waiting(wait)) = &mut self.way {
            wait.stand_in_line();
        }
    }
}

/// Where the reply is there, nothing is left to withdraw.
#[inline]
fn note_answer(way: &mut Option<Way>) {
    if let Some(Way::Waiting(wait)) = way {
        wait.answered = true;
    }
}

impl<R> Future for JobHandle<R> {
    type Output = Result<R, JobError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.stand_in_line();
        let answer = ready!(Pin::new(&mut self.reply).poll(cx));
        note_answer(&mut self.way);
        Poll::Ready(answer.unwrap_or(Err(JobError::Abandoned)))
    }
}

impl<R> fmt::Debug for JobHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.way {
            _ if self.is_finished() => "finished",
            Some(Way::Waiting(_)) => "waiting for room",
            _ => "accepted",
        };
        f.debug_tuple("JobHandle").field(&state).finish()
    }
}
