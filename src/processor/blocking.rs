//! A processor on a thread of its own.

use std::error::Error;
use std::fmt;
use std::sync::mpsc;
use std::thread;

use super::BatchProcessor;
use crate::error::JobError;
use crate::job::{Receipt, Reply};
use crate::panics::guard;

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
/// it. A batch that was given up before the thread came to it is left out.
///
/// # Panics
///
/// A panic in `run` fails its batch with its message, as
/// [`JobError::Panicked`], and the state is built anew for the next one.
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
    batches: mpsc::Sender<Work<J, R>>,
}

struct Work<J, R> {
    jobs: Vec<J>,
    reply: Reply<Result<Vec<R>, BoxError>>,
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
        let (batches, queue) = mpsc::channel::<Work<J, R>>();
        let (ready, receipt): (Reply<Result<(), BoxError>>, Receipt<_>) = Reply::new();
        thread::Builder::new()
            .name("microbatch-blocking".to_owned())
            .spawn(move || {
                let mut state = match guarded(&init) {
                    Ok(state) => {
                        ready.send(Ok(Ok(())));
                        Some(state)
                    }
                    Err(error) => return ready.send(Ok(Err(error))),
                };
                for Work { jobs, reply } in queue {
                    if !reply.is_unwanted() {
                        reply.send(Ok(process(&mut state, &init, &run, jobs)));
                    }
                }
            })?;
        receipt.accepted().await??;
        Ok(Self { batches })
    }
}

/// Processes one batch, after building the state where there is none.
fn process<S, E, J, R>(
    state: &mut Option<S>,
    init: impl Fn() -> Result<S, E>,
    run: impl Fn(&mut S, Vec<J>) -> Result<Vec<R>, E>,
    jobs: Vec<J>,
) -> Result<Vec<R>, BoxError>
where
    E: Into<BoxError>,
{
    let mut ready = match state.take() {
        Some(ready) => ready,
        None => guarded(init)?,
    };
    // A state that has seen a panic is dropped with it.
    let (ready, results) = guarded(move || {
        let results = run(&mut ready, jobs).map_err(Into::into);
        Ok::<_, BoxError>((ready, results))
    })?;
    *state = Some(ready);
    results
}

/// Makes an error of a panic.
fn guarded<T, E: Into<BoxError>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, BoxError> {
    guard(call).map_err(JobError::Panicked)?.map_err(Into::into)
}

impl<J: Send + 'static, R: Send + 'static> BatchProcessor<J, R> for BlockingProcessor<J, R> {
    type Error = BoxError;

    async fn process(&self, jobs: Vec<J>) -> Result<Vec<R>, BoxError> {
        let (reply, receipt) = Reply::new();
        // Where the thread has ended, the work comes back and is dropped with
        // its reply, which says so.
        let _ = self.batches.send(Work { jobs, reply });
        receipt.accepted().await?
    }
}

impl<J, R> fmt::Debug for BlockingProcessor<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingProcessor").finish_non_exhaustive()
    }
}
