//! Catches panics of user code: processors, hooks, storages, wakers, the drops of
//! jobs and results, and the subscribers of `tracing`.
//!
//! # Invariants
//!
//! - User code runs only inside [`catch`], or inside what is built on it here. So its
//!   panic neither ends the worker nor loses what other callers are owed.

use std::any::Any;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tracing::error;

/// Returns the message of a panic and drops its payload. If that drop panics too,
/// the second payload is leaked: dropping it could panic without end.
fn message(panic: Box<dyn Any + Send>) -> Arc<str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let message = Arc::from(text.unwrap_or("no message"));
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(panic)));
    dropped.unwrap_or_else(mem::forget);
    message
}

/// Calls user code and returns the message of its panic, if it panics.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> Result<T, Arc<str>> {
    catch_unwind(AssertUnwindSafe(call)).map_err(message)
}

/// Continues a panic that [`catch`] caught, so that what calls a decorator sees a panic
/// and not an error. The panic hook ran for the first panic and does not run again.
pub(crate) fn rethrow(message: Arc<str>) -> ! {
    resume_unwind(Box::new(message.to_string()))
}

/// Calls `tracing`. A panic of the subscriber loses the event and nothing else.
pub(crate) fn trace(call: impl FnOnce()) {
    let _ = catch(call);
}

/// Drops the values one by one and logs every panic, with the name of the
/// micro-batcher.
pub(crate) fn discard<T>(values: impl IntoIterator<Item = T>, name: Option<&str>) {
    // There may be any number of zero-sized values.
    if !mem::needs_drop::<T>() {
        return;
    }
    for value in values {
        if let Err(error) = catch(|| drop(value)) {
            trace(|| error!(name, %error, "the drop of a job or result panicked"));
        }
    }
}

/// A user value whose drop is caught wherever it happens.
#[derive(Debug)]
pub(crate) struct Shielded<T>(Option<T>);

impl<T> Shielded<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is taken by the drop alone")
    }
}

impl<T> Deref for Shielded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken by the drop alone")
    }
}

impl<T> Drop for Shielded<T> {
    fn drop(&mut self) {
        discard(self.0.take(), None);
    }
}

/// User values, whose drops are caught one by one wherever they are dropped.
pub(crate) struct ShieldedVec<T>(Vec<T>);

impl<T> ShieldedVec<T> {
    pub(crate) fn new(values: Vec<T>) -> Self {
        Self(values)
    }

    pub(crate) fn into_vec(mut self) -> Vec<T> {
        mem::take(&mut self.0)
    }
}

impl<T: Clone> ShieldedVec<T> {
    /// Clones the values. If a clone panics, the clones before it are dropped.
    #[cfg(feature = "retry")]
    pub(crate) fn copy(&self) -> Vec<T> {
        let mut copies = Self::new(Vec::with_capacity(self.len()));
        for value in &**self {
            copies.push(value.clone());
        }
        copies.into_vec()
    }
}

impl<T> Deref for ShieldedVec<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> DerefMut for ShieldedVec<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<T> Drop for ShieldedVec<T> {
    fn drop(&mut self) {
        discard(mem::take(&mut self.0), None);
    }
}

/// A call of asynchronous user code. Resolves to its output, or to the message of
/// a panic: in the call, in the future or in the drop of the future.
///
/// The future is boxed as soon as it is returned, so whatever awaits a `Call` stays
/// small.
pub(crate) struct Call<F> {
    /// The box is reused by later calls. `None` if there is nothing to poll.
    future: Option<Pin<Box<Option<F>>>>,
    panicked: Option<Arc<str>>,
}

impl<F: Future> Call<F> {
    /// Makes the call at once.
    pub(crate) fn new(make: impl FnOnce() -> F) -> Self {
        match catch(|| Box::pin(Some(make()))) {
            Ok(future) => Self {
                future: Some(future),
                panicked: None,
            },
            Err(message) => Self {
                future: None,
                panicked: Some(message),
            },
        }
    }

    /// Makes another call at once, in the box of a finished one.
    pub(crate) fn again(&mut self, make: impl FnOnce() -> F) {
        let Some(future) = &mut self.future else {
            *self = Self::new(make);
            return;
        };
        self.panicked = catch(|| future.as_mut().set(Some(make()))).err();
    }
}

impl<F: Future> Future for Call<F> {
    type Output = Result<F::Output, Arc<str>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(message) = this.panicked.take() {
            return Poll::Ready(Err(message));
        }
        let Some(boxed) = &mut this.future else {
            return Poll::Pending;
        };
        let poll = || match boxed.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        };
        let output = match catch(poll) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(message) => Err(message),
        };
        // The output stands, whatever the drop of the future does.
        if catch(|| boxed.set(None)).is_err() {
            this.discard();
        }
        Poll::Ready(output)
    }
}

impl<F> Call<F> {
    fn discard(&mut self) {
        discard(self.future.take(), None);
    }
}

impl<F> Drop for Call<F> {
    fn drop(&mut self) {
        self.discard();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Panics when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "dropped");
        }
    }

    fn poll<F: Future>(call: &mut Call<F>) -> Poll<Result<F::Output, Arc<str>>> {
        Pin::new(call).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_a_future_returned_stands_though_its_drop_panics() {
        let future = |result: u8| {
            let bomb = Bomb;
            std::future::poll_fn(move |_| {
                let _ = &bomb;
                Poll::Ready(result)
            })
        };
        let mut call = Call::new(|| future(1));
        assert_eq!(poll(&mut call), Poll::Ready(Ok(1)));
        call.again(|| future(2));
        assert_eq!(poll(&mut call), Poll::Ready(Ok(2)));
        call.again(|| future(3));
    }
}
