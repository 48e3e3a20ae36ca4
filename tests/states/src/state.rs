//! A state of the worker and of its surroundings, and what can happen next.
//!
//! [`Schedule`] and the queue are those of the crate. What `worker.rs` does
//! with them is repeated here, call by call; `replay.rs` compares the two.

use std::mem;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::schedule::{Policy, Schedule};
use crate::real_queue::RealQueue;
use crate::report::FlushReason;
use crate::settings::Settings;
use crate::setup::{END_OF_TIME, Setup};

/// Jobs are numbered in the order in which they are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Job {
    pub id: u8,
    pub weight: u8,
}

/// A job in the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held {
    pub job: Job,
    /// When it was accepted, in milliseconds, as all times here.
    pub since: u8,
}

/// A job in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queued {
    pub job: Job,
    /// When it was accepted, unless the worker records the time when it receives.
    pub since: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Batch {
    pub number: u64,
    pub jobs: Vec<u8>,
    /// It holds a permit.
    pub permit: bool,
}

/// What users steer while the worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Control {
    /// Which of the settings of the setup are in force.
    pub choice: u8,
    pub paused: bool,
    /// The worker has not received it since it changed.
    pub changed: bool,
    /// How many changes, and how many pauses, are still to come.
    pub changes: u8,
    pub pauses: u8,
}

/// The semaphore whose permits the batches need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Semaphore {
    pub available: u8,
    pub closed: bool,
    /// How many permits the surroundings have granted in all, less those taken.
    pub granted: u8,
    /// How many they may still grant and take.
    pub grants: u8,
    pub takes: u8,
}

/// What the worker has of a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permit {
    None,
    /// It will wait for one.
    Asked,
    /// It waits for one.
    Waits,
    /// It waited for one, which is its own now, and has not looked since.
    Assigned,
    Held,
    /// It has found the semaphore closed.
    Closed,
}

impl Permit {
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Asked | Self::Waits | Self::Assigned)
    }
}

/// A request to flush that the worker has not received.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlushRequest {
    pub ahead: usize,
    pub call: usize,
}

/// A call of `flush`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlushCall {
    /// How many jobs had been accepted before.
    pub accepted: u8,
    /// How many before the last of the calls that were received together, which
    /// get their reply together.
    pub together: u8,
    pub answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// About to receive.
    Turn,
    /// About to poll what it waits for.
    Poll,
    Asleep,
    Ended {
        abandoned: Option<usize>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Submit { weight: u8 },
    DropHandle { id: u8 },
    Flush,
    Cancel,
    Shutdown,
    Advance { to: u8 },
    Finish { batch: u64 },
    Reconfigure { choice: u8 },
    Pause,
    Resume,
    GrantPermit,
    TakePermit,
    CloseSemaphore,
    Step(Option<Prank>),
}

/// What a storage does instead of what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prank {
    /// Drops the newest of the jobs it is given.
    Refuse,
    /// Drops the oldest job, and gives of the others.
    Evict,
    /// Drops all it has.
    Clear,
    /// Loses all it has without dropping it.
    Leak,
    GiveNothing,
    GiveOne,
    GiveLast,
    /// Gives all it has, whatever the limits.
    GiveAll,
}

impl Prank {
    pub const ALL: [Self; 8] = [
        Self::Refuse,
        Self::Evict,
        Self::Clear,
        Self::Leak,
        Self::GiveNothing,
        Self::GiveOne,
        Self::GiveLast,
        Self::GiveAll,
    ];
}

/// What a step can do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    Size,
    Weight,
    Flights,
    Order,
    TwoAnswers,
    NotDue,
    LeftInQueue,
    Past,
    FlushTooSoon,
    StopTooSoon,
    Queue,
    Waited,
    Paused,
    Permit,
}

/// A batch that was started.
#[derive(Debug)]
pub struct Cut {
    pub jobs: Vec<u8>,
    pub reason: FlushReason,
    pub waited: Duration,
    /// There are no permits any more.
    pub failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub schedule: Schedule,
    pub now: u8,
    pub phase: Phase,
    /// The callers: how many jobs they have submitted, and which of these are
    /// answered, or leaked, or not wanted any more; one bit a job.
    pub submitted: u8,
    pub answered: u8,
    pub leaked: u8,
    pub unwanted: u8,
    pub flush_calls: Vec<FlushCall>,
    pub cancelled: bool,
    /// The worker must poll its cancellation token.
    pub cancel_woken: bool,
    /// The queue.
    pub waiters: Vec<Job>,
    pub queue: Vec<Queued>,
    /// While the worker is parked and wants nothing: with how many queued jobs the
    /// newest is the first of its batch.
    pub check_at: Option<usize>,
    /// The worker has left its waker in the queue.
    pub parked: bool,
    /// How many jobs of the queue the current flush covers.
    pub flush_ahead: usize,
    /// How many of these were withdrawn since the worker last received.
    pub flush_withdrawn: usize,
    /// Pending jobs that were withdrawn since then.
    pub withdrawn_pending: Vec<Held>,
    pub flush_requests: Vec<FlushRequest>,
    pub finished: Vec<u64>,
    pub closed: bool,
    pub control: Control,
    /// When the worker last received, where that may matter.
    pub received_at: u8,
    pub semaphore: Semaphore,
    /// The worker.
    pub permit: Permit,
    pub storage: Vec<Held>,
    pub in_flight: Vec<Batch>,
    pub next: u64,
    /// The calls of the current flush.
    pub flushing: Vec<usize>,
    /// The calls that wait for all batches below the number.
    pub flushes: Vec<(u64, Vec<usize>)>,
    pub stopped: Option<u8>,
    /// When the storage gave nothing, while it is left alone for that.
    pub stalled: Option<u8>,
    pub pranks: u8,
    pub fault: Option<Fault>,
}

/// Returns the time so many milliseconds after the start.
pub fn at(millis: u8) -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_millis(millis.into())
}

/// Returns when a timer goes off that is set to that time.
pub fn rounded(time: Instant) -> u8 {
    let since = time - at(0);
    let millis = since.as_nanos().div_ceil(1_000_000);
    u8::try_from(millis).unwrap_or(END_OF_TIME).min(END_OF_TIME)
}

impl State {
    pub fn new(setup: &Setup) -> Self {
        Self {
            schedule: Schedule::new(setup.policy.clone(), at(0)),
            now: 0,
            phase: Phase::Turn,
            submitted: 0,
            answered: 0,
            leaked: 0,
            unwanted: 0,
            flush_calls: Vec::new(),
            cancelled: false,
            cancel_woken: false,
            waiters: Vec::new(),
            queue: Vec::new(),
            check_at: None,
            parked: false,
            flush_ahead: 0,
            flush_withdrawn: 0,
            withdrawn_pending: Vec::new(),
            flush_requests: Vec::new(),
            finished: Vec::new(),
            closed: false,
            control: Control {
                choice: 0,
                paused: false,
                changed: false,
                changes: setup.changes,
                pauses: setup.pauses,
            },
            received_at: 0,
            semaphore: Semaphore {
                available: setup.permits.unwrap_or(0),
                closed: false,
                granted: setup.permits.unwrap_or(0),
                grants: setup.grants,
                takes: setup.takes,
            },
            permit: Permit::None,
            storage: Vec::new(),
            in_flight: Vec::new(),
            next: 0,
            flushing: Vec::new(),
            flushes: Vec::new(),
            stopped: None,
            stalled: None,
            pranks: setup.pranks,
            fault: None,
        }
    }

    /// When the timer goes off.
    pub fn timer(&self) -> Option<u8> {
        let deadline = match self.permit.is_waiting() {
            true => self.schedule.stop_deadline(),
            false => self.schedule.deadline(),
        };
        deadline.map(rounded)
    }

    /// The settings that the users have put in force.
    pub fn settings<'a>(&self, setup: &'a Setup) -> &'a Settings {
        &setup.choices[usize::from(self.control.choice)]
    }

    /// The batches that the processor has not finished.
    pub fn processing(&self) -> impl Iterator<Item = &Batch> {
        let ended = |batch: &&Batch| !self.finished.contains(&batch.number);
        self.in_flight.iter().filter(ended)
    }

    pub fn actions(&self, setup: &Setup, actions: &mut Vec<Action>) {
        if self.fault.is_some() || self.now >= END_OF_TIME {
            return;
        }
        match self.phase {
            Phase::Ended { .. } => return,
            Phase::Turn => {
                actions.push(Action::Step(None));
                let pranks = Prank::ALL.iter().filter(|_| self.pranks > 0);
                actions.extend(pranks.map(|prank| Action::Step(Some(*prank))));
            }
            Phase::Poll => actions.push(Action::Step(None)),
            Phase::Asleep => {}
        }
        if !self.closed && self.submitted < setup.jobs {
            let limit = self.settings(setup).max_batch_weight;
            let weights = setup.weights.iter();
            let weights = weights.filter(|weight| usize::from(**weight) <= limit);
            actions.extend(weights.map(|weight| Action::Submit { weight: *weight }));
        }
        if setup.cancel_on_drop {
            let held = self.storage.iter().map(|held| held.job);
            let jobs = self.queue.iter().map(|queued| queued.job).chain(held);
            let jobs = jobs.chain(self.waiters.iter().copied());
            actions.extend(jobs.map(|job| Action::DropHandle { id: job.id }));
        }
        if self.flush_calls.len() < setup.flushes {
            actions.push(Action::Flush);
        }
        if !self.closed && !self.cancelled {
            actions.extend([Action::Cancel, Action::Shutdown]);
        }
        let processing = self.processing();
        actions.extend(processing.map(|batch| Action::Finish {
            batch: batch.number,
        }));
        if !self.closed {
            let control = self.control;
            let choices = 0..u8::try_from(setup.choices.len()).unwrap_or(u8::MAX);
            let others = choices.filter(|choice| *choice != control.choice && control.changes > 0);
            actions.extend(others.map(|choice| Action::Reconfigure { choice }));
            if control.paused {
                actions.push(Action::Resume);
            } else if control.pauses > 0 {
                actions.push(Action::Pause);
            }
        }
        if setup.permits.is_some() && !self.semaphore.closed {
            let semaphore = self.semaphore;
            actions.extend((semaphore.grants > 0).then_some(Action::GrantPermit));
            let takes = semaphore.takes > 0 && semaphore.available > 0;
            actions.extend(takes.then_some(Action::TakePermit));
            actions.push(Action::CloseSemaphore);
        }
        // The clock means nothing to a worker that has nothing pending.
        if !self.storage.is_empty() || self.stopped.is_some() {
            let timer = self.timer().filter(|_| self.phase == Phase::Asleep);
            let mut times: Vec<u8> = timer.into_iter().collect();
            if self.now < setup.horizon {
                times.push(self.now + 1);
                times.extend(timer.map(|time| time + 1));
            }
            times.sort_unstable();
            times.dedup();
            actions.extend(times.into_iter().map(|to| Action::Advance { to }));
        }
    }

    /// Does what the action says, and shows the batch that it starts.
    pub fn act(&mut self, setup: &Setup, action: Action, seen: &mut dyn FnMut(Cut)) {
        match action {
            Action::Submit { weight } => {
                let job = Job {
                    id: self.submitted,
                    weight,
                };
                self.notify(setup, |queue| queue.submit(job));
                self.submitted += 1;
                if self.queue.len() < setup.capacity {
                    self.queue.push(Queued { job, since: None });
                    self.record_newest(setup);
                } else {
                    self.waiters.push(job);
                }
            }
            Action::DropHandle { id } => self.drop_handle(setup, id),
            Action::Flush => {
                self.notify(setup, RealQueue::flush);
                self.flush_requests.push(FlushRequest {
                    ahead: self.queue.len(),
                    call: self.flush_calls.len(),
                });
                // Some of the waiters may have left.
                let accepted = self.waiters.first().map_or(self.submitted, |job| job.id);
                self.flush_calls.push(FlushCall {
                    accepted,
                    together: accepted,
                    answered: false,
                });
            }
            Action::Cancel => {
                self.notify(setup, RealQueue::wake_for_cancel);
                self.cancelled = true;
                self.cancel_woken = true;
            }
            Action::Shutdown => {
                self.notify(setup, RealQueue::close);
                self.close();
            }
            Action::Advance { to } => {
                self.now = to;
                let over = self.timer().is_some_and(|timer| timer <= to);
                if self.phase == Phase::Asleep && over {
                    self.phase = Phase::Poll;
                }
            }
            Action::Finish { batch } => {
                self.notify(setup, |queue| queue.finish(batch));
                let jobs = self.processing().find(|running| running.number == batch);
                let permit = jobs.is_some_and(|batch| batch.permit);
                for id in jobs.map_or_else(Vec::new, |batch| batch.jobs.clone()) {
                    self.answer(id);
                }
                self.finished.push(batch);
                if permit {
                    self.give_back_permit();
                }
            }
            Action::Reconfigure { choice } => {
                let settings = setup.choices[usize::from(choice)];
                self.notify(setup, |queue| queue.reconfigure(settings));
                self.control.changes -= 1;
                self.control.choice = choice;
                self.change_control();
            }
            Action::Pause => {
                self.notify(setup, |queue| queue.set_paused(true));
                self.control.pauses -= 1;
                self.control.paused = true;
                self.change_control();
            }
            Action::Resume => {
                self.notify(setup, |queue| queue.set_paused(false));
                self.control.paused = false;
                self.change_control();
            }
            Action::GrantPermit => {
                self.semaphore.grants -= 1;
                self.semaphore.granted += 1;
                self.give_back_permit();
            }
            Action::TakePermit => {
                self.semaphore.takes -= 1;
                self.semaphore.granted -= 1;
                self.semaphore.available -= 1;
            }
            Action::CloseSemaphore => {
                self.semaphore.closed = true;
                if self.permit == Permit::Waits {
                    self.rouse();
                }
            }
            Action::Step(mut prank) => self.step(setup, &mut prank, seen),
        }
    }

    /// One step of the worker.
    pub fn step(&mut self, setup: &Setup, prank: &mut Option<Prank>, seen: &mut dyn FnMut(Cut)) {
        match self.phase {
            Phase::Turn => self.turn(setup, prank, seen),
            Phase::Poll => self.poll(setup),
            Phase::Asleep | Phase::Ended { .. } => {}
        }
    }

    // What the surroundings do.

    /// Notifies the queue, which may wake the worker.
    fn notify(&mut self, setup: &Setup, event: impl FnOnce(&RealQueue)) {
        if !self.parked {
            return;
        }
        match RealQueue::new(self, setup).wakes(self, event) {
            Some(false) => {}
            Some(true) => self.wake(),
            None if self.phase == Phase::Poll => self.parked = false,
            None => self.fault = Some(Fault::Queue),
        }
    }

    /// The queue wakes the worker.
    fn wake(&mut self) {
        self.rouse();
        self.parked = false;
        self.extend_last(0);
    }

    /// Wakes the worker, if it sleeps.
    fn rouse(&mut self) {
        if self.phase == Phase::Asleep {
            self.phase = Phase::Poll;
        }
    }

    /// What `change_control` does besides.
    fn change_control(&mut self) {
        self.control.changed = true;
        let last = self.queue.iter().rev().find_map(|queued| queued.since);
        let since = last.unwrap_or(0).max(self.received_at);
        for queued in &mut self.queue {
            queued.since.get_or_insert(since);
        }
    }

    /// A permit is free, or that of the worker if it waits.
    fn give_back_permit(&mut self) {
        if self.permit == Permit::Waits && !self.semaphore.closed {
            self.permit = Permit::Assigned;
            self.rouse();
        } else {
            self.semaphore.available += 1;
        }
    }

    /// Records when the newest job of the queue was accepted, if that is needed.
    fn record_newest(&mut self, setup: &Setup) {
        if !self.parked {
            return;
        }
        let starts_batch = self.check_at.is_some_and(|at| self.queue.len() >= at);
        if !setup.cancel_on_drop && !starts_batch {
            return;
        }
        self.extend_last(1);
        self.record_rest();
        if self.check_at.is_some() {
            self.check_at = Some(self.next_first());
        }
    }

    fn next_first(&self) -> usize {
        let stride = self.schedule.stride();
        self.queue.len().div_ceil(stride) * stride + 1
    }

    /// Gives the time of the last timed job to those untimed, but for the newest.
    fn extend_last(&mut self, newest: usize) {
        let last = self.queue.iter().rev().find_map(|queued| queued.since);
        let count = self.queue.len().saturating_sub(newest);
        for queued in self.queue[..count]
            .iter_mut()
            .filter(|it| it.since.is_none())
        {
            queued.since = last;
        }
    }

    /// Gives the current time to the untimed jobs.
    fn record_rest(&mut self) {
        for queued in &mut self.queue {
            queued.since.get_or_insert(self.now);
        }
    }

    /// A caller drops the handle of a job that is not in a batch.
    fn drop_handle(&mut self, setup: &Setup, id: u8) {
        self.answer(id);
        let waiting = self.waiters.len();
        self.waiters.retain(|job| job.id != id);
        if self.waiters.len() < waiting {
            self.unwanted |= bit(id);
            return;
        }
        if let Some(at) = self.queue.iter().position(|queued| queued.job.id == id) {
            self.queue.remove(at);
            for request in &mut self.flush_requests {
                request.ahead -= usize::from(at < request.ahead);
            }
            self.flush_withdrawn += usize::from(at < self.flush_ahead);
            self.flush_ahead -= usize::from(at < self.flush_ahead);
            self.admit_waiters(setup);
        }
        if let Some(at) = self.storage.iter().position(|held| held.job.id == id) {
            let held = self.storage.remove(at);
            self.withdrawn_pending.push(held);
        }
        if self.parked {
            self.wake();
        }
    }

    /// Moves waiters into the room there is.
    fn admit_waiters(&mut self, setup: &Setup) {
        let room = setup.capacity - self.queue.len();
        let admitted: Vec<Job> = self.waiters.drain(..room.min(self.waiters.len())).collect();
        if !admitted.is_empty() {
            self.record_rest();
            let since = Some(self.now);
            self.queue
                .extend(admitted.into_iter().map(|job| Queued { job, since }));
        }
    }

    fn close(&mut self) {
        self.closed = true;
        self.control.paused = false;
        for job in mem::take(&mut self.waiters) {
            self.answer(job.id);
        }
    }

    fn answer(&mut self, id: u8) {
        if self.answered & bit(id) != 0 {
            self.fault = Some(Fault::TwoAnswers);
        }
        self.answered |= bit(id);
    }

    fn reply_to_calls(&mut self, calls: Vec<usize>) {
        for call in calls {
            let call = &mut self.flush_calls[call];
            call.answered = true;
            let covered = bit(call.accepted) - 1;
            if covered & !(self.answered | self.leaked) != 0 {
                self.fault = Some(Fault::FlushTooSoon);
            }
        }
    }

    // What the worker does.

    fn turn(&mut self, setup: &Setup, prank: &mut Option<Prank>, seen: &mut dyn FnMut(Cut)) {
        let now = at(self.now);
        if self.receive(setup, prank) {
            self.close();
            self.receive(setup, prank);
        }
        if self.schedule.is_overdue(now) && !self.is_drained() {
            return self.end(setup, true);
        }
        if self.flush_if_due(setup, prank, seen) {
            return;
        }
        self.reply_to_flushes();
        if self.is_drained() {
            return self.end(setup, false);
        }
        self.phase = Phase::Poll;
        self.forget_the_past(setup);
    }

    fn flush_if_due(
        &mut self,
        setup: &Setup,
        prank: &mut Option<Prank>,
        seen: &mut dyn FnMut(Cut),
    ) -> bool {
        let now = at(self.now);
        let Some(reason) = self.schedule.due(now) else {
            self.release_permit();
            return false;
        };
        if setup.permits.is_some() {
            let Some(permit) = self.take_permit() else {
                return false;
            };
            self.flush(setup, prank, reason, permit, seen);
        } else {
            self.flush(setup, prank, reason, false, seen);
        }
        !self.queue.is_empty() || self.schedule.due(now).is_some()
    }

    /// Returns whether there is a permit, or `false` if there will be none any more.
    fn take_permit(&mut self) -> Option<bool> {
        match self.permit {
            Permit::Held => {
                self.permit = Permit::None;
                Some(true)
            }
            Permit::Closed => {
                self.permit = Permit::None;
                Some(false)
            }
            Permit::None if self.semaphore.available > 0 && !self.semaphore.closed => {
                self.semaphore.available -= 1;
                Some(true)
            }
            Permit::None => {
                self.permit = Permit::Asked;
                None
            }
            Permit::Asked | Permit::Waits | Permit::Assigned => None,
        }
    }

    fn release_permit(&mut self) {
        let has_one = matches!(self.permit, Permit::Held | Permit::Assigned);
        self.semaphore.available += u8::from(has_one);
        if self.permit != Permit::Closed {
            self.permit = Permit::None;
        }
    }

    /// Polls the permit that is waited for, and returns whether that is over.
    fn poll_permit(&mut self) -> bool {
        if !self.permit.is_waiting() {
            return false;
        }
        if self.semaphore.closed {
            self.release_permit();
            self.permit = Permit::Closed;
        } else if self.permit == Permit::Assigned {
            self.permit = Permit::Held;
        } else if self.permit == Permit::Asked && self.semaphore.available > 0 {
            self.semaphore.available -= 1;
            self.permit = Permit::Held;
        } else {
            self.permit = Permit::Waits;
        }
        self.permit != Permit::Waits
    }

    fn is_drained(&self) -> bool {
        self.schedule.is_drained() && self.queue.is_empty()
    }

    /// With nothing pending nothing matters of what was, so that the clock can
    /// start again: states that differ only by when they are count once.
    fn forget_the_past(&mut self, setup: &Setup) {
        let pending = !self.storage.is_empty() || !self.flushing.is_empty();
        let timed = !self.queue.is_empty() || !self.withdrawn_pending.is_empty();
        if pending || timed || self.stopped.is_some() || self.stalled.is_some() {
            return;
        }
        let settings = *self.settings(setup);
        let policy = Policy {
            settings,
            ..setup.policy.clone()
        };
        let mut fresh = Schedule::new(policy, at(0));
        if self.schedule.may_be_overweight() {
            fresh.reconfigure(Settings {
                max_batch_weight: usize::MAX,
                ..settings
            });
            fresh.reconfigure(settings);
        }
        fresh.set_paused(self.control.paused);
        self.in_flight.iter().for_each(|_| fresh.batch_started());
        let with_a_job = |pending: &Schedule| {
            let mut pending = pending.clone();
            pending.add(1, at(self.now));
            pending
        };
        if with_a_job(&self.schedule) != with_a_job(&fresh) {
            self.fault = Some(Fault::Past);
        }
        self.schedule = fresh;
        self.now = 0;
        self.received_at = 0;
    }

    fn poll(&mut self, setup: &Setup) {
        let queue = RealQueue::new(self, setup);
        let over = self.timer().is_some_and(|timer| timer <= self.now);
        let was_parked = self.parked;
        self.parked = self.withdrawn_pending.is_empty() && queue.wakes(self, |_| {}).is_some();
        if self.parked && !was_parked {
            self.record_rest();
        }
        self.check_at = self.schedule.wants().is_none().then(|| self.next_first());
        let permitted = self.parked && self.poll_permit();
        self.phase = if over || permitted || !self.parked {
            Phase::Turn
        } else {
            Phase::Asleep
        };
    }

    /// Returns whether to poll the cancellation token.
    fn receive(&mut self, setup: &Setup, prank: &mut Option<Prank>) -> bool {
        let now = at(self.now);
        for held in mem::take(&mut self.withdrawn_pending) {
            self.remove_pending(held);
        }
        let flushing = self.schedule.is_flushing();
        if self.parked {
            self.extend_last(0);
            self.parked = false;
        }
        self.record_rest();
        let steered = self.control.changes > 0 || self.control.pauses > 0 || self.control.paused;
        self.received_at = if steered { self.now } else { 0 };
        let queue = RealQueue::new(self, setup);
        let mut room = self.schedule.take_limit();
        if flushing && room <= self.flush_ahead + self.flush_withdrawn {
            room = room.min(self.flush_ahead);
        }
        let seen = queue.receive(room, flushing);
        let received = seen.received;
        let (requests, taken) = self.take_up(setup, &seen.taken, flushing, received.flush_ahead);
        if requests.len() != seen.requests || self.queue.len() != received.queued {
            self.fault = Some(Fault::Queue);
        }
        if flushing && self.stalled.is_some() {
            // What the storage holds back may leave with jobs that were not
            // covered, which the flush then waits for as well.
            let joined = seen.taken.last().map_or(0, |job| job.id + 1);
            for request in &self.flushing {
                let together = &mut self.flush_calls[*request].together;
                *together = joined.max(*together);
            }
        }
        for number in seen.finished {
            self.retire(number);
        }
        self.schedule
            .left_queue(mem::take(&mut self.flush_withdrawn) + seen.taken.len());
        if let Some(ahead) = received.flush_ahead {
            let together = requests
                .last()
                .map_or(0, |last| self.flush_calls[*last].accepted);
            for request in &requests {
                self.flush_calls[*request].together = together;
            }
            self.flushing.extend(requests);
            self.schedule.request_flush(ahead);
            self.stalled = None;
        }
        let control = self.control;
        let told = seen.control;
        let should = control
            .changed
            .then(|| (*self.settings(setup), control.paused));
        if told != should {
            self.fault = Some(Fault::Queue);
        }
        if let Some((settings, paused)) = told {
            self.schedule.reconfigure(settings);
            self.schedule.set_paused(paused);
            self.control.changed = false;
            self.stalled = None;
        }
        if received.taken > 0 {
            for held in &taken {
                self.schedule.add(1, at(held.since));
            }
            self.schedule.add_weight(received.weight);
            self.stalled = None;
            self.store(setup, prank, taken);
        }
        if received.closed && !self.schedule.is_stopping() {
            self.schedule.stop(now);
            self.stopped = Some(self.now);
            self.stalled = None;
            return received.cancel_woken | self.receive(setup, prank);
        }
        received.cancel_woken
    }

    /// Does to the queue what `Queue::receive` does to it, and returns which calls of
    /// `flush` were received, and the jobs.
    fn take_up(
        &mut self,
        setup: &Setup,
        taken: &[Job],
        flushing: bool,
        flush: Option<usize>,
    ) -> (Vec<usize>, Vec<Held>) {
        let jobs: Vec<Job> = self.queue.iter().map(|queued| queued.job).collect();
        if !jobs.starts_with(taken) {
            self.fault = Some(Fault::Order);
            return Default::default();
        }
        let held = self.queue.drain(..taken.len()).map(|queued| Held {
            job: queued.job,
            since: queued.since.unwrap_or(self.now),
        });
        let held = held.collect();
        self.flush_ahead = flush.unwrap_or(self.flush_ahead.saturating_sub(taken.len()));
        self.admit_waiters(setup);
        self.finished.clear();
        self.cancel_woken = false;
        if flushing {
            for request in &mut self.flush_requests {
                request.ahead = request.ahead.saturating_sub(taken.len());
            }
            return (Vec::new(), held);
        }
        let calls = self.flush_requests.drain(..).map(|request| request.call);
        (calls.collect(), held)
    }

    fn store(&mut self, setup: &Setup, prank: &mut Option<Prank>, jobs: Vec<Held>) {
        self.storage.extend(jobs);
        if setup.policy.custom_storage && self.plays(prank, |prank| prank == Prank::Refuse) {
            let refused = self.storage.pop();
            self.lose(refused);
        }
    }

    /// Whether the storage plays the prank.
    fn plays(&mut self, prank: &mut Option<Prank>, which: impl Fn(Prank) -> bool) -> bool {
        let plays = prank.take_if(|prank| which(*prank)).is_some();
        self.pranks -= u8::from(plays);
        plays
    }

    /// Drops jobs that the storage had.
    fn lose(&mut self, jobs: impl IntoIterator<Item = Held>) {
        for held in jobs {
            self.answer(held.job.id);
            self.remove_pending(held);
        }
    }

    fn remove_pending(&mut self, held: Held) {
        let weight = held.job.weight.into();
        self.schedule.remove_one(weight, at(held.since));
    }

    fn flush(
        &mut self,
        setup: &Setup,
        prank: &mut Option<Prank>,
        mut reason: FlushReason,
        permit: bool,
        seen: &mut dyn FnMut(Cut),
    ) {
        if self.control.paused {
            self.fault = Some(Fault::Paused);
        }
        if !self.holds(setup, reason, self.now) {
            self.fault = Some(Fault::NotDue);
        }
        // What a storage has dropped of the received jobs is made up for in the next turn.
        let left = !setup.policy.custom_storage && !self.queue.is_empty();
        if left && reason == FlushReason::Shutdown {
            self.fault = Some(Fault::LeftInQueue);
        }
        let waited = self.schedule.waited(at(self.now));
        if waited != at(self.now) - at(self.oldest().unwrap_or(self.now)) {
            self.fault = Some(Fault::Waited);
        }
        let heavy = self.schedule.is_full_by_weight();
        let taken = self.cut(setup, prank);
        if taken.is_empty() {
            if self.storage.is_empty() {
                self.schedule.clear();
            } else {
                self.schedule.stall(at(self.now));
                self.stalled = Some(self.now);
            }
            self.semaphore.available += u8::from(permit);
            return;
        }
        if reason == FlushReason::Size && heavy && taken.len() < self.settings(setup).max_batch_size
        {
            reason = FlushReason::Weight;
        }
        self.start_batch(setup, &taken, permit);
        let failed = setup.permits.is_some() && !permit;
        if failed {
            if !self.semaphore.closed {
                self.fault = Some(Fault::Permit);
            }
            // The batch ends where it began.
            self.finished.push(self.next - 1);
            taken.iter().for_each(|job| self.answer(job.id));
        }
        seen(Cut {
            jobs: taken.iter().map(|job| job.id).collect(),
            reason,
            waited,
            failed,
        });
    }

    fn cut(&mut self, setup: &Setup, prank: &mut Option<Prank>) -> Vec<Job> {
        let policy = &setup.policy;
        let mut taken = self.give(setup, prank);
        let mut fits = fitting(self.settings(setup), &taken);
        if fits == 0 && self.schedule.may_be_overweight() {
            // A job that was accepted under another limit goes alone.
            if taken.is_empty() && !self.storage.is_empty() {
                taken.push(self.storage.remove(0));
            }
            fits = taken.len().min(1);
        }
        self.storage.extend(taken.drain(fits..));
        let jobs: Vec<Job> = taken.iter().map(|held| held.job).collect();
        if policy.custom_storage || setup.cancel_on_drop {
            for held in taken {
                self.remove_pending(held);
            }
        } else {
            let weight = jobs.iter().map(|job| u128::from(job.weight)).sum();
            self.schedule.remove_oldest(jobs.len(), weight);
            let behind = self.storage.iter().map(|held| held.job);
            let order = jobs.iter().copied().chain(behind).map(|job| job.id);
            if !order.is_sorted() {
                self.fault = Some(Fault::Order);
            }
        }
        jobs
    }

    /// What the storage does when it is asked for a batch.
    fn give(&mut self, setup: &Setup, prank: &mut Option<Prank>) -> Vec<Held> {
        let played = *prank;
        if !self.plays(prank, |prank| prank != Prank::Refuse) {
            let fits = fitting(self.settings(setup), &self.storage);
            return self.storage.drain(..fits).collect();
        }
        match played {
            Some(Prank::Evict) => {
                let oldest = self.storage.drain(..1).collect::<Vec<_>>();
                self.lose(oldest);
                let fits = fitting(self.settings(setup), &self.storage);
                self.storage.drain(..fits).collect()
            }
            Some(Prank::Clear) => {
                let all = mem::take(&mut self.storage);
                self.lose(all);
                Vec::new()
            }
            Some(Prank::Leak) => {
                for held in mem::take(&mut self.storage) {
                    self.leaked |= bit(held.job.id);
                }
                Vec::new()
            }
            Some(Prank::GiveOne) => self.storage.drain(..1).collect(),
            Some(Prank::GiveLast) => self.storage.pop().into_iter().collect(),
            Some(Prank::GiveAll) => mem::take(&mut self.storage),
            Some(Prank::GiveNothing | Prank::Refuse) | None => Vec::new(),
        }
    }

    fn start_batch(&mut self, setup: &Setup, jobs: &[Job], permit: bool) {
        let settings = self.settings(setup);
        let weight: usize = jobs.iter().map(|job| usize::from(job.weight)).sum();
        if jobs.len() > settings.max_batch_size {
            self.fault = Some(Fault::Size);
        }
        // A job that is heavier than a batch may be, goes alone.
        if weight > settings.max_batch_weight && jobs.len() > 1 {
            self.fault = Some(Fault::Weight);
        }
        self.in_flight.push(Batch {
            number: self.next,
            jobs: jobs.iter().map(|job| job.id).collect(),
            permit,
        });
        self.next += 1;
        if self.in_flight.len() > settings.max_in_flight {
            self.fault = Some(Fault::Flights);
        }
        self.schedule.batch_started();
    }

    fn retire(&mut self, number: u64) {
        self.in_flight.retain(|batch| batch.number != number);
        self.schedule.batch_finished();
        self.stalled = None;
    }

    fn reply_to_flushes(&mut self) {
        if self.schedule.end_flush() {
            let done = mem::take(&mut self.flushing);
            self.flushes.push((self.next, done));
        }
        let oldest = self
            .in_flight
            .first()
            .map_or(self.next, |batch| batch.number);
        while self.flushes.first().is_some_and(|(end, _)| *end <= oldest) {
            let (_, done) = self.flushes.remove(0);
            self.reply_to_calls(done);
        }
        if self.in_flight.is_empty() {
            // No flush waits: count from the start again.
            self.next = 0;
        }
    }

    fn end(&mut self, setup: &Setup, overdue: bool) {
        self.close();
        let queued = mem::take(&mut self.queue);
        let queued = queued.into_iter().map(|queued| queued.job.id);
        let held = mem::take(&mut self.storage).into_iter();
        let processing: Vec<u8> = self
            .processing()
            .flat_map(|batch| batch.jobs.clone())
            .collect();
        let left: Vec<u8> = queued
            .chain(held.map(|held| held.job.id))
            .chain(processing)
            .collect();
        let drained = left.is_empty();
        let in_time = self.stopped.is_some_and(|stopped| {
            let timeout = setup.policy.shutdown_timeout;
            at(self.now) - at(stopped) < timeout
        });
        if self.stopped.is_none() || (overdue && in_time) || (!overdue && !drained) {
            self.fault = Some(Fault::StopTooSoon);
        }
        self.phase = Phase::Ended {
            abandoned: overdue.then_some(left.len()),
        };
        for id in left {
            self.answer(id);
        }
        let permits = self.processing().filter(|batch| batch.permit).count();
        self.semaphore.available += u8::try_from(permits).unwrap_or(u8::MAX);
        self.release_permit();
        self.in_flight.clear();
        for request in &mut self.flush_calls {
            request.answered = true;
        }
    }
}

fn bit(id: u8) -> u8 {
    1 << id
}

/// Returns how many of the jobs, from the first, may go together.
fn fitting(settings: &Settings, jobs: &[Held]) -> usize {
    let mut room = settings.max_batch_weight;
    let first = jobs.iter().take(settings.max_batch_size);
    first
        .map_while(|held| {
            room = room.checked_sub(held.job.weight.into())?;
            Some(())
        })
        .count()
}
