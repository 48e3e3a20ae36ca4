//! The real intake, brought into a state of the model.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::intake::{Intake, Known, News};
use crate::job::{PendingJob, Reply};
use crate::state::{Job, State, at};

pub struct Desk(Intake<Job, ()>);

/// What the loop gets at a look.
pub struct Look {
    pub news: News,
    pub taken: Vec<Job>,
    pub finished: Vec<u64>,
    /// How many requests to flush.
    pub requests: usize,
}

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Desk {
    pub fn new(state: &State, capacity: usize) -> Self {
        let desk = Self(Intake::new(None, capacity, false, false));
        let mut marks = state.marks.iter().peekable();
        for (at, job) in state.queue.iter().enumerate() {
            while marks.next_if(|mark| mark.ahead == at).is_some() {
                desk.flush();
            }
            desk.submit(job.job);
        }
        marks.for_each(|_| desk.flush());
        for job in &state.line {
            desk.submit(*job);
        }
        for number in &state.finished {
            desk.finish(*number);
        }
        if state.closed {
            desk.close();
        }
        if state.nudged {
            desk.nudge();
        }
        desk
    }

    pub fn submit(&self, job: Job) {
        let (job, _) = PendingJob::new(job, job.weight.into());
        let _ = self.0.push(job);
    }

    pub fn flush(&self) {
        let (done, _) = Reply::new();
        self.0.flush(done);
    }

    pub fn finish(&self, batch: u64) {
        self.0.finished(batch);
    }

    pub fn close(&self) {
        self.0.close();
    }

    pub fn nudge(&self) {
        self.0.nudge();
    }

    /// Has the loop look.
    pub fn look(&self, room: usize, flushing: bool) -> Look {
        let (mut inbox, mut finished, mut requests) = (VecDeque::new(), Vec::new(), Vec::new());
        let requested = (!flushing).then_some(&mut requests);
        // When jobs were accepted is told by the state; here the clock stands still.
        let (now, mut arrivals) = (at(0), Vec::new());
        let news = self.0.look(
            now,
            room,
            requested,
            &mut inbox,
            &mut arrivals,
            &mut finished,
        );
        Look {
            news,
            taken: inbox.iter().map(|job| *job.job()).collect(),
            finished,
            requests: requests.len(),
        }
    }

    /// Whether the loop, which goes to sleep over this, is woken by the event;
    /// `None` if it does not even fall asleep.
    pub fn wakes(&self, state: &State, event: impl FnOnce(&Self)) -> Option<bool> {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let known = Known {
            closed: state.pending.is_stopping(),
            flushing: state.pending.is_flushing(),
        };
        let stride = state.pending.stride();
        let changed = pin!(self.0.changed(known, state.pending.wants(), stride));
        if let Poll::Ready(()) = changed.poll(&mut Context::from_waker(&waker)) {
            return None;
        }
        event(self);
        Some(bell.0.load(Ordering::Relaxed))
    }
}
