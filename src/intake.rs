//! The bounded queue between callers and the loop, with the line of those who
//! wait for room, and the loop's one place to hear of anything.
//!
//! It is a queue under a lock that is held for a few moves and never across an
//! await or a call of anybody's code, as the clone and the drop of a waker are.
//! Against a channel with a semaphore this saves the cost of a permit per job,
//! lets the loop take a whole batch at once and sleep until there is one, and lets
//! it move waiting jobs into the queue by itself, without waking their callers
//! first.
//!
//! # Invariants
//!
//! - `queue.len() + reserved <= capacity`.
//! - Somebody stands in line only while there is no room. So whoever finds room
//!   overtakes nobody, and room that is freed goes to the line first, under the
//!   same lock.
//! - Once `closed`, nothing enters the queue and nobody stands in line.
//! - A waker of the loop is stored only while nothing that it waits for has
//!   happened; who makes such a thing happen takes the waker and wakes it after
//!   the lock is released. So no wake-up is lost and none is sent twice.

mod claim;
mod line;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use tokio_util::sync::CancellationToken;

use crate::error::{Closed, ShutdownTimeout};
use crate::job::{PendingJob, Reply, Ticket, total_weight};
use crate::panics::discard;
use crate::report::Stats;

pub(crate) use claim::Claim;
use line::{Line, Waiting};

pub(crate) struct Intake<J, R> {
    /// Of the micro-batcher, for what it says in `tracing`.
    name: Option<Arc<str>>,
    capacity: usize,
    state: Aligned<Mutex<State<J, R>>>,
    /// Cancelled when the loop has ended and everything is answered.
    pub(crate) ended: CancellationToken,
    /// Set before `ended` where a stop ran out of time.
    timeout: OnceLock<ShutdownTimeout>,
}

/// Shares its first cache line with nothing, nor the next one, which some
/// processors fetch with it.
#[repr(align(128))]
struct Aligned<T>(T);

/// What every submission touches comes first, and so is on one cache line with
/// the lock: threads that submit take it from each other, which takes longer
/// than all that they do under the lock.
#[repr(C)]
struct State<J, R> {
    queue: VecDeque<PendingJob<J, R>>,
    /// Room held by permits.
    reserved: usize,
    /// With how many queued jobs the loop may have to be woken. With fewer it
    /// need not be; zero has each look for itself.
    alarm: usize,
    closed: bool,
    queue_weight: u128,
    line: Line<J, R>,
    /// The loop has to see about its cancellation.
    nudged: bool,
    /// The loop has ended, or will never run.
    ended: bool,
    flushes: Vec<Flush>,
    /// Numbers of the batches that have ended since the loop last looked.
    finished: Vec<u64>,
    /// What the loop waits for, while it does.
    asleep: Option<(Waker, Option<Wants>)>,
    stats: Stats,
}

/// How many queued jobs (at least one), or how much of their weight, would let
/// the loop do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) jobs: usize,
    pub(crate) weight: usize,
}

/// A request to flush all that was accepted before it.
struct Flush {
    /// How many of the jobs in the queue are meant, counted from its front.
    ahead: usize,
    done: Reply<()>,
}

/// What has happened since the loop last looked.
pub(crate) struct News {
    /// The intake was closed, perhaps long ago.
    pub(crate) closed: bool,
    /// There is a cancellation to see about.
    pub(crate) nudged: bool,
    /// Jobs left in the queue.
    pub(crate) queued: usize,
    /// Jobs that moved into the inbox, and their weight.
    pub(crate) taken: usize,
    pub(crate) weight: u128,
    /// Where flushes were requested, how many jobs at the front of the queue
    /// they mean.
    pub(crate) flush: Option<usize>,
}

pub(crate) enum Refusal {
    Full,
    Closed,
}

impl<J, R> Intake<J, R> {
    pub(crate) fn new(name: Option<Arc<str>>, capacity: usize) -> Self {
        Self {
            name,
            capacity,
            state: Aligned(Mutex::new(State {
                queue: VecDeque::new(),
                reserved: 0,
                alarm: usize::MAX,
                closed: false,
                queue_weight: 0,
                line: Line::default(),
                nudged: false,
                ended: false,
                flushes: Vec::new(),
                finished: Vec::new(),
                asleep: None,
                stats: Stats::default(),
            })),
            ended: CancellationToken::new(),
            timeout: OnceLock::new(),
        }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        // Nothing that can panic runs under the lock.
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What callers do.

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
        let waker = state.enqueue(job, self.capacity);
        drop(state);
        wake(waker);
        Ok(())
    }

    /// Puts the job into the queue if there is room, or keeps it and returns the
    /// ticket by which it may stand in line.
    pub(crate) fn push(&self, job: PendingJob<J, R>) -> Result<Option<Ticket>, Closed> {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            job.refuse(self.name());
            return Err(Closed);
        }
        if !state.has_room(self.capacity) {
            return Ok(Some(state.line.admit(Waiting::Job(job, None))));
        }
        let waker = state.enqueue(job, self.capacity);
        drop(state);
        wake(waker);
        Ok(None)
    }

    /// Asks for a flush of all that was accepted so far.
    pub(crate) fn flush(&self, done: Reply<()>) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        let ahead = state.queue.len();
        state.flushes.push(Flush { ahead, done });
        let waker = state.rouse();
        drop(state);
        wake(waker);
    }

    /// Closes the intake: nothing is accepted any more, and all that wait for
    /// room are refused.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if mem::replace(&mut state.closed, true) {
            return;
        }
        let line = state.line.refuse_all();
        let waker = state.rouse();
        drop(state);
        // The loop first, whatever the jobs' drops do.
        wake(waker);
        for waiting in line {
            match waiting {
                Waiting::Job(job, waker) => {
                    job.refuse(self.name());
                    wake(waker);
                }
                Waiting::Reservation(waker) => wake(waker),
                Waiting::Refused | Waiting::Nobody => {}
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            queued: state.queue.len(),
            waiting: state.line.len(),
            accepted: state.stats.accepted + state.queue.len() as u64,
            ..state.stats
        }
    }

    /// Waits until the loop has ended.
    pub(crate) async fn drained(&self) -> Result<(), ShutdownTimeout> {
        self.ended.cancelled().await;
        self.timeout.get().map_or(Ok(()), |timeout| Err(*timeout))
    }

    // What the loop does.

    /// Takes up to `room` jobs out of the queue, lets the line move up, and
    /// says what else has happened. Requests to flush are added to `flushing`;
    /// they stay where they are while the loop is busy with earlier ones.
    pub(crate) fn look(
        &self,
        room: usize,
        flushing: Option<&mut Vec<Reply<()>>>,
        inbox: &mut VecDeque<PendingJob<J, R>>,
        finished: &mut Vec<u64>,
    ) -> News {
        let mut state = self.lock();
        let asleep = state.rouse();
        mem::swap(&mut state.finished, finished);
        let flush = flushing.and_then(|flushing| {
            let ahead = state.flushes.last()?.ahead;
            flushing.extend(state.flushes.drain(..).map(|flush| flush.done));
            Some(ahead)
        });
        // A stop flushes all there is.
        let meant = flush.filter(|_| !state.closed).unwrap_or(usize::MAX);
        let (taken, weight) = state.take(room.min(meant), inbox);
        for flush in &mut state.flushes {
            flush.ahead = flush.ahead.saturating_sub(taken);
        }
        state.stats.accepted += taken as u64;
        state.stats.pending += taken;
        let wakers = state.move_up(self.capacity);
        let news = News {
            closed: state.closed,
            nudged: mem::take(&mut state.nudged),
            taken,
            weight,
            flush: flush.map(|ahead| ahead.saturating_sub(taken)),
            queued: state.queue.len(),
        };
        drop(state);
        drop(asleep);
        wakers.into_iter().for_each(Waker::wake);
        news
    }

    /// Waits until there is news, or as many jobs as the loop `wants`.
    pub(crate) async fn changed(&self, known: Known, wants: Option<Wants>) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let mut state = self.lock();
            if !state.finished.is_empty()
                || (!known.flushing && !state.flushes.is_empty())
                || (state.closed && !known.closed)
                || state.nudged
                || state.satisfies(wants, self.capacity)
            {
                return Poll::Ready(());
            }
            let last = state.asleep.replace((waker, wants));
            let room = self.capacity - state.reserved;
            state.alarm = wants.map_or(usize::MAX, |wants| wants.jobs.min(room));
            drop(state);
            drop(last);
            Poll::Pending
        })
        .await;
    }

    /// Has the loop see about its cancellation.
    pub(crate) fn nudge(&self) {
        let mut state = self.lock();
        state.nudged = true;
        let waker = state.rouse();
        drop(state);
        wake(waker);
    }

    /// Notes that a batch has ended.
    pub(crate) fn finished(&self, batch: u64) {
        let mut state = self.lock();
        state.finished.push(batch);
        let waker = state.rouse();
        drop(state);
        wake(waker);
    }

    /// Keeps the counters.
    pub(crate) fn count(&self, count: impl FnOnce(&mut Stats)) {
        count(&mut self.lock().stats);
    }

    /// Gives up what is left, because nobody will look any more, and says how
    /// many jobs that were.
    pub(crate) fn abandon(&self) -> usize {
        self.close();
        let mut state = self.lock();
        state.ended = true;
        let queue = mem::take(&mut state.queue);
        let flushes = mem::take(&mut state.flushes);
        let abandoned = queue.len();
        state.stats.accepted += abandoned as u64;
        state.stats.abandoned += abandoned as u64;
        drop(state);
        discard(queue, self.name());
        drop(flushes);
        abandoned
    }

    pub(crate) fn time_out(&self, timeout: ShutdownTimeout) {
        // The loop ends once, so nobody was here before.
        let _ = self.timeout.set(timeout);
    }
}

/// What the loop has heard of already and need not be woken for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) closed: bool,
    pub(crate) flushing: bool,
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<J, R> State<J, R> {
    fn has_room(&self, capacity: usize) -> bool {
        self.queue.len() + self.reserved < capacity
    }

    /// Appends the job, for which there is room, and returns whom to wake.
    #[inline]
    fn enqueue(&mut self, job: PendingJob<J, R>, capacity: usize) -> Option<Waker> {
        self.accept(job);
        if self.queue.len() < self.alarm {
            return None;
        }
        self.rouse_if_satisfied(capacity)
    }

    /// Puts the job into the queue. It is counted when it leaves.
    #[inline]
    fn accept(&mut self, job: PendingJob<J, R>) {
        if job.weight() > 0 {
            self.queue_weight += job.weight() as u128;
            self.alarm = 0;
        }
        self.queue.push_back(job);
    }

    /// Puts room aside for a permit.
    fn reserve(&mut self) {
        self.reserved += 1;
        self.alarm = 0;
    }

    /// Whether the queue holds what the loop wants, or all that it can hold.
    fn satisfies(&self, wants: Option<Wants>, capacity: usize) -> bool {
        wants.is_some_and(|wants| {
            self.queue.len() >= wants.jobs
                || (!self.queue.is_empty()
                    && (self.queue_weight >= wants.weight as u128 || !self.has_room(capacity)))
        })
    }

    #[inline(never)]
    fn rouse_if_satisfied(&mut self, capacity: usize) -> Option<Waker> {
        let (_, wants) = self.asleep.as_ref()?;
        if self.satisfies(*wants, capacity) {
            self.rouse()
        } else {
            None
        }
    }

    fn rouse(&mut self) -> Option<Waker> {
        self.alarm = usize::MAX;
        self.asleep.take().map(|(waker, _)| waker)
    }

    /// Moves up to `room` jobs into the inbox, which is empty, and returns how
    /// many, with their weight.
    fn take(&mut self, room: usize, inbox: &mut VecDeque<PendingJob<J, R>>) -> (usize, u128) {
        if room >= self.queue.len() {
            mem::swap(&mut self.queue, inbox);
            return (inbox.len(), mem::take(&mut self.queue_weight));
        }
        inbox.extend(self.queue.drain(..room));
        let weight = total_weight(&*inbox);
        self.queue_weight -= weight;
        (room, weight)
    }

    /// Lets the line into the room there is and returns whom to tell.
    fn move_up(&mut self, capacity: usize) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while self.line.len() > 0 && self.has_room(capacity) {
            let waker = match self.line.pop() {
                None => break,
                Some(Waiting::Job(job, waker)) => {
                    self.accept(job);
                    waker
                }
                Some(Waiting::Reservation(waker)) => {
                    self.reserve();
                    waker
                }
                Some(Waiting::Refused | Waiting::Nobody) => None,
            };
            if let Some(waker) = waker {
                wakers.push(waker);
            }
        }
        wakers.extend(self.rouse_if_satisfied(capacity));
        wakers
    }
}
