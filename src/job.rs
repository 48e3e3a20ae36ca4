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
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::time::Instant;
use tracing::Span;
use tracing::level_filters::LevelFilter;

use crate::error::JobError;
use crate::oneshot;
use crate::panics::{discard, guard};

type Answer<R> = Result<R, JobError>;

/// The sending half: what the loop answers a job with.
pub(crate) struct Reply<R>(Option<oneshot::Sender<Answer<R>>>);

impl<R> Reply<R> {
    /// Returns a reply that is owed, and the receiver from which its handle is
    /// made.
    pub(crate) fn new() -> (Self, Receipt<R>) {
        let (reply, receiver) = oneshot::channel();
        let receipt = Receipt {
            reply: receiver,
            place: None,
        };
        (Self(Some(reply)), receipt)
    }

    #[inline]
    pub(crate) fn send(mut self, answer: Answer<R>) {
        if let Some(sender) = self.0.take() {
            sender.send(answer);
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
            // Sending wakes the caller's task by code of its own.
            let _ = guard(|| sender.send(Err(JobError::Abandoned)));
        }
    }
}

/// Sends every reply, although to wake a caller, or to drop what no caller
/// wants any more, may panic; returns the message of a panic.
pub(crate) fn send_all<R>(
    replies: impl IntoIterator<Item = (Reply<R>, Answer<R>)>,
) -> Option<Arc<str>> {
    let mut replies = replies.into_iter();
    let mut panicked = None;
    while let Err(message) = guard(|| {
        for (reply, answer) in replies.by_ref() {
            reply.send(answer);
        }
    }) {
        panicked = Some(message);
    }
    panicked
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
    /// Set while the loop keeps count of the job one by one: where the storage
    /// is a user's own, and under `cancel_on_drop`.
    watched: Option<Watched>,
    /// Where the job is, under `cancel_on_drop`.
    place: Option<Arc<Place>>,
}

impl Drop for Extra {
    fn drop(&mut self) {
        // A subscriber hears of it.
        discard(self.span.take(), None);
    }
}

/// Where an accepted job is, which its handle must know to give it up.
///
/// A job is given up under the lock of the queue, and enters and leaves the queue
/// under it; so the queue knows how many of its jobs are given up. With the loop,
/// the first to leave [`HELD`](Self::HELD) has the job: its handle, its batch, or
/// a storage that drops it.
pub(crate) struct Place {
    stage: AtomicU8,
    pub(crate) weight: usize,
    /// When it was accepted, once the loop has taken it up.
    accepted: OnceLock<Instant>,
    /// In which era of the storage the loop took it up.
    era: AtomicU64,
}

impl Place {
    const WAITING: u8 = 0;
    const QUEUED: u8 = 1;
    const HELD: u8 = 2;
    const LEFT: u8 = 3;
    const GIVEN_UP: u8 = 4;

    fn change(&self, from: u8, to: u8) -> bool {
        let changed = self
            .stage
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        changed.is_ok()
    }

    /// Gives the job up where it is in the queue.
    pub(crate) fn give_up_queued(&self) -> bool {
        self.change(Self::QUEUED, Self::GIVEN_UP)
    }

    /// Gives the job up where the loop has it; unless the storage has lost all
    /// jobs of its era.
    pub(crate) fn give_up_held(&self, era: u64) -> bool {
        self.change(Self::HELD, Self::GIVEN_UP) && self.era.load(Ordering::Acquire) == era
    }

    /// When the job was accepted, for the loop, which has taken it up.
    pub(crate) fn accepted(&self) -> Option<Instant> {
        self.accepted.get().copied()
    }

    fn is_given_up(&self) -> bool {
        self.stage.load(Ordering::Acquire) == Self::GIVEN_UP
    }
}

/// Tells, by its drop, that a job has left its storage. A user's storage may
/// drop any job at any moment, and what is pending is known all the same.
struct Watched {
    departures: Arc<Departures>,
    weight: usize,
    accepted: Instant,
    place: Option<Arc<Place>>,
}

/// The jobs that have left their storage, each with its weight and with when it
/// was accepted.
#[derive(Default)]
pub(crate) struct Departures(Mutex<Vec<(usize, Instant)>>);

impl Departures {
    pub(crate) fn take(&self) -> Vec<(usize, Instant)> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // What was given up has been counted.
        let place = self.place.as_ref();
        if place.is_some_and(|place| !place.change(Place::HELD, Place::LEFT)) {
            return;
        }
        let mut departures = self.departures.0.lock();
        let departures = departures.as_mut().unwrap_or_else(|error| error.get_mut());
        departures.push((self.weight, self.accepted));
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

    /// As [`new`](Self::new), for a job that its caller may give up once it is
    /// accepted.
    pub(crate) fn cancellable(job: J, weight: usize) -> (Self, Receipt<R>) {
        let (mut pending, mut receipt) = Self::new(job, weight);
        let place = Arc::new(Place {
            stage: AtomicU8::new(Place::WAITING),
            weight,
            accepted: OnceLock::new(),
            era: AtomicU64::new(0),
        });
        receipt.place = Some(Arc::clone(&place));
        pending.extra.get_or_insert_default().place = Some(place);
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

    fn place(&self) -> Option<&Arc<Place>> {
        self.extra.as_ref()?.place.as_ref()
    }

    /// Whether its caller has given the job up.
    pub(crate) fn is_given_up(&self) -> bool {
        self.place().is_some_and(|place| place.is_given_up())
    }

    /// When the job was accepted, once it is watched.
    pub(crate) fn accepted(&self) -> Option<Instant> {
        Some(self.extra.as_ref()?.watched.as_ref()?.accepted)
    }

    /// The job is accepted.
    #[inline]
    pub(crate) fn enter_queue(&self) {
        if let Some(place) = self.place() {
            place.change(Place::WAITING, Place::QUEUED);
        }
    }

    /// The loop takes the job out of the queue, which its caller has not given
    /// up.
    pub(crate) fn take_up(&self, era: u64) {
        if let Some(place) = self.place() {
            place.era.store(era, Ordering::Release);
            place.change(Place::QUEUED, Place::HELD);
        }
    }

    /// The job is dropped from the queue, unless its caller has given it up.
    pub(crate) fn leave_queue(&self) {
        if let Some(place) = self.place() {
            place.change(Place::QUEUED, Place::LEFT);
        }
    }

    /// Takes the job into a batch, unless its caller has given it up.
    pub(crate) fn claim(&mut self) -> bool {
        if let Some(extra) = &mut self.extra {
            extra.watched = None;
        }
        !self.is_given_up()
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
        send_all([(self.reply, Err(JobError::Closed))]);
        discard([self.job], name);
    }

    /// Has the job, which was accepted at that time, tell when it leaves the
    /// storage, taken or dropped.
    pub(crate) fn watch(&mut self, departures: &Arc<Departures>, accepted: Instant) {
        let extra = self.extra.get_or_insert_default();
        if let Some(place) = &extra.place {
            let _ = place.accepted.set(accepted);
        }
        extra.watched = Some(Watched {
            departures: Arc::clone(departures),
            weight: self.weight,
            accepted,
            place: extra.place.clone(),
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
#[inline]
fn origin() -> Option<Box<Extra>> {
    if LevelFilter::current() < LevelFilter::DEBUG {
        return None;
    }
    current_span()
}

#[inline(never)]
fn current_span() -> Option<Box<Extra>> {
    // A subscriber that panics costs the link, and not the job.
    let current = || tracing::span_enabled!(tracing::Level::DEBUG).then(Span::current);
    let span = guard(current).ok()??;
    if span.is_none() {
        return None;
    }
    let mut extra = Box::<Extra>::default();
    extra.span = Some(span);
    Some(extra)
}

/// Where jobs wait for room and for the loop, whatever their type.
pub(crate) trait Room: Send + Sync {
    /// Waits until the job, which stands in line, is accepted or refused.
    fn poll_accepted(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), JobError>>;

    /// Drops the job if it still stands in line, and returns whether it did.
    fn withdraw(&self, ticket: Ticket) -> bool;

    /// Leaves an accepted job out of its batch, unless that was cut.
    fn give_up(&self, place: &Arc<Place>);
}

/// A place in line: who came first has the lower number.
pub(crate) type Ticket = u64;

/// What a handle has to do with its job before there is a result.
enum Tie {
    /// It may withdraw the job.
    Tied(Hold),
    /// The job will never be accepted.
    Refused(JobError),
}

/// A hold on a job that is dropped with its handle.
struct Hold {
    room: Arc<dyn Room>,
    /// Set until the job is known to be accepted.
    ticket: Option<Ticket>,
    /// Set under `cancel_on_drop`.
    place: Option<Arc<Place>>,
    answered: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.answered || self.ticket.is_some_and(|ticket| self.room.withdraw(ticket)) {
            return;
        }
        if let Some(place) = &self.place {
            self.room.give_up(place);
        }
    }
}

/// The receiving half of a job's reply.
pub(crate) struct Receipt<R> {
    reply: oneshot::Receiver<Answer<R>>,
    place: Option<Arc<Place>>,
}

impl<R> Receipt<R> {
    /// A handle of what nothing can be done about.
    pub(crate) fn accepted(self) -> JobHandle<R> {
        self.handle(None)
    }

    /// A handle of an accepted job, which gives it up if the job can be.
    #[inline]
    pub(crate) fn accepted_by<T: Room + 'static>(self, room: &Arc<T>) -> JobHandle<R> {
        match self.place {
            None => self.handle(None),
            Some(_) => self.tied(Arc::clone(room) as Arc<dyn Room>, None),
        }
    }

    pub(crate) fn waiting(self, room: Arc<dyn Room>, ticket: Ticket) -> JobHandle<R> {
        self.tied(room, Some(ticket))
    }

    fn tied(mut self, room: Arc<dyn Room>, ticket: Option<Ticket>) -> JobHandle<R> {
        let hold = Hold {
            room,
            ticket,
            place: self.place.take(),
            answered: false,
        };
        self.handle(Some(Tie::Tied(hold)))
    }

    /// A handle that says why its job was not accepted; the reply says the same.
    pub(crate) fn refused(self, error: JobError) -> JobHandle<R> {
        self.handle(Some(Tie::Refused(error)))
    }

    fn handle(self, tie: Option<Tie>) -> JobHandle<R> {
        JobHandle {
            reply: self.reply,
            tie,
        }
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
/// A handle whose result is there resolves without a look at Tokio's budget of
/// the task, so one task may collect any number of handles, by whatever loop, at a
/// constant cost for each.
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
    /// None where the job is accepted and cannot be withdrawn.
    tie: Option<Tie>,
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
        let hold = match &mut self.tie {
            None => return Ok(()),
            Some(Tie::Refused(error)) => return Err(error.clone()),
            Some(Tie::Tied(hold)) => hold,
        };
        let Some(ticket) = hold.ticket else {
            return Ok(());
        };
        let accepted = poll_fn(|cx| hold.room.poll_accepted(ticket, cx)).await;
        hold.ticket = None;
        if let Err(error) = &accepted {
            self.tie = Some(Tie::Refused(error.clone()));
        } else if hold.place.is_none() {
            self.tie = None;
        }
        accepted
    }

    /// Returns whether the handle would resolve at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.reply.is_ready()
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
        let Self { reply, mut tie } = self;
        let answer = reply.blocking_recv();
        note_answer(&mut tie);
        answer.expect("a `JobHandle` was awaited after it had resolved")
    }
}

/// Where the reply is there, nothing is left to withdraw.
#[inline]
fn note_answer(tie: &mut Option<Tie>) {
    if let Some(Tie::Tied(hold)) = tie {
        hold.answered = true;
    }
}

impl<R> Future for JobHandle<R> {
    type Output = Result<R, JobError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A reply is always sent, so only one that was taken is missing.
        assert!(
            !self.reply.is_terminated(),
            "a `JobHandle` was polled after it had resolved"
        );
        let answer = ready!(Pin::new(&mut self.reply).poll(cx));
        note_answer(&mut self.tie);
        Poll::Ready(answer)
    }
}

impl<R> fmt::Debug for JobHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.tie {
            _ if self.is_finished() => "finished",
            Some(Tie::Tied(hold)) if hold.ticket.is_some() => "waiting for room",
            _ => "accepted",
        };
        f.debug_tuple("JobHandle").field(&state).finish()
    }
}
