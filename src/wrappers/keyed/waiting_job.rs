//! A job of a key without a micro-batcher that waits for room over all keys. Only when
//! there is room does the key get its micro-batcher, so a flood of new keys costs no
//! more than its jobs.

use std::hash::Hash;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::key_map::KeyMap;
use super::processor::KeyedJob;
use crate::engine::panics::{catch, discard};
use crate::engine::queue::{JobQueue, LimitWaiter, Queue, WaiterId};
use crate::engine::reply::{self, ReplySender};
use crate::engine::withdrawal::Withdrawal;
use crate::error::JobError;
use crate::handle::{HandleParts, JobHandle};
use crate::wrappers::id_map::Id;

pub(super) struct WaitingJob<K, J, R> {
    key_map: Arc<KeyMap<K, KeyedJob<K, J>, R>>,
    number: WaiterId,
    state: Mutex<WaitingState<K, J, R>>,
}

struct WaitingState<K, J, R> {
    phase: Phase<K, J, R>,
    /// The task that waits for acceptance.
    waker: Option<Waker>,
}

enum Phase<K, J, R> {
    Waiting(Request<K, J, R>),
    /// Being submitted. The handle may be dropped meanwhile.
    Submitting,
    Submitted(Submitted<K, J, R>),
    Refused(JobError),
    /// The handle was dropped.
    Left,
}

struct Request<K, J, R> {
    id: Id<K>,
    job: J,
    reply: ReplySender<R>,
}

/// Where the job is now.
struct Submitted<K, J, R> {
    queue: Arc<Queue<KeyedJob<K, J>, R>>,
    /// Set if the job waits for room in the queue of its key.
    waiter: Option<WaiterId>,
    withdrawal: Option<Arc<Withdrawal>>,
}

impl<K, J, R> Clone for Submitted<K, J, R> {
    fn clone(&self) -> Self {
        Self {
            queue: Arc::clone(&self.queue),
            waiter: self.waiter,
            withdrawal: self.withdrawal.clone(),
        }
    }
}

impl<K, J, R> WaitingJob<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// Submits the job when there is room.
    pub(super) fn submit(
        key_map: &Arc<KeyMap<K, KeyedJob<K, J>, R>>,
        id: Id<K>,
        job: J,
    ) -> JobHandle<R> {
        let limit = key_map.limit();
        let number = limit.next_number();
        let (sender, reply) = reply::channel();
        let request = Request {
            id,
            job,
            reply: sender,
        };
        let waiting = Arc::new(Self {
            key_map: Arc::clone(key_map),
            number,
            state: Mutex::new(WaitingState {
                phase: Phase::Waiting(request),
                waker: None,
            }),
        });
        let waiter = || Some(Arc::clone(&waiting) as Arc<dyn LimitWaiter>);
        if limit.take_or_wait(number, waiter) && !waiting.admit() {
            limit.release(1);
        }
        if limit.is_closed() {
            waiting.refuse();
        }
        let parts = HandleParts {
            reply,
            // Has the handle call `withdraw` also after acceptance.
            withdrawal: Some(Arc::new(Withdrawal::new(0, None))),
        };
        parts.waiting(waiting, number)
    }

    fn lock(&self) -> MutexGuard<'_, WaitingState<K, J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the phase if the job waits, and returns the request.
    fn leave_waiting(&self, to: Phase<K, J, R>) -> Option<Request<K, J, R>> {
        let mut state = self.lock();
        match mem::replace(&mut state.phase, to) {
            Phase::Waiting(request) => Some(request),
            other => {
                state.phase = other;
                None
            }
        }
    }

    /// Submits the job to its key, and returns where it is then.
    fn submit_to_key(&self, request: Request<K, J, R>) -> Result<Submitted<K, J, R>, JobError> {
        let Request { id, job, reply } = request;
        let active = match self.key_map.get_or_start(id) {
            Ok(active) => active,
            Err(error) => {
                let refused = error.clone();
                let _ = catch(|| reply.send(Err(refused)));
                discard([job], None);
                return Err(error);
            }
        };
        let job = KeyedJob::new(job, active.guard);
        let (waiter, withdrawal) = active.micro_batch.submit_with_room(job, reply)?;
        Ok(Submitted {
            queue: Arc::clone(active.micro_batch.queue()),
            waiter,
            withdrawal,
        })
    }

    fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            let _ = catch(|| waker.wake());
        }
    }
}

impl<K, J, R> LimitWaiter for WaitingJob<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    fn admit(&self) -> bool {
        let Some(request) = self.leave_waiting(Phase::Submitting) else {
            return false;
        };
        let submitted = self.submit_to_key(request);
        let used = matches!(&submitted, Ok(Submitted { waiter: None, .. }));
        let mut state = self.lock();
        let left = matches!(state.phase, Phase::Left);
        if !left {
            state.phase = match submitted.clone() {
                Ok(submitted) => Phase::Submitted(submitted),
                Err(error) => Phase::Refused(error),
            };
        }
        drop(state);
        match submitted {
            Ok(submitted) if left => submitted.leave(),
            _ => self.wake(),
        }
        used
    }

    fn is_job(&self) -> bool {
        true
    }

    fn refuse(&self) {
        let Some(Request { id, job, reply }) = self.leave_waiting(Phase::Refused(JobError::Closed))
        else {
            return;
        };
        self.key_map.count_refused();
        let _ = catch(|| reply.send(Err(JobError::Closed)));
        discard([job], None);
        drop(id);
        self.wake();
    }
}

impl<K, J, R> JobQueue for WaitingJob<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    fn poll_accepted(&self, _: WaiterId, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let submitted = match &state.phase {
            Phase::Waiting(_) | Phase::Submitting => {
                let last = state.waker.replace(waker);
                drop(state);
                discard(last, None);
                return Poll::Pending;
            }
            Phase::Refused(error) => return Poll::Ready(Err(error.clone())),
            Phase::Left => return Poll::Ready(Err(JobError::Closed)),
            Phase::Submitted(submitted) => submitted.clone(),
        };
        drop(state);
        match submitted.waiter {
            None => Poll::Ready(Ok(())),
            Some(id) => submitted.queue.poll_accepted(id, cx),
        }
    }

    fn leave(&self, _: WaiterId) -> bool {
        self.handle_dropped();
        true
    }

    fn withdraw(&self, _: &Arc<Withdrawal>) {
        self.handle_dropped();
    }
}

impl<K, J, R> WaitingJob<K, J, R>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    /// Removes the job if it waits, and withdraws it if the options say so.
    fn handle_dropped(&self) {
        let mut state = self.lock();
        let phase = mem::replace(&mut state.phase, Phase::Left);
        drop(state);
        match phase {
            Phase::Waiting(request) => {
                let entry = self.key_map.limit().leave(self.number);
                self.key_map.count_left();
                discard([request.job], None);
                drop(request.reply);
                drop(entry);
            }
            Phase::Submitted(submitted) => submitted.leave(),
            Phase::Submitting | Phase::Refused(_) | Phase::Left => {}
        }
    }
}

impl<K, J, R> Submitted<K, J, R>
where
    K: Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
{
    fn leave(&self) {
        if self.waiter.is_some_and(|id| self.queue.leave(id)) {
            return;
        }
        if let Some(withdrawal) = &self.withdrawal {
            self.queue.withdraw(withdrawal);
        }
    }
}
