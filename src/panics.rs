//! What to do about panics in users' code.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::{FutureExt, TryFutureExt};
use tracing::error;

/// Returns the message of a panic, and drops what it has thrown, whose drop may
/// panic in its turn: what that throws is leaked, or there would be no end.
fn message(panic: Box<dyn Any + Send>) -> Arc<str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let message = Arc::from(text.unwrap_or("no message"));
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(panic)));
    dropped.unwrap_or_else(mem::forget);
    message
}

/// Calls users' code of whose panic the caller must not die.
pub(crate) fn guard<T>(call: impl FnOnce() -> T) -> Result<T, Arc<str>> {
    catch_unwind(AssertUnwindSafe(call)).map_err(message)
}

/// Awaits users' code, as [`guard`] calls it.
pub(crate) fn guard_future<F: Future>(
    future: F,
) -> impl Future<Output = Result<F::Output, Arc<str>>> {
    AssertUnwindSafe(future).catch_unwind().map_err(message)
}

/// Drops the values one by one, whose `drop` may panic, for the micro-batcher of
/// that name.
pub(crate) fn discard<T>(values: impl IntoIterator<Item = T>, name: Option<&str>) {
    // There may be any number of values that take no room.
    if !mem::needs_drop::<T>() {
        return;
    }
    for value in values {
        if let Err(error) = guard(|| drop(value)) {
            error!(name, %error, "the drop of a job or result panicked");
        }
    }
}
