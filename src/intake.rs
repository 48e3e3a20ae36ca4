//! The bounded queue between callers and the loop, with the line of those who
//! wait for room, and the loop's one place to hear of anything.
//!
//! It is a queue under a lock that is held for a few moves and never across an
//! await or a call of anybody's code. Against a channel with a semaphore this
//! saves the cost of a permit per job, lets the loop take a whole batch at
//! once and sleep until there is one, and lets it move waiting jobs into the
//! queue by itself, without waking their callers first.
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

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio_util::sync::CancellationToken;

use crate::error::{Closed, JobError, ShutdownTimeout};
use crate::job::{PendingJob, Place, Reply};
use crate::report::Stats;

pub(crate) struct Intake<J, R> {
    capacity: usize,
    state: Mutex<State<J, R>>,
    /// Cancelled when the loop has ended and everything is answered.
    pub(crate) ended: CancellationToken,
    /// Set before `ended` where a stop ran out of time.
    timeout: OnceLock<ShutdownTimeout>,
}

struct State<J, R> {
    queue: VecDeque<PendingJob<J, R>>,
    queue_weight: usize,
    /// Room held by permits.
    reserved: usize,
    line: Line<J, R>,
    closed: bool,
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
    /// Jobs that moved into the inbox, and their weight.
    pub(crate) taken: usize,
    pub(crate) weight: usize,
    /// Whom to answer when the flush that they requested is done.
    pub(crate) flushes: Vec<Reply<()>>,
    /// How many jobs at the front of the queue are meant by these flushes.
    pub(crate) ahead: usize,
}

pub(crate) enum Refusal {
    Full,
    Closed,
}

impl<J, R> Intake<J, R> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queue_weight: 0,
                reserved: 0,
                line: Line::default(),
                closed: false,
                ended: false,
                flushes: Vec::new(),
                finished: Vec::new(),
                asleep: None,
                stats: Stats::default(),
            }),
            ended: CancellationToken::new(),
            timeout: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What callers do.

    /// Puts the job into the queue if there is room.
    pub(crate) fn push(&self, job: PendingJob<J, R>) -> Result<(), (Refusal, PendingJob<J, R>)> {
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
        let line = state.line.clear();
        let waker = state.rouse();
        drop(state);
        for entry in line {
            match entry {
                Entry::Job(job, waker) => {
                    job.refuse();
                    wake(waker);
                }
                Entry::Reservation(waker) => wake(waker),
                Entry::Gone => {}
            }
        }
        wake(waker);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            queued: state.queue.len(),
            waiting: state.line.len(),
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
    /// says what else has happened. While the loop is busy `flushing`, later
    /// requests to flush stay where they are.
    pub(crate) fn look(
        &self,
        room: usize,
        flushing: bool,
        inbox: &mut VecDeque<PendingJob<J, R>>,
        finished: &mut Vec<u64>,
    ) -> News {
        let mut state = self.lock();
        state.asleep = None;
        mem::swap(&mut state.finished, finished);
        let requested = match flushing {
            true => Vec::new(),
            false => mem::take(&mut state.flushes),
        };
        let ahead = requested.last().map(|flush| flush.ahead);
        let (taken, weight) = state.take(room.min(ahead.unwrap_or(usize::MAX)), inbox);
        for flush in &mut state.flushes {
            flush.ahead -= taken;
        }
        state.stats.pending += taken;
        let closed = state.closed;
        let wakers = state.move_up(self.capacity);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        News {
            closed,
            taken,
            weight,
            flushes: requested.into_iter().map(|flush| flush.done).collect(),
            ahead: ahead.map_or(0, |ahead| ahead - taken),
        }
    }

    /// Waits until there is news, or as many jobs as the loop `wants`.
    pub(crate) async fn changed(&self, known: Known, wants: Option<Wants>) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if !state.finished.is_empty()
                || (!known.flushing && !state.flushes.is_empty())
                || (state.closed && !known.closed)
                || state.satisfies(wants, self.capacity)
            {
                return Poll::Ready(());
            }
            state.asleep = Some((cx.waker().clone(), wants));
            Poll::Pending
        })
        .await;
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
        state.stats.abandoned += queue.len() as u64;
        drop(state);
        drop(flushes);
        queue.len()
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
    fn enqueue(&mut self, job: PendingJob<J, R>, capacity: usize) -> Option<Waker> {
        self.queue_weight = self.queue_weight.saturating_add(job.weight());
        self.queue.push_back(job);
        self.stats.accepted += 1;
        self.rouse_if_satisfied(capacity)
    }

    /// Whether the queue holds what the loop wants, or all that it can hold.
    fn satisfies(&self, wants: Option<Wants>, capacity: usize) -> bool {
        wants.is_some_and(|wants| {
            self.queue.len() >= wants.jobs
                || (!self.queue.is_empty()
                    && (self.queue_weight >= wants.weight || !self.has_room(capacity)))
        })
    }

    fn rouse_if_satisfied(&mut self, capacity: usize) -> Option<Waker> {
        let (_, wants) = self.asleep.as_ref()?;
        if self.satisfies(*wants, capacity) {
            self.rouse()
        } else {
            None
        }
    }

    fn rouse(&mut self) -> Option<Waker> {
        self.asleep.take().map(|(waker, _)| waker)
    }

    /// Moves up to `room` jobs into the inbox, which is empty, and returns how
    /// many, with their weight.
    fn take(&mut self, room: usize, inbox: &mut VecDeque<PendingJob<J, R>>) -> (usize, usize) {
        if room >= self.queue.len() {
            mem::swap(&mut self.queue, inbox);
            return (inbox.len(), mem::take(&mut self.queue_weight));
        }
        inbox.extend(self.queue.drain(..room));
        let weights = inbox.iter().map(PendingJob::weight);
        let weight = weights.fold(0, usize::saturating_add);
        self.queue_weight = self.queue_weight.saturating_sub(weight);
        (room, weight)
    }

    /// Lets the line into the room there is and returns whom to tell.
    fn move_up(&mut self, capacity: usize) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while self.has_room(capacity) {
            let waker = match self.line.pop() {
                None => break,
                Some(Entry::Job(job, waker)) => {
                    wakers.extend(self.enqueue(job, capacity));
                    waker
                }
                Some(Entry::Reservation(waker)) => {
                    self.reserved += 1;
                    waker
                }
                Some(Entry::Gone) => None,
            };
            wakers.extend(waker);
        }
        wakers
    }
}

/// Those who wait for room, first come first served. Each holds a number, and
/// leaves a gap when it gives up.
struct Line<J, R> {
    entries: VecDeque<(u64, Entry<J, R>)>,
    gaps: usize,
    next: u64,
    /// All numbers below have left the line, and those that had not given up
    /// got room.
    served: u64,
}

enum Entry<J, R> {
    Job(PendingJob<J, R>, Option<Waker>),
    Reservation(Option<Waker>),
    Gone,
}

impl<J, R> Default for Line<J, R> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            gaps: 0,
            next: 0,
            served: 0,
        }
    }
}

impl<J, R> Line<J, R> {
    fn len(&self) -> usize {
        self.entries.len() - self.gaps
    }

    fn push(&mut self, entry: Entry<J, R>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.entries.push_back((number, entry));
        number
    }

    fn pop(&mut self) -> Option<Entry<J, R>> {
        let (number, entry) = self.entries.pop_front()?;
        self.served = number + 1;
        if matches!(entry, Entry::Gone) {
            self.gaps -= 1;
        }
        Some(entry)
    }

    fn get(&mut self, number: u64) -> Option<&mut Entry<J, R>> {
        let at = self.entries.binary_search_by_key(&number, |entry| entry.0);
        at.ok().map(|at| &mut self.entries[at].1)
    }

    /// Leaves a gap and returns what was there. Gaps are closed once they are
    /// the greater part, so giving up is cheap and leaves nothing behind.
    fn leave(&mut self, number: u64) -> Option<Entry<J, R>> {
        let left = mem::replace(self.get(number)?, Entry::Gone);
        self.gaps += 1;
        if self.gaps > self.entries.len() / 2 {
            self.entries
                .retain(|(_, entry)| !matches!(entry, Entry::Gone));
            self.gaps = 0;
        }
        Some(left)
    }

    fn clear(&mut self) -> Vec<Entry<J, R>> {
        self.gaps = 0;
        let entries = mem::take(&mut self.entries);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

/// Where a caller is on the way to room in the queue.
enum Standing<J, R> {
    /// Not in line; the job to come with, if it is one.
    Outside(Option<PendingJob<J, R>>),
    InLine(u64),
    Accepted,
    Refused,
}

/// A caller's claim to room in the queue: a job, or a permit for one to come.
/// Dropping it gives up the place in line, or the room that was reserved.
pub(crate) struct Claim<J, R> {
    intake: Arc<Intake<J, R>>,
    /// Never locked: a `Mutex` of which only `get_mut` is used is `Sync`
    /// whatever it holds, and so is the handle.
    standing: Mutex<Standing<J, R>>,
    reservation: bool,
}

impl<J, R> Claim<J, R> {
    pub(crate) fn for_job(intake: &Arc<Intake<J, R>>, job: PendingJob<J, R>) -> Self {
        Self {
            intake: Arc::clone(intake),
            standing: Mutex::new(Standing::Outside(Some(job))),
            reservation: false,
        }
    }

    pub(crate) fn for_permit(intake: &Arc<Intake<J, R>>) -> Self {
        Self {
            intake: Arc::clone(intake),
            standing: Mutex::new(Standing::Outside(None)),
            reservation: true,
        }
    }

    fn standing(&mut self) -> &mut Standing<J, R> {
        self.standing
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the reserved room for this job.
    pub(crate) fn redeem(mut self, job: PendingJob<J, R>) -> Result<(), JobError> {
        let standing = mem::replace(self.standing(), Standing::Refused);
        debug_assert!(matches!(standing, Standing::Accepted));
        let mut state = self.intake.lock();
        state.reserved -= 1;
        if state.closed {
            return Err(JobError::Closed);
        }
        let waker = state.enqueue(job, self.intake.capacity);
        drop(state);
        wake(waker);
        Ok(())
    }

    /// Takes the room there is, or a place in line.
    fn enter(&mut self) {
        let Standing::Outside(job) = self.standing() else {
            return;
        };
        let job = job.take();
        let mut state = self.intake.lock();
        let capacity = self.intake.capacity;
        let (standing, refused, waker) = if state.closed {
            (Standing::Refused, job, None)
        } else if state.has_room(capacity) {
            let waker = match job {
                Some(job) => state.enqueue(job, capacity),
                None => {
                    state.reserved += 1;
                    // Less room may make what is queued all there can be.
                    state.rouse_if_satisfied(capacity)
                }
            };
            (Standing::Accepted, None, waker)
        } else {
            let entry = match job {
                Some(job) => Entry::Job(job, None),
                None => Entry::Reservation(None),
            };
            (Standing::InLine(state.line.push(entry)), None, None)
        };
        drop(state);
        *self.standing() = standing;
        if let Some(job) = refused {
            job.refuse();
        }
        wake(waker);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        self.enter();
        let number = match self.standing() {
            Standing::InLine(number) => *number,
            Standing::Accepted => return Poll::Ready(Ok(())),
            Standing::Refused | Standing::Outside(_) => return Poll::Ready(Err(Closed)),
        };
        let mut state = self.intake.lock();
        let (standing, result) = if number < state.line.served {
            (Standing::Accepted, Ok(()))
        } else if state.closed {
            (Standing::Refused, Err(Closed))
        } else {
            if let Some(Entry::Job(_, waker) | Entry::Reservation(waker)) = state.line.get(number) {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        drop(state);
        *self.standing() = standing;
        Poll::Ready(result)
    }

    /// Waits for room.
    pub(crate) async fn granted(&mut self) -> Result<(), Closed> {
        poll_fn(|cx| self.poll(cx)).await
    }
}

impl<J: Send, R: Send> Place for Claim<J, R> {
    fn stand_in_line(&mut self) {
        self.enter();
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        self.poll(cx).map_err(|Closed| JobError::Closed)
    }
}

impl<J, R> Drop for Claim<J, R> {
    fn drop(&mut self) {
        let reservation = self.reservation;
        let number = match self.standing() {
            Standing::InLine(number) => Some(*number),
            Standing::Accepted if reservation => None,
            _ => return,
        };
        let mut state = self.intake.lock();
        let left = match number {
            Some(number) if number >= state.line.served => state.line.leave(number),
            // Room was granted, and is kept only by the job that came with it.
            _ => {
                state.reserved -= usize::from(reservation);
                None
            }
        };
        let wakers = state.move_up(self.intake.capacity);
        drop(state);
        // Only now, because dropping the job runs its owner's code.
        drop(left);
        wakers.into_iter().for_each(Waker::wake);
    }
}
