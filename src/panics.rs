//! What to do about panics in users' code: processors, hooks, storages, the
//! drops of jobs and results, wakers, and the subscribers of `tracing`.

use std::any::Any;
use std::mem;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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

/// Calls `tracing`, whose subscriber is users' code: without it, nothing is
/// said, and nothing else is lost.
pub(crate) fn trace(call: impl FnOnce()) {
    let _ = guard(call);
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
            trace(|| error!(name, %error, "the drop of a job or result panicked"));
        }
    }
}

/// A value of the user's, whose `drop` may panic wherever it is dropped.
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

/// A call of users' asynchronous code, which resolves to what the code returns,
/// or to the message of a panic: in the call, in the future or in its drop.
///
/// The future is on the heap from the moment it is returned, so that what awaits
/// it is small however large it is.
pub(crate) struct Call<F> {
    /// Kept for later calls. Empty where there is nothing to poll.
    future: Option<Pin<Box<Option<F>>>>,
    panicked: Option<Arc<str>>,
}

impl<F: Future> Call<F> {
    /// Makes the call at once.
    pub(crate) fn new(make: impl FnOnce() -> F) -> Self {
        match guard(|| Box::pin(Some(make()))) {
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

    /// Makes another call at once, in the room of one that is over.
    pub(crate) fn again(&mut self, make: impl FnOnce() -> F) {
        let Some(future) = &mut self.future else {
            *self = Self::new(make);
            return;
        };
        self.panicked = guard(|| future.as_mut().set(Some(make()))).err();
    }
}

impl<F: Future> Future for Call<F> {
    type Output = Result<F::Output, Arc<str>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(message) = this.panicked.take() {
            return Poll::Ready(Err(message));
        }
        let Some(slot) = &mut this.future else {
            return Poll::Pending;
        };
        let poll = || match slot.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        };
        let output = match guard(poll) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(message) => Err(message),
        };
        // What it has returned stands, whatever its drop does.
        if guard(|| slot.set(None)).is_err() {
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
