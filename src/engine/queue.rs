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
//! - There are waiters only while there is no room, here or under the limit that is
//!   shared with other queues. So a caller that finds room overtakes no waiter, and freed
//!   room goes to the waiters first, under the same lock.
//! - Once `closed`, no job enters the queue and there are no waiters.
//! - The worker is parked only while nothing that it waits for has happened. A method
//!   that makes such a thing happen takes the worker's waker, and wakes it after the
//!   lock is released. So no wake-up is lost, and none is sent twice.

mod accept_times;
mod control;
mod receive;
#[cfg(feature = "metrics")]
mod record;
mod reservation;
mod shared_limit;
mod waiters;
mod withdraw;

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use tokio::time::Instant;

use super::panics::catch;
use super::peak::RecentPeak;
use super::reply::{self, ReplySender, send_all};
use super::schedule::Wants;
use super::withdrawal::Withdrawal;
use crate::error::{Closed, JobError, ShutdownTimeout};
use crate::job::PendingJob;
#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
use crate::report::Stats;
use crate::settings::Settings;

use accept_times::AcceptTimes;
pub(crate) use control::Control;
pub(crate) use receive::{Inbox, Received, Seen};
pub(crate) use reservation::Reservation;
use shared_limit::LimitMember;
pub(crate) use shared_limit::{LimitWaiter, SharedLimit};
pub(crate) use waiters::WaiterId;
use waiters::{Waiter, Waiters};
pub(crate) use withdraw::JobQueue;

pub(crate) struct Queue<J, R> {
    options: QueueOptions,
    /// That of the settings, for callers that weigh a job.
    max_batch_weight: AtomicUsize,
    shared_limit: Option<LimitMember>,
    state: CacheAligned<Mutex<QueueState<J, R>>>,
    /// Set before the end if a stop ran out of time.
    timeout: OnceLock<ShutdownTimeout>,
    #[cfg(feature = "metrics")]
    metrics: Metrics,
}

pub(crate) struct QueueOptions {
    /// The name of the micro-batcher, for `tracing`.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) capacity: usize,
    pub(crate) cancel_on_drop: bool,
    pub(crate) custom_storage: bool,
    /// Jobs have weights.
    pub(crate) weighs: bool,
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
    /// When the worker last received.
    received_at: Instant,
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
    control: Control,
    /// The worker has not received `control` since it changed.
    control_changed: bool,
    stats: Stats,
    refusals: Refusals,
}

/// The worker while it waits, with what to wake it for.
struct ParkedWorker {
    waker: Waker,
    wants: Option<Wants>,
}

/// Jobs that were never accepted, by the reason.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Refusals {
    pub(crate) full: u64,
    pub(crate) closed: u64,
    pub(crate) too_heavy: u64,
    /// The weight function panicked.
    pub(crate) panicked: u64,
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
    pub(crate) fn new(options: QueueOptions, settings: Settings) -> Self {
        let cancel_on_drop = options.cancel_on_drop;
        Self {
            #[cfg(feature = "metrics")]
            metrics: Metrics::new(options.name.as_deref()),
            options,
            max_batch_weight: AtomicUsize::new(settings.max_batch_weight),
            shared_limit: None,
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
                received_at: Instant::now(),
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
                control: Control {
                    settings,
                    paused: false,
                },
                control_changed: false,
                stats: Stats::default(),
                refusals: Refusals::default(),
            })),
            timeout: OnceLock::new(),
        }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.options.name.as_deref()
    }

    pub(crate) fn cancels_on_drop(&self) -> bool {
        self.options.cancel_on_drop
    }

    pub(crate) fn weighs(&self) -> bool {
        self.options.weighs
    }

    pub(crate) fn max_batch_weight(&self) -> usize {
        self.max_batch_weight.load(Ordering::Relaxed)
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
            state.refusals.closed += 1;
            return Err((Refusal::Closed, job));
        }
        if !state.has_room(self.options.capacity) || !self.take_shared_room(&state) {
            state.refusals.full += 1;
            return Err((Refusal::Full, job));
        }
        let waker = state.push(job, self.options.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(())
    }

    /// Puts the job into the queue if there is room, or else among the waiters, and
    /// returns its id there.
    pub(crate) fn push(&self, job: PendingJob<J, R>) -> Result<Option<WaiterId>, Closed> {
        self.push_or_wait(job, false)
    }

    /// Does the same on behalf of a waiter that has room under the shared limit. The job
    /// has used it if the result is `Ok(None)`.
    pub(crate) fn push_with_room(&self, job: PendingJob<J, R>) -> Result<Option<WaiterId>, Closed> {
        self.push_or_wait(job, true)
    }

    #[inline]
    fn push_or_wait(
        &self,
        job: PendingJob<J, R>,
        has_shared_room: bool,
    ) -> Result<Option<WaiterId>, Closed> {
        let mut state = self.lock();
        if state.closed {
            state.refusals.closed += 1;
            drop(state);
            job.refuse(self.name());
            return Err(Closed);
        }
        if !state.has_room(self.options.capacity) {
            return Ok(Some(self.wait(&mut state, job)));
        }
        if !has_shared_room && !self.take_shared_room(&state) {
            let id = self.wait(&mut state, job);
            // Has the first waiter wait for room under the shared limit.
            let wakers = self.admit_waiters(&mut state);
            drop(state);
            wakers.into_iter().for_each(wake);
            return Ok(Some(id));
        }
        let waker = state.push(job, self.options.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(None)
    }

    /// Puts the job among the waiters.
    fn wait(&self, state: &mut QueueState<J, R>, job: PendingJob<J, R>) -> WaiterId {
        let waiter = Waiter::Job(job, None);
        match &self.shared_limit {
            // In the order of all queues.
            Some(member) => state.waiters.push_as(member.limit.next_number(), waiter),
            None => state.waiters.push(waiter),
        }
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
        let needed = if self.options.custom_storage { 1 } else { jobs };
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
        let (refused, jobs) = state.waiters.close();
        state.refusals.closed += jobs as u64;
        // A stop ends a pause, which the worker knows.
        state.control.paused = false;
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
        self.lock().stats()
    }

    /// Changes the counters; the methods of [`Stats`] are the transitions.
    pub(crate) fn count(&self, transition: impl FnOnce(&mut Stats)) {
        let mut state = self.lock();
        let before = state.stats.pending;
        transition(&mut state.stats);
        let left = before - state.stats.pending;
        drop(state);
        self.release_shared_room(left);
    }

    /// Counts a job that is refused before it is pushed.
    pub(crate) fn count_refused(&self, error: &JobError) {
        let mut state = self.lock();
        match error {
            JobError::TooHeavy { .. } => state.refusals.too_heavy += 1,
            _ => state.refusals.panicked += 1,
        }
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
        #[cfg(feature = "metrics")]
        self.record_metrics();
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

impl<J, R> Queue<J, R> {
    /// Moves waiters into the room there is, and returns the wakers to wake.
    fn admit_waiters(&self, state: &mut QueueState<J, R>) -> Vec<Waker> {
        let mut wakers = Vec::new();
        if state.waiters.len() > 0 && state.has_room(self.options.capacity) {
            let now = Instant::now();
            state.accept_times.record(state.jobs.len(), now);
            while state.has_room(self.options.capacity) && self.take_room_of_waiter(state) {
                wakers.extend(state.admit_waiter());
            }
            state.accept_times.record(state.jobs.len(), now);
        }
        wakers.extend(state.check_worker(self.options.capacity));
        wakers
    }
}

/// Wakes a task. The waker is foreign code if the task runs on another executor.
fn wake(waker: Waker) {
    let _ = catch(|| waker.wake());
}

impl Refusals {
    fn total(&self) -> u64 {
        self.full + self.closed + self.too_heavy + self.panicked
    }
}

impl<J, R> QueueState<J, R> {
    fn stats(&self) -> Stats {
        Stats {
            queued: self.queued(),
            waiting: self.waiters.len(),
            accepted: self.stats.accepted + self.queued() as u64,
            refused: self.refusals.total(),
            ..self.stats
        }
    }

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

    /// Moves the first waiter into the queue, and returns its waker.
    fn admit_waiter(&mut self) -> Option<Waker> {
        match self.waiters.pop()? {
            Waiter::Job(job, waker) => {
                self.accept(job);
                waker
            }
            Waiter::Reservation(waker) => {
                self.reserve();
                waker
            }
        }
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
