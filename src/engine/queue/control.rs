//! What users change while the worker runs, on its way to the worker.

use std::sync::atomic::Ordering;
use std::task::Waker;

use super::{Queue, QueueState, wake};
use crate::error::Closed;
use crate::settings::Settings;

/// What users control.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control {
    pub(crate) settings: Settings,
    pub(crate) paused: bool,
}

impl<J, R> Queue<J, R> {
    pub(crate) fn control(&self) -> Control {
        self.lock().control
    }

    pub(crate) fn settings(&self) -> Settings {
        self.control().settings
    }

    /// Puts validated settings in force, and returns them.
    pub(crate) fn reconfigure(&self, mut settings: Settings) -> Result<Settings, Closed> {
        if !self.options.weighs {
            settings.max_batch_weight = usize::MAX;
        }
        let mut state = self.lock();
        if state.closed {
            return Err(Closed);
        }
        let limit = settings.max_batch_weight;
        self.max_batch_weight.store(limit, Ordering::Relaxed);
        let waker = state.change_control(|control| control.settings = settings);
        drop(state);
        waker.into_iter().for_each(wake);
        Ok(settings)
    }

    /// Pauses or resumes; does nothing once closed.
    pub(crate) fn set_paused(&self, paused: bool) {
        let mut state = self.lock();
        if state.closed || state.control.paused == paused {
            return;
        }
        let waker = state.change_control(|control| control.paused = paused);
        drop(state);
        waker.into_iter().for_each(wake);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.control().paused
    }
}

impl<J, R> QueueState<J, R> {
    /// Changes what users control, and returns the worker's waker.
    fn change_control(&mut self, change: impl FnOnce(&mut Control)) -> Option<Waker> {
        change(&mut self.control);
        self.control_changed = true;
        let waker = self.unpark();
        // Under other settings they may not share the batch of the job before them. Their
        // times are not known, but they came after the worker last received.
        self.accept_times.record(self.jobs.len(), self.received_at);
        waker
    }
}
