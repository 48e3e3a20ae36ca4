//! A processor on a thread of its own.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{fmt, mem, thread};

use super::BatchProcessor;
use crate::engine::panics::{Shielded, ShieldedVec, catch};
use crate::engine::reply::{self, ReplyReceiver, ReplySender};
use crate::error::JobError;

type BoxError = Box<dyn Error + Send + Sync>;

/// A processor on a thread of its own, for what must not run on async threads
/// or must not leave one thread: a `SQLite` connection, a model on a GPU.
///
/// The thread processes one batch at a time, in the order in which they come, and
/// sleeps while there is none. For several threads, make a processor for each, choose
/// between them in a closure that is the processor, and set `max_in_flight` to their
/// number. An idle flush waits until none of them has a batch, so set a short
/// `interval` as well, which is when the others get theirs.
///
/// Dropping the processor, as the end of its [`MicroBatch`](crate::MicroBatch)
/// does, lets the thread finish its current batch and end. Nothing waits for the
/// thread. A batch that is dropped before the thread starts it, by a
/// [`timeout`](super::BatchProcessorExt::timeout) or a stop, is removed from the
/// thread's queue at once, so no more batches wait for a thread that hangs than are
/// in flight. A batch that the thread has started is finished, and its results are
/// dropped.
///
/// # Panics
///
/// A panic in `run` fails its batch with its message, as
/// [`JobError::Panicked`], and the state is built anew for the next batch. No panic
/// ends the thread, not even in the drop of a job, a result or the state.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use microbatch::{BlockingProcessor, CancellationToken, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // The state never leaves its thread, so it need not be `Send`.
/// let processor = BlockingProcessor::spawn(
///     || Ok::<_, std::io::Error>(Rc::new(10)),
///     |offset, jobs: Vec<u64>| Ok(jobs.iter().map(|job| job + **offset).collect()),
/// )
/// .await?;
/// let batcher = MicroBatch::new_running(CancellationToken::new(), processor);
/// assert_eq!(batcher.submit(32).await?, 42);
/// # Ok(())
/// # }
/// ```
pub struct BlockingProcessor<J, R> {
    queue: Arc<ThreadQueue<J, R>>,
}

impl<J: Send + 'static, R: Send + 'static> BlockingProcessor<J, R> {
    /// Starts the thread and waits until `init` has built the state there.
    ///
    /// `init` is called again after a panic in `run`, when the next batch
    /// comes. If it fails then, that batch gets its error.
    ///
    /// # Errors
    ///
    /// [`SpawnError`] holds the error of `init`; [`JobError::Panicked`] if it panics; the
    /// [`std::io::Error`] of a thread that cannot be started.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the thread once `init` has returned.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{BlockingProcessor, CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let numbering = BlockingProcessor::spawn(
    ///     || Ok::<_, String>(0..), // the state: the numbers that are left
    ///     |numbers, jobs: Vec<&'static str>| {
    ///         let lines = numbers.zip(jobs).map(|(number, job)| format!("{number}: {job}"));
    ///         Ok(lines.collect())
    ///     },
    /// )
    /// .await?;
    /// let lines = MicroBatch::builder(numbering)
    ///     .flush_when_idle(true)
    ///     .build_running(CancellationToken::new())?;
    /// assert_eq!(lines.submit("first").await?, "0: first");
    /// assert_eq!(lines.submit("second").await?, "1: second");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spawn<S, E, I, F>(init: I, run: F) -> Result<Self, SpawnError>
    where
        S: 'static,
        E: Into<BoxError>,
        I: Fn() -> Result<S, E> + Send + 'static,
        F: Fn(&mut S, Vec<J>) -> Result<Vec<R>, E> + Send + 'static,
    {
        let queue = Arc::new(ThreadQueue::new());
        let thread = ThreadGuard(Arc::clone(&queue));
        // Its drop ends the thread, also if this future is dropped.
        let processor = Self { queue };
        let (ready, receiver): (ReplySender<ThreadOutcome<()>>, ReplyReceiver<_>) =
            reply::channel();
        let (init, run) = (Shielded::new(init), Shielded::new(run));
        thread::Builder::new()
            .name("microbatch-blocking".to_owned())
            .spawn(move || {
                let mut state = match catch_error(&*init) {
                    Ok(state) => {
                        let _ = catch(|| ready.send(Ok(Ok(ShieldedVec::new(Vec::new())))));
                        Some(Shielded::new(state))
                    }
                    Err(error) => return ready.send(Ok(Err(shield_error(error)))),
                };
                while let Some(QueuedBatch { jobs, reply }) = thread.0.next() {
                    let outcome = process(&mut state, &*init, &*run, jobs);
                    // This drops the outcome if the batch's future was dropped.
                    let _ = catch(|| reply.send(Ok(outcome.map_err(shield_error))));
                }
            })
            .map_err(|error| SpawnError(error.into()))?;
        let outcome = receiver.await.map_err(|error| SpawnError(error.into()))?;
        into_result(outcome).map_err(SpawnError)?;
        Ok(processor)
    }
}

/// Why [`BlockingProcessor::spawn`] failed. It displays, and has the source, of the error
/// in it.
///
/// # Examples
///
/// ```
/// use microbatch::BlockingProcessor;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let spawned = BlockingProcessor::<u8, u8>::spawn(
///     || Err::<(), _>(std::io::Error::other("no device")),
///     |(), jobs| Ok(jobs),
/// );
/// let error = spawned.await.unwrap_err();
/// assert!(error.is::<std::io::Error>());
/// assert_eq!(error.to_string(), "no device");
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SpawnError(BoxError);

impl SpawnError {
    /// Returns whether the error in it is of this type.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io;
    /// # use microbatch::{BlockingProcessor, JobError};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let spawned = BlockingProcessor::<u8, u8>::spawn(
    ///     || -> Result<(), io::Error> { panic!("no driver") },
    ///     |(), jobs| Ok(jobs),
    /// );
    /// let error = spawned.await.unwrap_err();
    /// assert!(error.is::<JobError>() && !error.is::<io::Error>());
    /// # }
    /// ```
    #[must_use]
    pub fn is<T: Error + 'static>(&self) -> bool {
        self.0.is::<T>()
    }

    /// Returns the error in it if it is of this type.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io;
    /// # use microbatch::BlockingProcessor;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let spawned = BlockingProcessor::<u8, u8>::spawn(
    ///     || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)),
    ///     |(), jobs| Ok(jobs),
    /// );
    /// let error = spawned.await.unwrap_err();
    /// let kind = error.downcast_ref().map(io::Error::kind);
    /// assert_eq!(kind, Some(io::ErrorKind::NotFound));
    /// # }
    /// ```
    #[must_use]
    pub fn downcast_ref<T: Error + 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }

    /// Returns the error in it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io;
    /// # use microbatch::BlockingProcessor;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let spawned = BlockingProcessor::<u8, u8>::spawn(
    ///     || Err::<(), _>(io::Error::other("out of memory")),
    ///     |(), jobs| Ok(jobs),
    /// );
    /// let error = spawned.await.unwrap_err().into_inner();
    /// let error: Box<io::Error> = error.downcast().expect("that is the error of `init`");
    /// assert_eq!(error.to_string(), "out of memory");
    /// # }
    /// ```
    #[must_use]
    pub fn into_inner(self) -> Box<dyn Error + Send + Sync> {
        self.0
    }
}

/// What the thread replies. The drop of each part is caught.
type ThreadOutcome<R> = Result<ShieldedVec<R>, Shielded<Option<BoxError>>>;

fn shield_error(error: BoxError) -> Shielded<Option<BoxError>> {
    Shielded::new(Some(error))
}

fn into_result<R>(outcome: ThreadOutcome<R>) -> Result<Vec<R>, BoxError> {
    match outcome {
        Ok(results) => Ok(results.into_vec()),
        Err(mut error) => Err(error.get_mut().take().expect("it is taken here alone")),
    }
}

/// Processes one batch. Builds the state first if there is none.
fn process<S, E, J, R>(
    state: &mut Option<Shielded<S>>,
    init: impl Fn() -> Result<S, E>,
    run: impl Fn(&mut S, Vec<J>) -> Result<Vec<R>, E>,
    jobs: ShieldedVec<J>,
) -> Result<ShieldedVec<R>, BoxError>
where
    E: Into<BoxError>,
{
    let mut ready = match state.take() {
        Some(ready) => ready,
        None => Shielded::new(catch_error(init)?),
    };
    // After a panic the state is dropped, but not by the unwinding of that panic.
    let results = catch(|| run(ready.get_mut(), jobs.into_vec())).map_err(JobError::Panicked)?;
    *state = Some(ready);
    catch_error(|| results).map(ShieldedVec::new)
}

/// Calls user code, and returns a panic of the call, or of the conversion of its error,
/// as an error.
fn catch_error<T, E: Into<BoxError>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, BoxError> {
    let called = catch(|| call().map_err(Into::into));
    called.map_err(JobError::Panicked)?
}

impl<J: Send + 'static, R: Send + 'static> BatchProcessor<J, R> for BlockingProcessor<J, R> {
    type Error = BoxError;

    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, BoxError>> + Send {
        // Queued here, not in the future, so that the thread gets batches in order.
        let (guard, receiver) = self.queue.push(jobs);
        async move {
            let outcome = receiver.await?;
            // Held until here: its drop removes the batch from the queue.
            drop(guard);
            into_result(outcome)
        }
    }
}

impl<J, R> Drop for BlockingProcessor<J, R> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<J, R> fmt::Debug for BlockingProcessor<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingProcessor").finish_non_exhaustive()
    }
}

/// A batch that waits for the thread.
struct QueuedBatch<J, R> {
    jobs: ShieldedVec<J>,
    reply: ReplySender<ThreadOutcome<R>>,
}

/// The batches that the thread has not started. It holds none whose future was
/// dropped, and so never more than are in flight.
struct ThreadQueue<J, R> {
    state: Mutex<ThreadQueueState<J, R>>,
    changed: Condvar,
}

struct ThreadQueueState<J, R> {
    /// By number, so that the thread takes the oldest first.
    batches: BTreeMap<u64, QueuedBatch<J, R>>,
    next_number: u64,
    closed: bool,
}

impl<J, R> ThreadQueue<J, R> {
    fn new() -> Self {
        Self {
            state: Mutex::new(ThreadQueueState {
                batches: BTreeMap::new(),
                next_number: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ThreadQueueState<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch. The drop of the guard removes it again.
    fn push(&self, jobs: Vec<J>) -> (QueuedBatchGuard<'_, J, R>, ReplyReceiver<ThreadOutcome<R>>) {
        let (reply, receiver) = reply::channel();
        let jobs = ShieldedVec::new(jobs);
        let batch = QueuedBatch { jobs, reply };
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        // If the thread has ended, the batch is dropped after the lock is released, and
        // the drop of its reply sender sends the error.
        let refused = match state.closed {
            true => Some(batch),
            false => state.batches.insert(number, batch),
        };
        drop(state);
        drop(refused);
        self.changed.notify_one();
        let queue = self;
        (QueuedBatchGuard { queue, number }, receiver)
    }

    /// Blocks until there is a batch, and takes it. Returns `None` once the queue is
    /// closed.
    fn next(&self) -> Option<QueuedBatch<J, R>> {
        let idle = |state: &mut ThreadQueueState<J, R>| state.batches.is_empty() && !state.closed;
        let state = self.changed.wait_while(self.lock(), idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        match state.closed {
            true => None,
            false => state.batches.pop_first().map(|(_, batch)| batch),
        }
    }

    /// Ends the thread after its current batch, and drops the batches in the queue.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let left = mem::take(&mut state.batches);
        drop(state);
        self.changed.notify_one();
        drop(left);
    }
}

/// Owned by the future of a batch. Its drop removes the batch from the queue.
struct QueuedBatchGuard<'a, J, R> {
    queue: &'a ThreadQueue<J, R>,
    number: u64,
}

impl<J, R> Drop for QueuedBatchGuard<'_, J, R> {
    fn drop(&mut self) {
        let removed = self.queue.lock().batches.remove(&self.number);
        // After the lock is released, because the drop of a job is user code.
        drop(removed);
    }
}

/// Owned by the thread. Its drop closes the queue, so no batch waits for a thread that
/// has ended.
struct ThreadGuard<J, R>(Arc<ThreadQueue<J, R>>);

impl<J, R> Drop for ThreadGuard<J, R> {
    fn drop(&mut self) {
        self.0.close();
    }
}
