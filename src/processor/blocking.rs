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
/// or may not leave one thread: a `SQLite` connection, a model on a GPU.
///
/// One thread handles one batch at a time, in the order they come; it sleeps
/// while there is none. Give several threads a processor each and a
/// `max_in_flight` in the closure that chooses between them.
///
/// Dropping the processor, as the end of its [`MicroBatch`](crate::MicroBatch)
/// does, lets the thread finish the batch in hand and end; nothing waits for
/// it. A batch that is given up before the thread comes to it, by a
/// [`timeout`](super::BatchProcessorExt::timeout) or a stop, is dropped there and
/// then, so no more batches wait for a thread that hangs than are in flight. One
/// that the thread has in hand it finishes for nobody.
///
/// # Panics
///
/// A panic in `run` fails its batch with its message, as
/// [`JobError::Panicked`], and the state is built anew for the next one. No panic
/// ends the thread, be it in the drop of a job, a result or the state.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use microbatch::{BlockingProcessor, CancellationToken, MicroBatch};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
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
    queue: Arc<Queue<J, R>>,
}

impl<J: Send + 'static, R: Send + 'static> BlockingProcessor<J, R> {
    /// Starts the thread and waits until `init` has built the state there.
    ///
    /// `init` is called again after a panic in `run`, when the next batch
    /// comes; where it fails then, that batch gets its error.
    ///
    /// # Errors
    ///
    /// The error of `init`; [`JobError::Panicked`] where it panics; the
    /// [`std::io::Error`] of a thread that cannot be started.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the thread once `init` has returned.
    pub async fn spawn<S, E, I, F>(init: I, run: F) -> Result<Self, BoxError>
    where
        S: 'static,
        E: Into<BoxError>,
        I: Fn() -> Result<S, E> + Send + 'static,
        F: Fn(&mut S, Vec<J>) -> Result<Vec<R>, E> + Send + 'static,
    {
        let queue = Arc::new(Queue::new());
        let thread = Thread(Arc::clone(&queue));
        // Its drop ends the thread, also where this future is dropped.
        let processor = Self { queue };
        let (ready, receiver): (ReplySender<Outcome<()>>, ReplyReceiver<_>) = reply::channel();
        let (init, run) = (Shielded::new(init), Shielded::new(run));
        thread::Builder::new()
            .name("microbatch-blocking".to_owned())
            .spawn(move || {
                let mut state = match guarded(&*init) {
                    Ok(state) => {
                        let _ = catch(|| ready.send(Ok(Ok(ShieldedVec::new(Vec::new())))));
                        Some(Shielded::new(state))
                    }
                    Err(error) => return ready.send(Ok(Err(shield(error)))),
                };
                while let Some(Work { jobs, reply }) = thread.0.next() {
                    let outcome = process(&mut state, &*init, &*run, jobs);
                    // What nobody waits for any more is dropped here.
                    let _ = catch(|| reply.send(Ok(outcome.map_err(shield))));
                }
            })?;
        opened(receiver.await?)?;
        Ok(processor)
    }
}

/// What the thread answers, of which each part may panic when it is dropped.
type Outcome<R> = Result<ShieldedVec<R>, Shielded<Option<BoxError>>>;

fn shield(error: BoxError) -> Shielded<Option<BoxError>> {
    Shielded::new(Some(error))
}

fn opened<R>(outcome: Outcome<R>) -> Result<Vec<R>, BoxError> {
    match outcome {
        Ok(results) => Ok(results.into_vec()),
        Err(mut error) => Err(error.get_mut().take().expect("it is taken here alone")),
    }
}

/// Processes one batch, after building the state where there is none.
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
        None => Shielded::new(guarded(init)?),
    };
    // A state that has seen a panic is dropped, and not by that panic.
    let results = catch(|| run(ready.get_mut(), jobs.into_vec())).map_err(JobError::Panicked)?;
    *state = Some(ready);
    guarded(|| results).map(ShieldedVec::new)
}

/// Makes an error of a panic, in the call or in the conversion of its error.
fn guarded<T, E: Into<BoxError>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, BoxError> {
    let called = catch(|| call().map_err(Into::into));
    called.map_err(JobError::Panicked)?
}

impl<J: Send + 'static, R: Send + 'static> BatchProcessor<J, R> for BlockingProcessor<J, R> {
    type Error = BoxError;

    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, BoxError>> + Send {
        // Queued by the call, so that batches come to the thread in order.
        let (place, receiver) = self.queue.push(jobs);
        async move {
            let outcome = receiver.await?;
            // Held until here: its drop takes the batch out of the queue.
            drop(place);
            opened(outcome)
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

struct Work<J, R> {
    jobs: ShieldedVec<J>,
    reply: ReplySender<Outcome<R>>,
}

/// The batches that the thread has not come to. It holds none whose future was
/// dropped, and so never more than are in flight.
struct Queue<J, R> {
    state: Mutex<State<J, R>>,
    changed: Condvar,
}

struct State<J, R> {
    /// By their numbers, the next first.
    batches: BTreeMap<u64, Work<J, R>>,
    /// The number of the next batch.
    number: u64,
    closed: bool,
}

impl<J, R> Queue<J, R> {
    fn new() -> Self {
        Self {
            state: Mutex::new(State {
                batches: BTreeMap::new(),
                number: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch, which its place takes out again.
    fn push(&self, jobs: Vec<J>) -> (Place<'_, J, R>, ReplyReceiver<Outcome<R>>) {
        let (reply, receiver) = reply::channel();
        let jobs = ShieldedVec::new(jobs);
        let work = Work { jobs, reply };
        let mut state = self.lock();
        let number = state.number;
        state.number += 1;
        // Dropped after the lock where the thread has ended: its reply says so.
        let refused = match state.closed {
            true => Some(work),
            false => state.batches.insert(number, work),
        };
        drop(state);
        drop(refused);
        self.changed.notify_one();
        let queue = self;
        (Place { queue, number }, receiver)
    }

    /// Blocks until there is a batch; none once the queue is closed.
    fn next(&self) -> Option<Work<J, R>> {
        let idle = |state: &mut State<J, R>| state.batches.is_empty() && !state.closed;
        let state = self.changed.wait_while(self.lock(), idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        match state.closed {
            true => None,
            false => state.batches.pop_first().map(|(_, work)| work),
        }
    }

    /// Ends the thread, if it has not ended, and drops what it has not come to.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let left = mem::take(&mut state.batches);
        drop(state);
        self.changed.notify_one();
        drop(left);
    }
}

/// The place of a batch in the queue, which is given up with its future.
struct Place<'a, J, R> {
    queue: &'a Queue<J, R>,
    number: u64,
}

impl<J, R> Drop for Place<'_, J, R> {
    fn drop(&mut self) {
        let work = self.queue.lock().batches.remove(&self.number);
        // The jobs are dropped after the lock.
        drop(work);
    }
}

/// Owned by the thread: however that ends, nobody waits for it any more.
struct Thread<J, R>(Arc<Queue<J, R>>);

impl<J, R> Drop for Thread<J, R> {
    fn drop(&mut self) {
        self.0.close();
    }
}
