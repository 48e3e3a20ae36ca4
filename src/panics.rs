//! What to do about panics in users' code.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tracing::error;

/// Returns the message of a panic.
pub(crate) fn message(panic: &(dyn Any + Send)) -> Arc<str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    Arc::from(text.unwrap_or("no message"))
}

/// Calls users' code of whose panic the caller must not die.
pub(crate) fn guard<T>(call: impl FnOnce() -> T) -> Result<T, Arc<str>> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| message(&*panic))
}

/// Drops the values one by one, whose `drop` may panic.
pub(crate) fn discard<T>(values: impl IntoIterator<Item = T>) {
    for value in values {
        if let Err(error) = guard(|| drop(value)) {
            error!(%error, "the drop of a job or result panicked");
        }
    }
}
