//! Panics of users' code, caught.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

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
