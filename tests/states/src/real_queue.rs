//! The crate's queue, brought into a state of the model.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::engine::queue::{Inbox, Queue, QueueOptions, Received, Seen};
use crate::engine::reply;
use crate::job::PendingJob;
use crate::settings::Settings;
use crate::setup::Setup;
use crate::state::{Job, State, at};

pub struct RealQueue(Queue<Job, ()>);

/// What the worker receives in a turn.
pub struct Turn {
    pub received: Received,
    pub taken: Vec<Job>,
    pub finished: Vec<u64>,
    /// How many requests to flush.
    pub requests: usize,
}

#[derive(Default)]
struct WokenFlag(AtomicBool);

impl Wake for WokenFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl RealQueue {
    pub fn new(state: &State, setup: &Setup) -> Self {
        let options = QueueOptions {
            name: None,
            capacity: setup.capacity,
            cancel_on_drop: false,
            custom_storage: false,
            weighs: true,
        };
        let queue = Self(Queue::new(options, state.schedule.policy().settings));
        queue.steer(state, *state.settings(setup));
        let mut requests = state.flush_requests.iter().peekable();
        for (at, job) in state.queue.iter().enumerate() {
            while requests.next_if(|request| request.ahead == at).is_some() {
                queue.flush();
            }
            queue.submit(job.job);
        }
        requests.for_each(|_| queue.flush());
        for job in &state.waiters {
            queue.submit(*job);
        }
        for number in &state.finished {
            queue.finish(*number);
        }
        if state.closed {
            queue.close();
        }
        if state.cancel_woken {
            queue.wake_for_cancel();
        }
        queue
    }

    /// Brings what users steer into the state.
    fn steer(&self, state: &State, settings: Settings) {
        let control = state.control;
        if control.paused {
            self.set_paused(true);
        }
        match (control.changed, control.paused) {
            (true, _) => self.reconfigure(settings),
            (false, true) => drop(self.receive(0, true)),
            (false, false) => {}
        }
    }

    pub fn reconfigure(&self, settings: Settings) {
        let _ = self.0.reconfigure(settings);
    }

    pub fn set_paused(&self, paused: bool) {
        self.0.set_paused(paused);
    }

    pub fn submit(&self, job: Job) {
        let (job, _) = PendingJob::new(job, job.weight.into());
        let _ = self.0.push(job);
    }

    pub fn flush(&self) {
        let (sender, _) = reply::channel();
        self.0.flush(sender);
    }

    pub fn finish(&self, batch: u64) {
        self.0.batch_finished(batch);
    }

    pub fn close(&self) {
        self.0.close();
    }

    pub fn wake_for_cancel(&self) {
        self.0.wake_for_cancel();
    }

    /// Has the worker receive.
    pub fn receive(&self, limit: usize, flushing: bool) -> Turn {
        let mut inbox = Inbox::default();
        // When jobs were accepted is told by the state; here the clock stands still.
        let received = self.0.receive(at(0), limit, flushing, &mut inbox);
        Turn {
            received,
            taken: inbox.jobs.iter().map(|job| *job.job()).collect(),
            finished: inbox.finished_batches,
            requests: inbox.flush_replies.len(),
        }
    }

    /// Whether the worker, which is parked over this, is woken by the event; `None` if
    /// it is not even parked.
    pub fn wakes(&self, state: &State, event: impl FnOnce(&Self)) -> Option<bool> {
        let woken = Arc::new(WokenFlag::default());
        let waker = Waker::from(Arc::clone(&woken));
        let schedule = &state.schedule;
        let seen = Seen {
            closed: schedule.is_stopping(),
            flushing: schedule.is_flushing(),
        };
        let changed = pin!(self.0.changed(seen, schedule.wants(), schedule.stride()));
        if let Poll::Ready(()) = changed.poll(&mut Context::from_waker(&waker)) {
            return None;
        }
        event(self);
        Some(woken.0.load(Ordering::Relaxed))
    }
}
