//! Ways for jobs to get from their callers into one batching loop, each under
//! the same minimal loop.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::load::Load;
use crate::subject::{Outcome, Subject, fail, note_batch, run as go};

/// What is compared; each also under the name with [`GREEDY`] behind it.
pub const QUEUES: [&str; 7] = [
    "tokio mpsc, try_send",
    "tokio mpsc, reserve_many",
    "batch-channel",
    "kanal",
    "flume",
    "vector under a mutex",
    "vector under a mutex, waking for a batch",
];

/// Marks the loop that does not wait for a batch to fill.
pub const GREEDY: &str = ", greedy";

struct Job {
    value: u64,
    reply: oneshot::Sender<u64>,
}

/// The callers' end.
trait Sender: Clone + Send + Sync + 'static {
    /// Puts the job into the queue, waiting for room.
    fn put(&self, job: Job) -> impl Future<Output = Option<()>> + Send;
}

/// The loop's end.
trait Receiver: Send + 'static {
    /// Moves up to `most` jobs to `jobs`, waiting until there are some: at
    /// least one, or `wanted` if the queue can tell. Nothing is lost if the
    /// future is dropped.
    fn take(
        &mut self,
        jobs: &mut Vec<Job>,
        most: usize,
        wanted: usize,
    ) -> impl Future<Output = ()> + Send;

    /// Moves up to `most` jobs that a queue has kept back because there were
    /// fewer than wanted.
    fn rest(&mut self, _jobs: &mut Vec<Job>, _most: usize) {}
}

#[derive(Clone)]
struct QueueCaller<S>(S);

impl<S: Sender> Subject for QueueCaller<S> {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let (reply, result) = oneshot::channel();
        let job = Job { value: job, reply };
        self.0.put(job).await?;
        result.await.map_or_else(fail, Some)
    }
}

/// The loop: fills a batch until it is full or its first job has waited for
/// the interval, or, when greedy, takes what there is.
async fn gather(mut receiver: impl Receiver, load: Load, greedy: bool) {
    let batch = load.case.batch;
    let mut jobs = Vec::with_capacity(batch);
    let mut timer = pin!(sleep_until(Instant::now()));
    loop {
        receiver.take(&mut jobs, batch, 1).await;
        if !greedy && jobs.len() < batch {
            timer.as_mut().reset(Instant::now() + load.interval);
        }
        while !greedy && jobs.len() < batch {
            let room = batch - jobs.len();
            tokio::select! {
                biased;
                () = receiver.take(&mut jobs, room, room) => {}
                () = &mut timer => {
                    receiver.rest(&mut jobs, room);
                    break;
                }
            }
        }
        note_batch(jobs.len());
        for job in jobs.drain(..) {
            // The caller waits for it.
            let _ = job.reply.send(job.value + 1);
        }
    }
}

fn start<S: Sender, R: Receiver>(
    (sender, receiver): (S, R),
    load: &Load,
    greedy: bool,
) -> QueueCaller<S> {
    drop(tokio::spawn(gather(receiver, *load, greedy)));
    QueueCaller(sender)
}

/// Runs the queue of that name, if there is one.
pub(crate) fn run(name: &str, load: Load) -> Option<Outcome> {
    let (name, greedy) = match name.strip_suffix(GREEDY) {
        Some(name) => (name, true),
        None => (name, false),
    };
    let queue = load.case.queue;
    Some(match name {
        "tokio mpsc, try_send" => go(load, |load| start(try_send(queue), load, greedy)),
        "tokio mpsc, reserve_many" => go(load, |load| start(reserve_many(queue), load, greedy)),
        "batch-channel" => go(load, |load| start(batch_channel(queue), load, greedy)),
        "kanal" => go(load, |load| start(kanal(queue), load, greedy)),
        "flume" => go(load, |load| start(flume(queue), load, greedy)),
        "vector under a mutex" => go(load, |load| start(vector(queue, false), load, greedy)),
        "vector under a mutex, waking for a batch" => {
            go(load, |load| start(vector(queue, true), load, greedy))
        }
        _ => return None,
    })
}

// Tokio's channel.

#[derive(Clone)]
struct TrySend(mpsc::Sender<Job>);

#[derive(Clone)]
struct ReserveMany(mpsc::Sender<Job>);

fn try_send(queue: usize) -> (TrySend, mpsc::Receiver<Job>) {
    let (sender, receiver) = mpsc::channel(queue);
    (TrySend(sender), receiver)
}

fn reserve_many(queue: usize) -> (ReserveMany, mpsc::Receiver<Job>) {
    let (sender, receiver) = mpsc::channel(queue);
    (ReserveMany(sender), receiver)
}

impl Sender for TrySend {
    async fn put(&self, job: Job) -> Option<()> {
        match self.0.try_send(job) {
            Ok(()) => Some(()),
            Err(mpsc::error::TrySendError::Full(job)) => self.0.send(job).await.ok(),
            Err(mpsc::error::TrySendError::Closed(_)) => None,
        }
    }
}

impl Sender for ReserveMany {
    async fn put(&self, job: Job) -> Option<()> {
        self.0.reserve_many(1).await.ok()?.next()?.send(job);
        Some(())
    }
}

impl Receiver for mpsc::Receiver<Job> {
    async fn take(&mut self, jobs: &mut Vec<Job>, most: usize, _: usize) {
        self.recv_many(jobs, most).await;
    }
}

// batch-channel, whose receiver fills a vector of its own.

struct BatchChannel {
    receiver: batch_channel::Receiver<Job>,
    taken: Vec<Job>,
}

fn batch_channel(queue: usize) -> (batch_channel::Sender<Job>, BatchChannel) {
    let (sender, receiver) = batch_channel::bounded(queue);
    let taken = Vec::new();
    (sender, BatchChannel { receiver, taken })
}

impl Sender for batch_channel::Sender<Job> {
    async fn put(&self, job: Job) -> Option<()> {
        self.send(job).await.ok()
    }
}

impl Receiver for BatchChannel {
    async fn take(&mut self, jobs: &mut Vec<Job>, most: usize, _: usize) {
        self.receiver.recv_vec(most, &mut self.taken).await;
        jobs.append(&mut self.taken);
    }
}

// kanal.

fn kanal(queue: usize) -> (kanal::AsyncSender<Job>, kanal::AsyncReceiver<Job>) {
    kanal::bounded_async(queue)
}

impl Sender for kanal::AsyncSender<Job> {
    async fn put(&self, job: Job) -> Option<()> {
        let mut job = Some(job);
        if !self.try_send_option(&mut job).ok()? {
            self.send(job?).await.ok()?;
        }
        Some(())
    }
}

impl Receiver for kanal::AsyncReceiver<Job> {
    async fn take(&mut self, jobs: &mut Vec<Job>, most: usize, _: usize) {
        jobs.extend(self.recv().await.ok());
        for _ in 1..most {
            match self.try_recv() {
                Ok(Some(job)) => jobs.push(job),
                _ => break,
            }
        }
    }
}

// flume.

fn flume(queue: usize) -> (flume::Sender<Job>, flume::Receiver<Job>) {
    flume::bounded(queue)
}

impl Sender for flume::Sender<Job> {
    async fn put(&self, job: Job) -> Option<()> {
        match self.try_send(job) {
            Ok(()) => Some(()),
            Err(flume::TrySendError::Full(job)) => self.send_async(job).await.ok(),
            Err(flume::TrySendError::Disconnected(_)) => None,
        }
    }
}

impl Receiver for flume::Receiver<Job> {
    async fn take(&mut self, jobs: &mut Vec<Job>, most: usize, _: usize) {
        jobs.extend(self.recv_async().await.ok());
        jobs.extend(self.try_iter().take(most - 1));
    }
}

// A vector under a short lock, as src/engine/queue.rs has it: a job that finds no
// room becomes a waiter, and the loop moves waiters into freed room.

struct Vector {
    queue: usize,
    /// Whether the loop sleeps until there are as many jobs as it wants, and
    /// not just until there is one.
    counts: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    waiters: VecDeque<Job>,
    asleep: Option<(Waker, usize)>,
}

type Shared = Arc<Vector>;

fn vector(queue: usize, counts: bool) -> (Shared, Shared) {
    let vector = Arc::new(Vector {
        queue,
        counts,
        state: Mutex::default(),
    });
    (Arc::clone(&vector), vector)
}

impl Vector {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_up_to(&self, most: usize, jobs: &mut Vec<Job>, state: &mut State) {
        if jobs.is_empty() && state.jobs.len() <= most {
            mem::swap(jobs, &mut state.jobs);
        } else {
            let most = most.min(state.jobs.len());
            jobs.extend(state.jobs.drain(..most));
        }
        let room = (self.queue - state.jobs.len()).min(state.waiters.len());
        state.jobs.extend(state.waiters.drain(..room));
    }
}

impl Sender for Shared {
    async fn put(&self, job: Job) -> Option<()> {
        let mut state = self.lock();
        if state.jobs.len() == self.queue {
            state.waiters.push_back(job);
            return Some(());
        }
        state.jobs.push(job);
        let held = state.jobs.len();
        let waker = state.asleep.take_if(|(_, wanted)| held >= *wanted);
        drop(state);
        if let Some((waker, _)) = waker {
            waker.wake();
        }
        Some(())
    }
}

impl Receiver for Shared {
    async fn take(&mut self, jobs: &mut Vec<Job>, most: usize, wanted: usize) {
        let wanted = if self.counts {
            wanted.min(self.queue)
        } else {
            1
        };
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.jobs.len() < wanted {
                state.asleep = Some((cx.waker().clone(), wanted));
                return Poll::Pending;
            }
            self.move_up_to(most, jobs, &mut state);
            Poll::Ready(())
        })
        .await;
    }

    fn rest(&mut self, jobs: &mut Vec<Job>, most: usize) {
        let mut state = self.lock();
        self.move_up_to(most, jobs, &mut state);
    }
}
