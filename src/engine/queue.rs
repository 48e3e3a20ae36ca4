//! The bounded queue between callers and the worker, and the one place where the
//! worker learns what has happened.
//!
//! A deque behind a mutex that is held for a few moves, never across an await and
//! never while foreign code runs (a waker's clone and drop are foreign code). Unlike
//! a channel with a semaphore it costs no permit per job, lets the worker take a
//! whole batch at once and sleep until there is one, and lets the worker move waiting
//! jobs into the queue without waking their callers first.
//!
//! # Invariants
//!
//! - `jobs.len() - withdrawn + reserved <= capacity`.
//! - There are waiters only while there is no room. So a caller that finds room
//!   overtakes no waiter, and freed room goes to the waiters first, under the same
//!   lock.
//! - Once `closed`, no job enters the queue and there are no waiters.
//! - The worker is parked only while nothing that it waits for has happened. A method
//!   that makes such a thing happen takes the worker's waker, and wakes it after the
//!   lock is released. So no wake-up is lost, and none is sent twice.

mod accept_times;
mod receive;
mod reservation;
mod waiters;
mod withdraw;

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use tokio::time::Instant;

use super::panics::catch;
use super::peak::RecentPeak;
use super::reply::{self, ReplySender, send_all};
use super::schedule::Wants;
use super::withdrawal::Withdrawal;
use crate::error::{Closed, ShutdownTimeout};
use crate::job::PendingJob;
use crate::report::Stats;

use accept_times::AcceptTimes;
pub(crate) use receive::{Inbox, Received, Seen};
pub(crate) use reservation::Reservation;
pub(crate) use waiters::WaiterId;
use waiters::{Waiter, Waiters};
pub(crate) use withdraw::JobQueue;

pub(crate) struct Queue<J, R> {
    /// The name of the micro-batcher, for `tracing`.
    name: Option<Arc<str>>,
    capacity: usize,
    cancel_on_drop: bool,
    custom_storage: bool,
    state: CacheAligned<Mutex<QueueState<J, R>>>,
    /// Set before the end if a stop ran out of time.
    timeout: OnceLock<ShutdownTimeout>,
}

/// Keeps other data off its first cache line and off the next one, which some
/// processors fetch together.
#[repr(align(128))]
struct CacheAligned<T>(T);

/// The fields that every submission touches come first, on one cache line with the
/// lock: moving that line between threads takes longer than all they do under the
/// lock.
#[repr(C)]
struct QueueState<J, R> {
    jobs: VecDeque<PendingJob<J, R>>,
    /// Room held by permits.
    reserved: usize,
    /// While `jobs` is shorter than this, a new job needs neither an accept time nor
    /// to wake the worker. Zero if every job does.
    check_at: usize,
    closed: bool,
    weight: u128,
    waiters: Waiters<J, R>,
    /// How many of `jobs` are withdrawn.
    withdrawn: usize,
    /// Pending jobs that were withdrawn since the worker last asked.
    withdrawn_pending: Vec<Arc<Withdrawal>>,
    /// A new generation begins when all pending jobs are abandoned.
    generation: u64,
    accept_times: AcceptTimes,
    /// The flush that the worker carries out.
    current_flush: FlushTarget,
    /// How many consecutive jobs certainly share a batch; see
    /// [`Schedule::stride`](super::schedule::Schedule::stride).
    stride: usize,
    /// Every job needs its accept time, because it may become the first of its batch
    /// when those before it are withdrawn.
    time_each: bool,
    peak: RecentPeak,
    /// The worker must poll its cancellation token.
    cancel_woken: bool,
    /// The worker has ended, or will never run. Nothing is flushed any more.
    abandoned: bool,
    /// The worker has ended and every job has its reply.
    ended: bool,
    end_waiters: Vec<ReplySender<()>>,
    flush_requests: Vec<FlushRequest>,
    /// Numbers of the batches that have ended since the worker last received.
    finished_batches: Vec<u64>,
    parked: Option<ParkedWorker>,
    stats: Stats,
}

/// The worker while it waits, with what to wake it for.
struct ParkedWorker {
    waker: Waker,
    wants: Option<Wants>,
}

/// A request to flush all jobs that were accepted before it.
struct FlushRequest {
    /// How many jobs at the front of the queue it covers.
    ahead: usize,
    /// The caller of `flush`; `None` if a stream asks.
    reply: Option<ReplySender<()>>,
}

/// How many jobs at the front of the queue the current flush covers.
#[derive(Default)]
struct FlushTarget {
    ahead: usize,
    /// The value of `ahead` that the worker knows.
    reported: usize,
}

/// Why [`Queue::try_push`] refused a job.
pub(crate) enum Refusal {
    Full,
    Closed,
}

impl<J, R> Queue<J, R> {
    pub(crate) fn new(
        name: Option<Arc<str>>,
        capacity: usize,
        cancel_on_drop: bool,
        custom_storage: bool,
    ) -> Self {
        Self {
            name,
            capacity,
            cancel_on_drop,
            custom_storage,
            state: CacheAligned(Mutex::new(QueueState {
                jobs: VecDeque::new(),
                reserved: 0,
                check_at: usize::MAX,
                closed: false,
                weight: 0,
                waiters: Waiters::default(),
                withdrawn: 0,
                withdrawn_pending: Vec::new(),
                generation: 0,
                accept_times: AcceptTimes::default(),
                current_flush: FlushTarget::default(),
                stride: 1,
                time_each: cancel_on_drop,
                peak: RecentPeak::default(),
                cancel_woken: false,
                abandoned: false,
                ended: false,
                end_waiters: Vec::new(),
                flush_requests: Vec::new(),
                finished_batches: Vec::new(),
                parked: None,
                stats: Stats::default(),
            })),
            timeout: OnceLock::new(),
        }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(crate) fn cancels_on_drop(&self) -> bool {
        self.cancel_on_drop
    }

    fn lock(&self) -> MutexGuard<'_, QueueState<J, R>> {
        // Nothing that can panic runs under the lock.
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the job into the queue if there is room.
    pub(crate) fn try_push(
        &self,
        job: PendingJob<J, R>,
    ) -> Result<(), (Refusal, PendingJob<J, R>)> {
        let mut state = self.lock();
        if state.closed {
            return Err((Refusal::Closed, job));
        }
        if !state.has_room(self.capacity) {
            return Err((Refusal::Full, job));
        }
        let waker = state.push(job, self.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(())
    }

    /// Puts the job into the queue if there is room, or else among the waiters, and
    /// returns its id there.
    pub(crate) fn push(&self, job: PendingJob<J, R>) -> Result<Option<WaiterId>, Closed> {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            job.refuse(self.name());
            return Err(Closed);
        }
        if !state.has_room(self.capacity) {
            return Ok(Some(state.waiters.push(Waiter::Job(job, None))));
        }
        let waker = state.push(job, self.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(None)
    }

    /// Requests a flush of all jobs that were accepted so far.
    pub(crate) fn flush(&self, reply: ReplySender<()>) {
        let mut state = self.lock();
        if state.abandoned {
            return;
        }
        let waker = state.request_flush(Some(reply));
        drop(state);
        waker.into_iter().for_each(wake);
    }

    /// Requests a flush if at least this many accepted jobs wait for their batch, and
    /// returns whether it did.
    ///
    /// For a caller that has submitted this many jobs and submits no more before it has
    /// a result. If fewer wait, one of them is in a batch, and its result will come. A
    /// storage of the user's may keep back the one job whose result the caller needs
    /// next, so with one any waiting job is enough.
    pub(crate) fn flush_if_all_wait(&self, jobs: usize) -> bool {
        let mut state = self.lock();
        let waiting = state.stats.pending + state.queued();
        let needed = if self.custom_storage { 1 } else { jobs };
        if state.abandoned || waiting < needed {
            return false;
        }
        let waker = state.request_flush(None);
        drop(state);
        waker.into_iter().for_each(wake);
        true
    }

    /// Closes the queue: no more jobs are accepted, and all waiters are refused.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if mem::replace(&mut state.closed, true) {
            return;
        }
        let refused = state.waiters.close();
        let waker = state.unpark();
        drop(state);
        // The worker first, whatever the drops of the jobs do.
        waker.into_iter().for_each(wake);
        for waiter in refused {
            let waker = match waiter {
                Waiter::Job(job, waker) => {
                    job.refuse(self.name());
                    waker
                }
                Waiter::Reservation(waker) => waker,
            };
            waker.into_iter().for_each(wake);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            queued: state.queued(),
            waiting: state.waiters.len(),
            accepted: state.stats.accepted + state.queued() as u64,
            ..state.stats
        }
    }

    /// Changes the counters; the methods of [`Stats`] are the transitions.
    pub(crate) fn count(&self, transition: impl FnOnce(&mut Stats)) {
        transition(&mut self.lock().stats);
    }

    /// Notes that a batch has ended.
    pub(crate) fn batch_finished(&self, number: u64) {
        let mut state = self.lock();
        state.finished_batches.push(number);
        let waker = state.unpark();
        drop(state);
        waker.into_iter().for_each(wake);
    }

    /// Has the worker poll its cancellation token.
    pub(crate) fn wake_for_cancel(&self) {
        let mut state = self.lock();
        state.cancel_woken = true;
        let waker = state.unpark();
        drop(state);
        waker.into_iter().for_each(wake);
    }

    /// Waits until the worker has ended and every job has its reply.
    pub(crate) async fn wait_for_end(&self) -> Result<(), ShutdownTimeout> {
        if let Some(ended) = self.end_receiver() {
            // A dropped sender means the end, too.
            let _ = ended.await;
        }
        self.timeout.get().map_or(Ok(()), |timeout| Err(*timeout))
    }

    fn end_receiver(&self) -> Option<reply::ReplyReceiver<()>> {
        let mut state = self.lock();
        if state.ended {
            return None;
        }
        let (sender, receiver) = reply::channel();
        state.end_waiters.retain(|waiter| !waiter.is_closed());
        state.end_waiters.push(sender);
        Some(receiver)
    }

    /// Notes that the worker has ended and every job has its reply.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let waiters = mem::take(&mut state.end_waiters);
        drop(state);
        send_all(waiters.into_iter().map(|sender| (sender, Ok(()))));
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Notes that a stop ran out of time.
    pub(crate) fn set_timeout(&self, timeout: ShutdownTimeout) {
        // A worker ends once, so it is not set yet.
        let _ = self.timeout.set(timeout);
    }
}

/// Wakes a task. The waker is foreign code if the task runs on another executor.
fn wake(waker: Waker) {
    let _ = catch(|| waker.wake());
}

impl<J, R> QueueState<J, R> {
    /// How many jobs are queued, without those that are withdrawn.
    fn queued(&self) -> usize {
        self.jobs.len() - self.withdrawn
    }

    fn has_room(&self, capacity: usize) -> bool {
        self.queued() + self.reserved < capacity
    }

    /// Accepts the job, for which there is room. Returns the worker's waker if the
    /// worker wants what is queued now.
    #[inline]
    fn push(&mut self, job: PendingJob<J, R>, capacity: usize) -> Option<Waker> {
        self.accept(job);
        if self.jobs.len() < self.check_at {
            return None;
        }
        self.check_worker(capacity)
    }

    /// Puts the job into the queue. `Stats` counts it when it leaves.
    #[inline]
    fn accept(&mut self, job: PendingJob<J, R>) {
        if let Some(withdrawal) = job.withdrawal() {
            withdrawal.set_queued();
        }
        if job.weight() > 0 {
            self.weight += job.weight() as u128;
            self.check_at = 0;
        }
        self.jobs.push_back(job);
    }

    /// Reserves room for a permit.
    fn reserve(&mut self) {
        self.reserved += 1;
        self.check_at = 0;
    }

    /// Requests a flush of what is queued, and returns the worker's waker.
    fn request_flush(&mut self, reply: Option<ReplySender<()>>) -> Option<Waker> {
        let ahead = self.jobs.len();
        self.flush_requests.push(FlushRequest { ahead, reply });
        self.unpark()
    }

    /// Moves waiters into the room there is, and returns the wakers to wake.
    fn admit_waiters(&mut self, capacity: usize) -> Vec<Waker> {
        let mut wakers = Vec::new();
        if self.waiters.len() > 0 && self.has_room(capacity) {
            let now = Instant::now();
            self.accept_times.record(self.jobs.len(), now);
            while self.has_room(capacity) {
                let waker = match self.waiters.pop() {
                    None => break,
                    Some(Waiter::Job(job, waker)) => {
                        self.accept(job);
                        waker
                    }
                    Some(Waiter::Reservation(waker)) => {
                        self.reserve();
                        waker
                    }
                };
                wakers.extend(waker);
            }
            self.accept_times.record(self.jobs.len(), now);
        }
        wakers.extend(self.check_worker(capacity));
        wakers
    }

    /// Takes the waker of the parked worker, which is to be woken once the lock is
    /// released.
    fn unpark(&mut self) -> Option<Waker> {
        let parked = self.parked.take();
        self.check_at = usize::MAX;
        if parked.is_some() {
            self.accept_times.extend_last(self.jobs.len());
        }
        parked.map(|parked| parked.waker)
    }

    /// Unparks the worker if it wants what is queued now. Otherwise records accept
    /// times as far as they are needed.
    #[inline(never)]
    fn check_worker(&mut self, capacity: usize) -> Option<Waker> {
        let wants = self.parked.as_ref()?.wants;
        // The newest job may be the first of its batch.
        let before_newest = self.jobs.len().saturating_sub(1);
        if self.satisfies(wants, capacity) {
            // The worker wakes at once, and records the time of the newest.
            self.accept_times.extend_last(before_newest);
            self.check_at = usize::MAX;
            return self.parked.take().map(|parked| parked.waker);
        }
        if wants.is_none() || self.time_each {
            self.accept_times.extend_last(before_newest);
            self.accept_times.record(self.jobs.len(), Instant::now());
        }
        if wants.is_none() && self.check_at > 0 {
            self.check_at = self.next_first();
        }
        None
    }

    /// Whether the queue holds what the worker wants, or all that it can hold.
    fn satisfies(&self, wants: Option<Wants>, capacity: usize) -> bool {
        wants.is_some_and(|wants| {
            self.queued() >= wants.jobs
                || (self.queued() > 0
                    && (self.weight >= wants.weight as u128 || !self.has_room(capacity)))
        })
    }

    /// The length at which the queue gets one more job that is the first of its batch,
    /// if nothing is taken out before.
    fn next_first(&self) -> usize {
        let batches = self.jobs.len().div_ceil(self.stride);
        batches.saturating_mul(self.stride).saturating_add(1)
    }
}
