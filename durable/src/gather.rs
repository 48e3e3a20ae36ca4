//! Lets a micro-batcher gather what is about to be submitted.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use microbatch::{CancellationToken, MicroBatch};

/// Starts the loop of a micro-batcher in a task that goes to the end of the runtime's
/// queue each time it is woken.
///
/// All callers of a commit come back at the same time. The first of them wakes the loop,
/// which would otherwise run next, find one job, and commit it alone while all others
/// wait. Without a timer, this makes the commits of callers in a loop twice as large, and
/// puts a drain's settlement and its next lease into one.
pub(crate) fn start<J, R>(batcher: &MicroBatch<J, R>, cancel: CancellationToken)
where
    J: Send + 'static,
    R: Send + 'static,
{
    let run = batcher.start(cancel);
    tokio::spawn(async move {
        let mut run = pin!(run);
        let mut yields = true;
        let ended = poll_fn(|cx| {
            if std::mem::replace(&mut yields, false) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            yields = true;
            run.as_mut().poll(cx)
        });
        // Whoever shuts it down is told of a timeout.
        let _ = ended.await;
    });
}
