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
//! - `queue.len() + reserved <= capacity`, but for jobs that were given up.
//! - Somebody stands in line only while there is no room. So whoever finds room
//!   overtakes nobody, and room that is freed goes to the line first, under the
//!   same lock.
//! - `arrivals` says when the jobs of the queue were accepted, for all but the
//!   newest: those are timed by the loop when it looks, or lie behind one that is
//!   timed and that they would share a batch with.
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

use tokio::time::Instant;

use crate::error::{Closed, ShutdownTimeout};
use crate::job::{PendingJob, Place, Receipt, Reply, Ticket, send_all, total_weight};
use crate::panics::{discard, guard};
use crate::recent::Recent;
use crate::report::Stats;

pub(crate) use claim::Claim;
use line::{Line, Waiting};

pub(crate) struct Intake<J, R> {
    /// Of the micro-batcher, for what it says in `tracing`.
    name: Option<Arc<str>>,
    capacity: usize,
    /// Jobs whose handles are dropped leave the queue.
    cancel_on_drop: bool,
    /// The storage is a user's own, and may put the last first.
    chooses: bool,
    state: Aligned<Mutex<State<J, R>>>,
    /// Set before the end where a stop ran out of time.
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
    /// How many jobs of the queue were given up.
    given_up: usize,
    /// Jobs that were given up in the loop's hands.
    departed: Vec<Arc<Place>>,
    /// A new era begins when all jobs in the loop's hands are lost and counted as
    /// such.
    era: u64,
    /// How many jobs of the queue were accepted when, first to last.
    arrivals: VecDeque<(Instant, usize)>,
    /// The sum of those.
    timed: usize,
    /// How many jobs of the queue a flush still waits for that the loop has heard
    /// of, now and when it last looked.
    meant: (usize, usize),
    /// As many queued jobs may go together.
    stride: usize,
    /// Any job may become the first of its batch by others' being given up.
    times_each: bool,
    recent: Recent,
    /// The loop has to see about its cancellation.
    nudged: bool,
    /// The loop has ended, or will never run.
    ended: bool,
    /// It has, and everything is answered.
    over: bool,
    /// Who waits for that.
    drained: Vec<Reply<()>>,
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
    /// Whom to tell, if anybody.
    done: Option<Reply<()>>,
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
    /// Jobs that a flush, heard of earlier, no longer waits for.
    pub(crate) passed: usize,
    /// The most jobs that were queued lately.
    pub(crate) most: usize,
    /// Where flushes were requested, how many jobs at the front of the queue
    /// they mean.
    pub(crate) flush: Option<usize>,
}

pub(crate) enum Refusal {
    Full,
    Closed,
}

impl<J, R> Intake<J, R> {
    pub(crate) fn new(
        name: Option<Arc<str>>,
        capacity: usize,
        cancel_on_drop: bool,
        chooses: bool,
    ) -> Self {
        Self {
            name,
            capacity,
            cancel_on_drop,
            chooses,
            state: Aligned(Mutex::new(State {
                queue: VecDeque::new(),
                reserved: 0,
                alarm: usize::MAX,
                closed: false,
                queue_weight: 0,
                line: Line::default(),
                given_up: 0,
                departed: Vec::new(),
                era: 0,
                arrivals: VecDeque::new(),
                timed: 0,
                meant: (0, 0),
                stride: 1,
                times_each: cancel_on_drop,
                recent: Recent::default(),
                nudged: false,
                ended: false,
                over: false,
                drained: Vec::new(),
                flushes: Vec::new(),
                finished: Vec::new(),
                asleep: None,
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
        waker.into_iter().for_each(wake);
        Ok(())
    }

    /// Puts the job into the queue if there is room, or else in line, and returns
    /// its ticket.
    pub(crate) fn push(&self, job: PendingJob<J, R>) -> Result<Option<Ticket>, Closed> {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            job.refuse(self.name());
            return Err(Closed);
        }
        if !state.has_room(self.capacity) {
            return Ok(Some(state.line.join(Waiting::Job(job, None))));
        }
        let waker = state.enqueue(job, self.capacity);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(None)
    }

    /// Asks for a flush of all that was accepted so far.
    pub(crate) fn flush(&self, done: Reply<()>) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        let waker = state.request(Some(done));
        drop(state);
        waker.into_iter().for_each(wake);
    }

    /// Asks for a flush if so many accepted jobs, or more, wait for their batch:
    /// a caller with so many jobs on their way submits no more before it has
    /// results, which come by themselves unless all of its jobs wait; or the first
    /// of them does, which a storage of the user's may keep back while it gives
    /// others. Returns whether it asked.
    pub(crate) fn flush_if_all_wait(&self, jobs: usize) -> bool {
        let mut state = self.lock();
        let waiting = state.stats.pending + state.queued();
        let needed = if self.chooses { 1 } else { jobs };
        if state.ended || waiting < needed {
            return false;
        }
        let waker = state.request(None);
        drop(state);
        waker.into_iter().for_each(wake);
        true
    }

    /// Closes the intake: nothing is accepted any more, and all that wait for
    /// room are refused.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if mem::replace(&mut state.closed, true) {
            return;
        }
        let line = state.line.close();
        let waker = state.rouse();
        drop(state);
        // The loop first, whatever the jobs' drops do.
        waker.into_iter().for_each(wake);
        for waiting in line {
            let waker = match waiting {
                Waiting::Job(job, waker) => {
                    job.refuse(self.name());
                    waker
                }
                Waiting::Reservation(waker) => waker,
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
            waiting: state.line.len(),
            accepted: state.stats.accepted + state.queued() as u64,
            ..state.stats
        }
    }

    /// Waits until the loop has ended.
    pub(crate) async fn drained(&self) -> Result<(), ShutdownTimeout> {
        if let Some(receipt) = self.await_end() {
            // Whatever it says, it is over.
            let _ = receipt.accepted().await;
        }
        self.timeout.get().map_or(Ok(()), |timeout| Err(*timeout))
    }

    /// Returns what is answered at the end, unless that was before.
    fn await_end(&self) -> Option<Receipt<()>> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        let (reply, receipt) = Reply::new();
        state.drained.retain(|reply| !reply.is_unwanted());
        state.drained.push(reply);
        Some(receipt)
    }

    // What the loop does.

    /// Takes up to `room` jobs out of the queue, lets the line move up, and
    /// says what else has happened. When the jobs were accepted is added to
    /// `arrivals`. Requests to flush are added to `flushing`; they stay where they
    /// are while the loop is busy with earlier ones.
    pub(crate) fn look(
        &self,
        now: Instant,
        room: usize,
        flushing: Option<&mut Vec<Reply<()>>>,
        inbox: &mut VecDeque<PendingJob<J, R>>,
        arrivals: &mut Vec<(Instant, usize)>,
        finished: &mut Vec<u64>,
    ) -> News {
        let mut state = self.lock();
        let asleep = state.rouse();
        mem::swap(&mut state.finished, finished);
        let queued = state.queue.len();
        state.recent.note(queued);
        state.note_arrivals(now);
        let heard = flushing.and_then(|flushing| {
            let ahead = state.flushes.last()?.ahead;
            flushing.extend(state.flushes.drain(..).filter_map(|flush| flush.done));
            state.meant = (ahead, ahead);
            Some(ahead)
        });
        // A stop flushes all there is.
        let meant = heard.filter(|_| !state.closed).unwrap_or(usize::MAX);
        let mut room = room.min(meant);
        let mut bound = usize::MAX;
        if room <= state.meant.1 {
            // No more than a flush means, of which some may have been given up.
            bound = state.meant.0;
            room = room.min(bound);
        }
        let taken = state.take(room, bound, inbox, arrivals);
        if self.cancel_on_drop {
            inbox.iter().for_each(|job| job.take_up(state.era));
        }
        state.stats.accepted += inbox.len() as u64;
        state.stats.pending += inbox.len();
        let wakers = state.move_up(self.capacity);
        let (meant, told) = state.meant;
        state.meant = (meant, meant);
        let news = News {
            closed: state.closed,
            nudged: mem::take(&mut state.nudged),
            taken: inbox.len(),
            weight: taken.weight,
            passed: told - meant,
            flush: heard.map(|_| meant),
            queued: state.queue.len(),
            most: state.recent.most(),
        };
        drop(state);
        discard(asleep, None);
        wakers.into_iter().for_each(wake);
        discard(taken.given_up, self.name());
        news
    }

    /// Takes what is known of jobs that were given up in the loop's hands.
    pub(crate) fn departed(&self) -> Vec<Arc<Place>> {
        mem::take(&mut self.lock().departed)
    }

    /// Counts all jobs in the loop's hands as lost, and returns how many.
    pub(crate) fn lose_all(&self) -> usize {
        let mut state = self.lock();
        state.era += 1;
        state.departed.clear();
        let lost = mem::take(&mut state.stats.pending);
        state.stats.abandoned += lost as u64;
        lost
    }

    pub(crate) fn has_departed(&self) -> bool {
        !self.lock().departed.is_empty()
    }

    /// Waits until there is news, or as many jobs as the loop `wants`. Of the
    /// jobs that are queued up, `stride` may go together.
    pub(crate) async fn changed(&self, known: Known, wants: Option<Wants>, stride: usize) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let mut state = self.lock();
            if !state.finished.is_empty()
                || (!known.flushing && !state.flushes.is_empty())
                || (state.closed && !known.closed)
                || state.nudged
                || !state.departed.is_empty()
                || state.satisfies(wants, self.capacity)
            {
                drop(state);
                discard([waker], None);
                return Poll::Ready(());
            }
            let last = state.asleep.replace((waker, wants));
            state.stride = stride;
            state.alarm = match wants {
                // A job may become the first of its batch by others' going.
                _ if self.cancel_on_drop => 0,
                Some(wants) => wants.jobs.min(self.capacity - state.reserved),
                None => state.next_first(),
            };
            drop(state);
            discard(last, None);
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
        waker.into_iter().for_each(wake);
    }

    /// Notes that a batch has ended.
    pub(crate) fn finished(&self, batch: u64) {
        let mut state = self.lock();
        state.finished.push(batch);
        let waker = state.rouse();
        drop(state);
        waker.into_iter().for_each(wake);
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
        let abandoned = queue.len() - mem::take(&mut state.given_up);
        queue.iter().for_each(PendingJob::leave_queue);
        state.arrivals = VecDeque::new();
        state.timed = 0;
        state.queue_weight = 0;
        state.stats.accepted += abandoned as u64;
        state.stats.abandoned += abandoned as u64;
        drop(state);
        discard(queue, self.name());
        drop(flushes);
        abandoned
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Tells everybody that the loop has ended and everything is answered.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        let drained = mem::take(&mut state.drained);
        drop(state);
        send_all(drained.into_iter().map(|reply| (reply, Ok(()))));
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

/// Wakes a task, whose waker is users' code where their executor polls it.
fn wake(waker: Waker) {
    let _ = guard(|| waker.wake());
}

/// What was taken out of the queue, besides the jobs for the loop.
struct Taken<J, R> {
    weight: u128,
    given_up: Vec<PendingJob<J, R>>,
}

impl<J, R> State<J, R> {
    /// How many jobs wait in the queue.
    fn queued(&self) -> usize {
        self.queue.len() - self.given_up
    }

    fn has_room(&self, capacity: usize) -> bool {
        self.queued() + self.reserved < capacity
    }

    /// Appends the job, for which there is room, and returns whom to wake.
    #[inline]
    fn enqueue(&mut self, job: PendingJob<J, R>, capacity: usize) -> Option<Waker> {
        self.accept(job);
        if self.queue.len() < self.alarm {
            return None;
        }
        self.look_closer(capacity)
    }

    /// Notes a request to flush what is queued, and returns whom to wake.
    fn request(&mut self, done: Option<Reply<()>>) -> Option<Waker> {
        let ahead = self.queue.len();
        self.flushes.push(Flush { ahead, done });
        self.rouse()
    }

    /// Puts the job into the queue. It is counted when it leaves.
    #[inline]
    fn accept(&mut self, job: PendingJob<J, R>) {
        job.enter_queue();
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
            self.queued() >= wants.jobs
                || (self.queued() > 0
                    && (self.queue_weight >= wants.weight as u128 || !self.has_room(capacity)))
        })
    }

    /// Wakes the loop for what is queued now, or notes when it was accepted.
    #[inline(never)]
    fn look_closer(&mut self, capacity: usize) -> Option<Waker> {
        let wants = self.asleep.as_ref()?.1;
        if self.satisfies(wants, capacity) {
            // The loop times the newest job, which woke it.
            self.time_all_but(1);
            self.alarm = usize::MAX;
            return self.asleep.take().map(|(waker, _)| waker);
        }
        if wants.is_none() || self.times_each {
            self.time_all_but(1);
            self.note_arrivals(Instant::now());
        }
        if wants.is_none() && self.alarm > 0 {
            self.alarm = self.next_first();
        }
        None
    }

    /// With how many jobs the queue holds one more that is the first of its
    /// batch, while nothing is taken out.
    fn next_first(&self) -> usize {
        let batches = self.queue.len().div_ceil(self.stride);
        batches.saturating_mul(self.stride).saturating_add(1)
    }

    /// Times the newest jobs of the queue but for the last, as far as they are not:
    /// they go with one that is.
    fn time_all_but(&mut self, last: usize) {
        if let Some((_, count)) = self.arrivals.back_mut() {
            let untimed = self.queue.len() - self.timed;
            let before = untimed.saturating_sub(last);
            *count += before;
            self.timed += before;
        }
    }

    /// Notes that the newest jobs of the queue were accepted at that time, as far
    /// as they are not timed.
    fn note_arrivals(&mut self, time: Instant) {
        let count = self.queue.len() - self.timed;
        if count == 0 {
            return;
        }
        self.timed += count;
        match self.arrivals.back_mut() {
            Some((last, jobs)) if *last >= time => *jobs += count,
            _ => self.arrivals.push_back((time, count)),
        }
    }

    fn rouse(&mut self) -> Option<Waker> {
        self.alarm = usize::MAX;
        if self.asleep.is_some() {
            self.time_all_but(0);
        }
        self.asleep.take().map(|(waker, _)| waker)
    }

    /// Moves up to `room` jobs of the first `bound` into the inbox, which is empty.
    fn take(
        &mut self,
        room: usize,
        bound: usize,
        inbox: &mut VecDeque<PendingJob<J, R>>,
        arrivals: &mut Vec<(Instant, usize)>,
    ) -> Taken<J, R> {
        let mut given_up = Vec::new();
        let weight;
        let passed;
        if self.given_up > 0 {
            passed = self.take_some(room, bound, inbox, arrivals, &mut given_up);
            weight = total_weight(&*inbox);
            self.queue_weight -= weight;
        } else if room >= self.queue.len() {
            mem::swap(&mut self.queue, inbox);
            passed = inbox.len();
            weight = mem::take(&mut self.queue_weight);
            arrivals.extend(self.arrivals.drain(..));
            self.timed = 0;
        } else {
            inbox.extend(self.queue.drain(..room));
            passed = room;
            weight = total_weight(&*inbox);
            self.queue_weight -= weight;
            self.take_arrivals(room, arrivals);
        }
        self.recent.trim(&mut self.queue);
        self.recent.trim(&mut self.arrivals);
        self.meant.0 = self.meant.0.saturating_sub(passed);
        for flush in &mut self.flushes {
            flush.ahead = flush.ahead.saturating_sub(passed);
        }
        Taken { weight, given_up }
    }

    /// Takes jobs out one by one, and leaves out those that were given up.
    /// Returns how many left the queue.
    fn take_some(
        &mut self,
        room: usize,
        bound: usize,
        inbox: &mut VecDeque<PendingJob<J, R>>,
        arrivals: &mut Vec<(Instant, usize)>,
        given_up: &mut Vec<PendingJob<J, R>>,
    ) -> usize {
        let mut passed = 0;
        let mut dropped = Vec::new();
        while inbox.len() < room && passed < bound {
            let Some(job) = self.queue.pop_front() else {
                break;
            };
            passed += 1;
            if job.is_given_up() {
                self.given_up -= 1;
                given_up.push(job);
                self.take_arrivals(1, &mut dropped);
            } else {
                inbox.push_back(job);
                self.take_arrivals(1, arrivals);
            }
        }
        passed
    }

    /// Takes out when the first so many jobs of the queue were accepted.
    fn take_arrivals(&mut self, mut jobs: usize, arrivals: &mut Vec<(Instant, usize)>) {
        self.timed -= jobs;
        while let Some((time, count)) = self.arrivals.front_mut().filter(|_| jobs > 0) {
            let of_these = jobs.min(*count);
            match arrivals.last_mut() {
                Some((last, taken)) if last == time => *taken += of_these,
                _ => arrivals.push((*time, of_these)),
            }
            *count -= of_these;
            jobs -= of_these;
            if *count == 0 {
                self.arrivals.pop_front();
            }
        }
    }

    /// Removes the jobs that were given up, once they are the greater part of the
    /// queue, and returns them.
    fn sweep(&mut self) -> Vec<PendingJob<J, R>> {
        if self.given_up == 0 || self.given_up < self.queue.len() - self.given_up {
            return Vec::new();
        }
        let mut given_up = Vec::with_capacity(mem::take(&mut self.given_up));
        let mut gone = Vec::with_capacity(given_up.capacity());
        let mut kept = VecDeque::with_capacity(self.queue.len() - given_up.capacity());
        for (at, job) in mem::take(&mut self.queue).into_iter().enumerate() {
            if job.is_given_up() {
                gone.push(at);
                given_up.push(job);
            } else {
                kept.push_back(job);
            }
        }
        self.queue = kept;
        let kept_before = |at: usize| at - gone.partition_point(|gone| *gone < at);
        self.meant.0 = kept_before(self.meant.0);
        for flush in &mut self.flushes {
            flush.ahead = kept_before(flush.ahead);
        }
        let mut end = 0;
        let mut timed = 0;
        self.arrivals.retain_mut(|(_, count)| {
            end += *count;
            *count = kept_before(end) - timed;
            timed += *count;
            *count > 0
        });
        self.timed = timed;
        given_up
    }

    /// Lets the line into the room there is and returns whom to wake.
    fn move_up(&mut self, capacity: usize) -> Vec<Waker> {
        let mut wakers = Vec::new();
        if self.line.len() > 0 && self.has_room(capacity) {
            let now = Instant::now();
            self.note_arrivals(now);
            while self.has_room(capacity) {
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
                };
                wakers.extend(waker);
            }
            self.note_arrivals(now);
        }
        wakers.extend(self.look_closer(capacity));
        wakers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_queue_leaves_no_memory() {
        let intake = Intake::<u64, ()>::new(None, usize::MAX, false, false);
        let push = |count| {
            for job in 0..count {
                assert!(matches!(intake.push(PendingJob::new(job, 0).0), Ok(None)));
            }
        };
        let look = |room| {
            let (mut inbox, mut arrivals) = (VecDeque::new(), Vec::new());
            let (now, mut finished) = (Instant::now(), Vec::new());
            let news = intake.look(now, room, None, &mut inbox, &mut arrivals, &mut finished);
            let times: usize = arrivals.iter().map(|(_, count)| count).sum();
            assert_eq!(times, news.taken);
            news.taken
        };
        push(100_000);
        while look(1000) > 0 {}
        for _ in 0..10 {
            push(10);
            assert_eq!(look(1000), 10);
        }
        assert!(intake.lock().queue.capacity() < 200);
    }
}
