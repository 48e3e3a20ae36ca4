//! The channel that answers a job: a oneshot whose sender always sends.
//!
//! # Invariants
//!
//! - A [`ReplySender`] sends exactly once: by `send`, or by its drop, which sends
//!   [`JobError::Abandoned`]. So every receiver resolves, however its job is lost.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::oneshot;
use super::panics::catch;
use crate::error::JobError;

/// The sending half, which travels with the job.
pub(crate) struct ReplySender<R>(Option<oneshot::Sender<Result<R, JobError>>>);

/// The receiving half. Resolves once; pending for ever if polled again.
pub(crate) struct ReplyReceiver<R>(oneshot::Receiver<Result<R, JobError>>);

pub(crate) fn channel<R>() -> (ReplySender<R>, ReplyReceiver<R>) {
    let (sender, receiver) = oneshot::channel();
    (ReplySender(Some(sender)), ReplyReceiver(receiver))
}

impl<R> ReplySender<R> {
    /// Sends the reply. The receiver's waker may panic, and so may the drop of a
    /// reply whose receiver was dropped.
    #[inline]
    pub(crate) fn send(mut self, reply: Result<R, JobError>) {
        if let Some(sender) = self.0.take() {
            sender.send(reply);
        }
    }

    /// Whether the receiver was dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl<R> Drop for ReplySender<R> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = catch(|| sender.send(Err(JobError::Abandoned)));
        }
    }
}

/// Sends all replies, even if some wakers or drops panic, and returns the message of
/// a panic.
pub(crate) fn send_all<R>(
    replies: impl IntoIterator<Item = (ReplySender<R>, Result<R, JobError>)>,
) -> Option<Arc<str>> {
    let mut replies = replies.into_iter();
    let mut panicked = None;
    while let Err(message) = catch(|| {
        for (sender, reply) in replies.by_ref() {
            sender.send(reply);
        }
    }) {
        panicked = Some(message);
    }
    panicked
}

impl<R> ReplyReceiver<R> {
    /// Whether the reply was sent or taken.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    /// Whether the reply was taken.
    pub(crate) fn is_terminated(&self) -> bool {
        self.0.is_terminated()
    }

    /// Blocks the thread until the reply is sent; `None` if it was taken.
    ///
    /// # Panics
    ///
    /// Within an asynchronous context.
    pub(crate) fn blocking_recv(self) -> Option<Result<R, JobError>> {
        self.0.blocking_recv()
    }
}

impl<R> Future for ReplyReceiver<R> {
    type Output = Result<R, JobError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}
