//! What to do about panics in users' code.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tracing::error;

/// Returns the message of a panic.
pub(crate) fn message(panic: Box<dyn Any + Send>) -> Arc<str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let message = Arc::from(text.unwrap_or("no message"));
    bury(panic);
    message
}

/// Drops what a panic has thrown, whose drop may panic in its turn: what that
/// throws is leaked, or there would be no end.
pub(crate) fn bury(panic: Box<dyn Any + Send>) {
    let buried = catch_unwind(AssertUnwindSafe(|| drop(panic)));
    buried.unwrap_or_else(mem::forget);
}

/// Calls users' code of whose panic the caller must not die.
pub(crate) fn guard<T>(call: impl FnOnce() -> T) -> Result<T, Arc<str>> {
    catch_unwind(AssertUnwindSafe(call)).map_err(message)
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
