//! The states, as `stateright` wants them.
//!
//! Its `eventually` may miss what fails where two ways meet in one state. So
//! that everything is answered in the end is told as what holds in every state:
//! no run goes on for ever, and none stops short of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stateright::{Model, Property};

use crate::report::FlushReason;
use crate::rules;
use crate::setup::Setup;
use crate::state::{Action, Phase, State};

pub struct WorkerModel {
    pub setup: Arc<Setup>,
    pub sights: Arc<Sights>,
}

/// What was met, so that nothing holds only because it never came up.
#[derive(Default)]
pub struct Sights([AtomicUsize; 7]);

impl Sights {
    fn add(&self, reason: FlushReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self, reason: FlushReason) -> usize {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

impl Model for WorkerModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.setup)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.actions(&self.setup, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        state.act(&self.setup, action, &mut |cut| self.sights.add(cut.reason));
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! always {
            ($($rule:ident)*) => {
                vec![$(Property::always(
                    stringify!($rule),
                    |model: &Self, state| rules::$rule(&model.setup, state),
                ),)*]
            };
        }
        let mut properties = always![
            caps_hold
            order_holds
            every_job_is_in_one_place
            no_due_job_is_left
            no_batch_goes_early
            no_timer_with_nothing_pending
            the_timer_is_right
            no_wake_up_is_lost
            room_is_given_away
            a_flush_is_answered_in_time
            a_stop_takes_all_up
            a_stop_ends
            nothing_is_stuck
            every_run_ends
            the_loop_does_not_spin
            the_past_is_forgotten
            what_is_told_is_true
            nothing_goes_while_paused
            permits_are_where_they_belong
        ];
        properties.push(Property::sometimes("a_stop_drains", |_, state: &State| {
            matches!(state.phase, Phase::Ended { abandoned: None })
        }));
        properties
    }
}
