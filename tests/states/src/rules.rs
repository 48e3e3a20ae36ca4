//! What must hold, told once more from what the jobs are and how long they have
//! waited, without regard to how `schedule.rs` keeps count of it.

use std::time::Duration;

use crate::report::FlushReason;
use crate::settings::Settings;
use crate::setup::{END_OF_TIME, Setup};
use crate::state::{Fault, Permit, Phase, State, at};

pub const REASONS: [FlushReason; 7] = [
    FlushReason::Size,
    FlushReason::Weight,
    FlushReason::Interval,
    FlushReason::Idle,
    FlushReason::Cost,
    FlushReason::Requested,
    FlushReason::Shutdown,
];

/// More steps than the worker ever takes at a stretch.
const LONG: usize = 40;

fn have_passed(delay: Duration, since: u8, now: u8) -> bool {
    at(now) - at(since) >= delay
}

impl State {
    /// When the oldest pending job was accepted.
    pub fn oldest(&self) -> Option<u8> {
        self.storage.iter().map(|held| held.since).min()
    }

    /// Whether that is a reason to start a batch at that time.
    pub fn holds(&self, setup: &Setup, reason: FlushReason, now: u8) -> bool {
        let settings = self.settings(setup);
        let jobs = &self.storage;
        let left_alone = |stalled: u8| !have_passed(settings.interval, stalled, now);
        if jobs.is_empty()
            || self.control.paused
            || self.in_flight.len() >= settings.max_in_flight
            || self.stalled.is_some_and(left_alone)
        {
            return false;
        }
        match reason {
            FlushReason::Size => jobs.len() >= settings.max_batch_size,
            FlushReason::Weight => {
                let weights = jobs.iter().map(|held| usize::from(held.job.weight));
                weights.sum::<usize>() >= settings.max_batch_weight
            }
            FlushReason::Interval => {
                let waits = |since| have_passed(settings.interval, since, now);
                self.oldest().is_some_and(waits)
            }
            FlushReason::Idle => settings.flush_when_idle && self.in_flight.is_empty(),
            FlushReason::Cost => settings.flush_cost.is_some_and(|cost| {
                let waits = jobs.iter().map(|held| at(now) - at(held.since));
                waits.sum::<Duration>() >= cost
            }),
            FlushReason::Requested => !self.flushing.is_empty() && self.stopped.is_none(),
            FlushReason::Shutdown => self.stopped.is_some(),
        }
    }

    fn is_due(&self, setup: &Setup, now: u8) -> bool {
        let holds = |reason| self.holds(setup, reason, now);
        REASONS.into_iter().any(holds)
    }

    fn is_overdue(&self, setup: &Setup, now: u8) -> bool {
        let timeout = setup.policy.shutdown_timeout;
        self.stopped
            .is_some_and(|stopped| have_passed(timeout, stopped, now))
    }

    /// Whether a batch that is due cannot get its permit.
    fn lacks_permit(&self, setup: &Setup) -> bool {
        let semaphore = &self.semaphore;
        setup.permits.is_some() && semaphore.available == 0 && !semaphore.closed
    }

    /// Whether the worker waits for something to happen, and for nothing else.
    fn is_at_rest(&self) -> bool {
        self.phase == Phase::Asleep && self.timer().is_none() && self.processing().next().is_none()
    }
}

pub fn caps_hold(setup: &Setup, state: &State) -> bool {
    !matches!(
        state.fault,
        Some(Fault::Size | Fault::Weight | Fault::Flights)
    ) && setup
        .choices
        .iter()
        .any(|choice| state.in_flight.len() <= choice.max_in_flight)
        && state.queue.len() <= setup.capacity
}

pub fn order_holds(setup: &Setup, state: &State) -> bool {
    let held = state.storage.iter().map(|held| held.job);
    let held = held.filter(|_| !setup.policy.custom_storage);
    let behind = state.queue.iter().map(|queued| queued.job);
    let behind = behind.chain(state.waiters.iter().copied());
    let order = held.chain(behind).map(|job| job.id);
    state.fault != Some(Fault::Order) && order.is_sorted()
}

pub fn every_job_is_in_one_place(_: &Setup, state: &State) -> bool {
    let mut places = [0; 8];
    let held = state.storage.iter().map(|held| held.job.id);
    let waiting = state.queue.iter().map(|queued| queued.job);
    let waiting = waiting.chain(state.waiters.iter().copied());
    let waiting = waiting.map(|job| job.id);
    let processing = state
        .processing()
        .flat_map(|batch| batch.jobs.iter().copied());
    let over = state.answered | state.leaked;
    let over = (0..8).filter(|id| over & (1 << id) != 0);
    for id in held.chain(waiting).chain(processing).chain(over) {
        places[usize::from(id)] += 1;
    }
    let submitted = usize::from(state.submitted);
    let all = places[..submitted].iter().all(|places| *places == 1);
    all && state.fault != Some(Fault::TwoAnswers)
}

pub fn no_due_job_is_left(setup: &Setup, state: &State) -> bool {
    let is_left = state.phase == Phase::Asleep && state.is_due(setup, state.now);
    !is_left || state.lacks_permit(setup)
}

pub fn no_batch_goes_early(_: &Setup, state: &State) -> bool {
    state.fault != Some(Fault::NotDue)
}

pub fn no_timer_with_nothing_pending(_: &Setup, state: &State) -> bool {
    let sleeps = matches!(state.phase, Phase::Poll | Phase::Asleep);
    // What was withdrawn is removed when the worker next receives.
    let held = !state.storage.is_empty() || !state.withdrawn_pending.is_empty();
    let waits = held || state.stopped.is_some();
    !sleeps || waits || state.timer().is_none()
}

pub fn the_timer_is_right(setup: &Setup, state: &State) -> bool {
    if state.phase != Phase::Asleep {
        return true;
    }
    // A batch that is due already, and lacks its permit, needs no timer.
    let waits = state.permit.is_waiting();
    let falls_due =
        |time: &u8| (!waits && state.is_due(setup, *time)) || state.is_overdue(setup, *time);
    state.timer() == (state.now..END_OF_TIME).find(falls_due)
}

/// A worker that has missed a wake-up would find something to do in one more turn.
pub fn no_wake_up_is_lost(setup: &Setup, state: &State) -> bool {
    if state.phase != Phase::Asleep {
        return true;
    }
    let mut again = state.clone();
    again.phase = Phase::Turn;
    again.step(setup, &mut None, &mut |_| {});
    again.phase == Phase::Poll
        && again.timer() == state.timer()
        && again.permit == state.permit
        && again.answered == state.answered
        && again.flush_calls == state.flush_calls
}

pub fn room_is_given_away(_: &Setup, state: &State) -> bool {
    let sleeps = state.phase == Phase::Asleep;
    !sleeps || state.waiters.is_empty() || state.schedule.take_limit() == 0
}

pub fn a_flush_is_answered_in_time(_: &Setup, state: &State) -> bool {
    let over = state.answered | state.leaked;
    let is_late = |accepted: u8| ((1 << accepted) - 1) & !over == 0;
    let calls = &mut state.flush_calls.iter();
    let late = calls.any(|call| !call.answered && is_late(call.together));
    let sleeps = state.phase == Phase::Asleep && state.stopped.is_none();
    state.fault != Some(Fault::FlushTooSoon) && !(sleeps && late)
}

pub fn a_stop_takes_all_up(_: &Setup, state: &State) -> bool {
    state.fault != Some(Fault::LeftInQueue)
}

pub fn a_stop_ends(setup: &Setup, state: &State) -> bool {
    let submitted = (1 << state.submitted) - 1;
    let all = (state.answered | state.leaked) == submitted
        && state.flush_calls.iter().all(|call| call.answered);
    let waits =
        state.processing().next().is_some() || state.stalled.is_some() || state.lacks_permit(setup);
    match state.phase {
        Phase::Ended { .. } => all && state.fault != Some(Fault::StopTooSoon),
        Phase::Asleep if state.stopped.is_some() => waits && !state.is_overdue(setup, state.now),
        _ => true,
    }
}

/// Whether nothing but company, a request or a stop lets a job go.
fn never(settings: &Settings) -> bool {
    settings.interval == Duration::MAX && !settings.flush_when_idle && settings.flush_cost.is_none()
}

/// With [`every_run_ends`], this is liveness: a run that ends does so here.
pub fn nothing_is_stuck(setup: &Setup, state: &State) -> bool {
    let over = state.answered | state.leaked;
    let submitted = (1 << state.submitted) - 1;
    let all = over == submitted && state.flush_calls.iter().all(|call| call.answered);
    let asked_for = !state.flushing.is_empty() || state.stopped.is_some();
    let may_wait = never(state.settings(setup)) && (!asked_for || state.stalled.is_some());
    let may_wait = may_wait || state.control.paused || state.lacks_permit(setup);
    !state.is_at_rest() || all || may_wait
}

/// Every action of the surroundings uses up a job, a request, a handle, a batch,
/// a stop, a prank, a change, a pause, a permit or time; and the worker, left alone, parks. So no run goes on
/// for ever, and where there is nothing left to do, the worker has ended.
pub fn every_run_ends(setup: &Setup, state: &State) -> bool {
    let mut actions = Vec::new();
    state.actions(setup, &mut actions);
    let ended = matches!(state.phase, Phase::Ended { .. });
    state.now < END_OF_TIME && (ended || state.fault.is_some() || !actions.is_empty())
}

pub fn the_loop_does_not_spin(setup: &Setup, state: &State) -> bool {
    let mut alone = state.clone();
    for _ in 0..LONG {
        if alone.phase != Phase::Poll && alone.phase != Phase::Turn {
            return true;
        }
        alone.step(setup, &mut None, &mut |_| {});
    }
    false
}

pub fn the_past_is_forgotten(_: &Setup, state: &State) -> bool {
    state.fault != Some(Fault::Past)
}

pub fn what_is_told_is_true(_: &Setup, state: &State) -> bool {
    !matches!(state.fault, Some(Fault::Queue | Fault::Waited))
}

pub fn nothing_goes_while_paused(_: &Setup, state: &State) -> bool {
    state.fault != Some(Fault::Paused)
}

/// Every permit is free, with a batch, or with the worker; and with the worker only
/// while a batch is due.
pub fn permits_are_where_they_belong(setup: &Setup, state: &State) -> bool {
    let with_batches = state.processing().filter(|batch| batch.permit).count();
    let with_worker = matches!(state.permit, Permit::Held | Permit::Assigned);
    let all = usize::from(state.semaphore.available) + with_batches + usize::from(with_worker);
    let needed = setup.permits.is_some();
    let in_vain = match state.phase {
        Phase::Asleep => with_worker || state.permit.is_waiting() != state.is_due(setup, state.now),
        Phase::Ended { .. } => with_worker,
        Phase::Turn | Phase::Poll => false,
    };
    all == usize::from(state.semaphore.granted)
        && state.processing().all(|batch| batch.permit == needed)
        && state.fault != Some(Fault::Permit)
        && !(needed && in_vain)
}
