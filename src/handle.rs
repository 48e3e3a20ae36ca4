//! The future of one job's result, and what its drop does to the job.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::engine::queue::{JobQueue, WaiterId};
use crate::engine::reply::{self, ReplyReceiver};
use crate::engine::withdrawal::Withdrawal;
use crate::error::JobError;

/// Resolves, exactly once, to the job's own result.
///
/// It waits for room in the queue, if there was none at
/// [`submit`](crate::MicroBatch::submit), then for the job's batch to be flushed, and
/// then for the processor.
///
/// Dropping the handle of an accepted job leaves the job to be processed, or
/// withdraws it under
/// [`cancel_on_drop`](crate::MicroBatchBuilder::cancel_on_drop). Dropping the
/// handle of a job that still waits for room always withdraws it.
///
/// A handle whose result is there resolves without consuming Tokio's cooperative
/// budget, so one task may collect any number of handles, in any kind of loop, at a
/// constant cost for each.
///
/// # Errors
///
/// Every [`JobError`]; each says whether the job was accepted.
///
/// # Panics
///
/// Polled again after it has resolved, like most futures.
///
/// # Cancel safety
///
/// Awaiting `&mut handle`, in a `select!` or under a timeout, loses nothing:
/// neither the result nor the job's position among those that wait for room.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use microbatch::{CancellationToken, JobHandle, MicroBatch};
/// use tokio::time::timeout;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let slow = MicroBatch::new_running(CancellationToken::new(), |jobs: Vec<u8>| async move {
/// #     tokio::time::sleep(Duration::from_secs(3)).await;
/// #     Ok::<_, String>(jobs)
/// # });
/// let mut handle: JobHandle<u8> = slow.submit(7);
/// assert!(timeout(Duration::from_secs(2), &mut handle).await.is_err());
/// // Tell the client that it takes longer, and go on.
/// assert_eq!(handle.await?, 7);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping the handle loses the result and, where the queue is full, the job"]
pub struct JobHandle<R> {
    reply: ReplyReceiver<R>,
    /// `None` if the job is accepted and cannot be withdrawn.
    acceptance: Option<Acceptance>,
}

/// Whether the job is accepted, and what the drop of its handle does.
enum Acceptance {
    /// It waits for room, or is accepted and can be withdrawn.
    Guarded(HandleGuard),
    /// It will never be accepted.
    Refused(JobError),
}

/// Its drop does what the drop of the handle does to a job without a reply: a job that
/// waits for room leaves the waiters, an accepted one is withdrawn.
struct HandleGuard {
    queue: Arc<dyn JobQueue>,
    /// Set until the job is known to be accepted.
    waiter: Option<WaiterId>,
    /// Set under `cancel_on_drop`.
    withdrawal: Option<Arc<Withdrawal>>,
    replied: bool,
}

impl Drop for HandleGuard {
    fn drop(&mut self) {
        if self.replied || self.waiter.is_some_and(|waiter| self.queue.leave(waiter)) {
            return;
        }
        if let Some(withdrawal) = &self.withdrawal {
            self.queue.withdraw(withdrawal);
        }
    }
}

/// What a handle is made of once its job was submitted.
pub(crate) struct HandleParts<R> {
    pub(crate) reply: ReplyReceiver<R>,
    pub(crate) withdrawal: Option<Arc<Withdrawal>>,
}

impl<R> HandleParts<R> {
    /// Returns the handle of an accepted job.
    #[inline]
    pub(crate) fn accepted<Q: JobQueue + 'static>(self, queue: &Arc<Q>) -> JobHandle<R> {
        match self.withdrawal {
            None => JobHandle::from_reply(self.reply),
            Some(_) => self.guarded(Arc::clone(queue) as Arc<dyn JobQueue>, None),
        }
    }

    /// Returns the handle of a job that waits for room.
    pub(crate) fn waiting(self, queue: Arc<dyn JobQueue>, waiter: WaiterId) -> JobHandle<R> {
        self.guarded(queue, Some(waiter))
    }

    fn guarded(self, queue: Arc<dyn JobQueue>, waiter: Option<WaiterId>) -> JobHandle<R> {
        JobHandle {
            reply: self.reply,
            acceptance: Some(Acceptance::Guarded(HandleGuard {
                queue,
                waiter,
                withdrawal: self.withdrawal,
                replied: false,
            })),
        }
    }
}

impl<R> JobHandle<R> {
    /// Returns the handle of a job that cannot be withdrawn.
    pub(crate) fn from_reply(reply: ReplyReceiver<R>) -> Self {
        Self {
            reply,
            acceptance: None,
        }
    }

    /// Returns the handle of a job that was not accepted.
    pub(crate) fn refused(error: JobError) -> Self {
        let (sender, reply) = reply::channel();
        sender.send(Err(error.clone()));
        Self {
            reply,
            acceptance: Some(Acceptance::Refused(error)),
        }
    }

    /// Waits until the job is accepted, and not for its result: fire and forget, with
    /// backpressure. Returns at once if the job was accepted before.
    ///
    /// # Errors
    ///
    /// [`JobError::Closed`] or [`JobError::TooHeavy`] where the job will never
    /// be accepted, or [`JobError::Panicked`] where the weight function
    /// panicked. Awaiting the handle afterwards gives the same error.
    ///
    /// # Cancel safety
    ///
    /// The handle keeps the job's position among those that wait for room.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), JobError> {
    /// # let rows = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |rows: Vec<u64>| async move { Ok::<_, String>(rows) },
    /// # );
    /// for row in 0..1000 {
    ///     rows.submit(row).accepted().await?; // never more than the queue holds
    /// }
    /// rows.flush().await;
    /// assert_eq!(rows.stats().completed, 1000);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn accepted(&mut self) -> Result<(), JobError> {
        let guard = match &mut self.acceptance {
            None => return Ok(()),
            Some(Acceptance::Refused(error)) => return Err(error.clone()),
            Some(Acceptance::Guarded(guard)) => guard,
        };
        let Some(waiter) = guard.waiter else {
            return Ok(());
        };
        let accepted = poll_fn(|cx| guard.queue.poll_accepted(waiter, cx)).await;
        guard.waiter = None;
        if let Err(error) = &accepted {
            self.acceptance = Some(Acceptance::Refused(error.clone()));
        } else if guard.withdrawal.is_none() {
            self.acceptance = None;
        }
        accepted
    }

    /// Returns whether the handle would resolve at once.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// let [first, second, third, fourth] = [1, 2, 3, 4].map(|job| echo.submit(job));
    /// assert_eq!(first.await?, 1);
    /// assert!(second.is_finished() && third.is_finished()); // of the same batch
    /// assert!(!fourth.is_finished());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.reply.is_ready()
    }

    /// Blocks the current thread until there is a result. For threads outside any
    /// runtime.
    ///
    /// # Errors
    ///
    /// As for awaiting the handle.
    ///
    /// # Panics
    ///
    /// Within an asynchronous context, as everything in Tokio that blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, JobError, MicroBatch};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), JobError> {
    /// # let double = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u64>| async move { Ok::<_, String>(jobs.iter().map(|job| job * 2).collect()) },
    /// # );
    /// let thread = std::thread::spawn(move || double.submit(21).blocking_wait());
    /// # let thread = tokio::task::spawn_blocking(move || thread.join()).await.expect("joined");
    /// assert_eq!(thread.expect("no panic")?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn blocking_wait(self) -> Result<R, JobError> {
        let Self {
            reply,
            mut acceptance,
        } = self;
        let reply = reply.blocking_recv();
        disarm(&mut acceptance);
        reply.expect("a `JobHandle` was awaited after it had resolved")
    }
}

/// Disarms the guard of a job that has its reply.
#[inline]
fn disarm(acceptance: &mut Option<Acceptance>) {
    if let Some(Acceptance::Guarded(guard)) = acceptance {
        guard.replied = true;
    }
}

impl<R> Future for JobHandle<R> {
    type Output = Result<R, JobError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A reply is always sent, so it is missing only if it was taken.
        assert!(
            !self.reply.is_terminated(),
            "a `JobHandle` was polled after it had resolved"
        );
        let reply = ready!(Pin::new(&mut self.reply).poll(cx));
        disarm(&mut self.acceptance);
        Poll::Ready(reply)
    }
}

impl<R> fmt::Debug for JobHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.acceptance {
            _ if self.is_finished() => "finished",
            Some(Acceptance::Guarded(guard)) if guard.waiter.is_some() => "waiting for room",
            _ => "accepted",
        };
        f.debug_tuple("JobHandle").field(&state).finish()
    }
}
