//! What the crates are held against: the floor, the bare processor, and the
//! loop that one writes by hand.

use std::cell::RefCell;
use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use tokio::sync::{mpsc, oneshot};
use tokio::task::coop;
use tokio::time::{Instant, sleep_until};

use crate::load::Load;
use crate::subject::{Subject, add_one, fail, note_batch};

type Job = (u64, oneshot::Sender<u64>);

fn answer(jobs: impl IntoIterator<Item = Job>) {
    for (job, reply) in jobs {
        // The caller waits for it.
        let _ = reply.send(job + 1);
    }
}

thread_local! {
    static LEFT: RefCell<Vec<Job>> = const { RefCell::new(Vec::new()) };
}

/// One oneshot and one scheduler turn a job, and no batching: a task that is
/// always ready answers whatever was left in a place without a lock.
#[derive(Clone)]
pub(crate) struct Floor;

impl Floor {
    pub(crate) fn start() -> Self {
        let mut jobs = Vec::new();
        let turn = poll_fn(move |cx| {
            LEFT.with_borrow_mut(|left| mem::swap(left, &mut jobs));
            answer(jobs.drain(..));
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        drop(tokio::spawn(turn));
        Self
    }
}

impl Subject for Floor {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let (reply, result) = oneshot::channel();
        LEFT.with_borrow_mut(|left| left.push((job, reply)));
        result.await.map_or_else(fail, Some)
    }
}

/// The floor where threads share the place, which then has a lock.
#[derive(Clone)]
pub(crate) struct SharedFloor(Arc<Mutex<Vec<Job>>>);

impl SharedFloor {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Mutex::new(Vec::new()));
        let left = Arc::clone(&shared);
        let mut jobs = Vec::new();
        let turn = poll_fn(move |cx| {
            mem::swap(
                &mut *left.lock().unwrap_or_else(PoisonError::into_inner),
                &mut jobs,
            );
            answer(jobs.drain(..));
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        drop(tokio::spawn(turn));
        Self(shared)
    }
}

impl Subject for SharedFloor {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let (reply, result) = oneshot::channel();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((job, reply));
        result.await.map_or_else(fail, Some)
    }
}

/// The processor and nothing else: a batch of one, at once. It never waits, so
/// it has to let the clock be seen.
#[derive(Clone)]
pub(crate) struct Bare;

impl Subject for Bare {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let result = add_one(vec![job]).pop();
        coop::consume_budget().await;
        result
    }
}

/// A channel, a `select!` between it and a timer, a task a batch.
#[derive(Clone)]
pub(crate) struct HandWritten(mpsc::Sender<Job>);

impl HandWritten {
    pub(crate) fn start(load: &Load) -> Self {
        let Load { case, interval, .. } = *load;
        let batch = case.batch;
        let (sender, mut receiver) = mpsc::channel::<Job>(case.queue);
        tokio::spawn(async move {
            let mut pending = Vec::with_capacity(batch);
            let mut timer = pin!(sleep_until(Instant::now()));
            loop {
                tokio::select! {
                    job = receiver.recv() => {
                        let Some(job) = job else { break };
                        if pending.is_empty() {
                            timer.as_mut().reset(Instant::now() + interval);
                        }
                        pending.push(job);
                        if pending.len() < batch {
                            continue;
                        }
                    }
                    () = &mut timer, if !pending.is_empty() => {}
                }
                let full = mem::replace(&mut pending, Vec::with_capacity(batch));
                tokio::spawn(async move {
                    note_batch(full.len());
                    answer(full);
                });
            }
        });
        Self(sender)
    }
}

impl Subject for HandWritten {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let (reply, result) = oneshot::channel();
        let sent = self.0.send((job, reply)).await;
        sent.map_or_else(fail, Some)?;
        result.await.map_or_else(fail, Some)
    }
}
