//! Panics of users' code, caught.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// Calls user code. Returns the message of a panic.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(panic_message)
}

/// Returns the message of a panic, and drops the rest of it.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let message = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => (*message).to_owned(),
        (_, Some(message)) => message.clone(),
        _ => "no message".to_owned(),
    };
    // The drop of a value that was thrown may panic in turn.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(second);
    }
    message
}

/// Awaits a call of user code. Returns the message of a panic, after which the future is
/// not polled again.
pub(crate) async fn catch_async<F: Future>(call: impl FnOnce() -> F) -> Result<F::Output, String> {
    let mut call = pin!(async move { call().await });
    poll_fn(|cx| match catch(|| call.as_mut().poll(cx)) {
        Ok(poll) => poll.map(Ok),
        Err(message) => Poll::Ready(Err(message)),
    })
    .await
}
