//! A channel for one value, between whoever answers a job and its handle.
//!
//! It is a value and a waker under a lock that nothing else can want for longer
//! than a few moves. Against Tokio's it asks no budget of the task, so that a task
//! that collects many handles is put off by none whose answer is there; and it is
//! generic throughout, so that it is compiled into the crate that uses it.
//!
//! # Invariants
//!
//! - The state goes from `Open` to `Sent` to `Taken`, or to `Closed` once the
//!   receiver is gone.
//! - A waker is dropped and woken, and a value dropped, without the lock: that is
//!   code of others.

use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::oneshot;

enum State<T> {
    Open(Option<Waker>),
    Sent(T),
    Taken,
    /// There is no receiver any more.
    Closed,
}

type Shared<T> = Arc<Mutex<State<T>>>;

#[inline]
fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, State<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Sender<T>(Shared<T>);

/// Resolves to the value, once. Polled again, it waits for ever.
pub(crate) struct Receiver<T>(Option<Shared<T>>);

#[inline]
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Mutex::new(State::Open(None)));
    (Sender(Arc::clone(&shared)), Receiver(Some(shared)))
}

impl<T> Sender<T> {
    /// Sends the value and wakes the receiver, whose waker may panic; drops the
    /// value if there is no receiver.
    #[inline]
    pub(crate) fn send(self, value: T) {
        let mut state = lock(&self.0);
        match &mut *state {
            State::Open(waker) => {
                let waker = waker.take();
                *state = State::Sent(value);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            _ => drop(state),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(*lock(&self.0), State::Closed)
    }
}

impl<T> Receiver<T> {
    /// Whether a poll would return at once: the value is there, or was taken.
    pub(crate) fn is_ready(&self) -> bool {
        let shared = self.0.as_ref();
        shared.is_none_or(|shared| matches!(*lock(shared), State::Sent(_)))
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.0.is_none()
    }

    /// Blocks the thread until the value is there.
    ///
    /// # Panics
    ///
    /// Within an asynchronous context, as Tokio's channels.
    pub(crate) fn blocking_recv(mut self) -> Option<T> {
        self.0.as_ref()?;
        loop {
            let (ring, rung) = oneshot::channel();
            let bell = Waker::from(Arc::new(Bell(Mutex::new(Some(ring)))));
            let polled = Pin::new(&mut self).poll(&mut Context::from_waker(&bell));
            drop(bell);
            // Also where there is no need to wait: Tokio looks where it is called.
            match polled {
                Poll::Ready(value) => {
                    let (ring, rung) = oneshot::channel();
                    let _ = ring.send(());
                    let _ = rung.blocking_recv();
                    return Some(value);
                }
                Poll::Pending => {
                    let _ = rung.blocking_recv();
                }
            }
        }
    }
}

/// Wakes a thread that blocks.
struct Bell(Mutex<Option<oneshot::Sender<()>>>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ring) = ring {
            let _ = ring.send(());
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = T;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(shared) = &self.0 else {
            return Poll::Pending;
        };
        let mut state = lock(shared);
        match &mut *state {
            State::Sent(_) => {
                let sent = mem::replace(&mut *state, State::Taken);
                drop(state);
                self.0 = None;
                match sent {
                    State::Sent(value) => Poll::Ready(value),
                    _ => Poll::Pending,
                }
            }
            State::Open(waker) => {
                let last = match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => None,
                    waker => waker.replace(cx.waker().clone()),
                };
                drop(state);
                drop(last);
                Poll::Pending
            }
            State::Taken | State::Closed => Poll::Pending,
        }
    }
}

impl<T> Drop for Receiver<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            let left = mem::replace(&mut *lock(&shared), State::Closed);
            drop(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_value_is_received_once() {
        let (sender, mut receiver) = channel();
        assert!((&mut receiver).now_or_never().is_none() && !receiver.is_ready());
        sender.send(7);
        assert!(receiver.is_ready() && !receiver.is_terminated());
        assert_eq!((&mut receiver).now_or_never(), Some(7));
        assert!(receiver.is_terminated() && (&mut receiver).now_or_never().is_none());
    }

    #[test]
    fn a_value_that_nobody_wants_is_dropped() {
        let (sender, receiver) = channel();
        let value = Arc::new(());
        assert!(!sender.is_closed());
        drop(receiver);
        assert!(sender.is_closed());
        sender.send(Arc::clone(&value));
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn the_last_that_polled_is_woken() {
        struct Count(Mutex<u32>);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                *self.0.lock().unwrap() += 1;
            }
        }
        let counts = [(); 2].map(|()| Arc::new(Count(Mutex::new(0))));
        let (sender, mut receiver) = channel();
        for count in [&counts[0], &counts[1], &counts[1]] {
            let waker = Waker::from(Arc::clone(count));
            let polled = Pin::new(&mut receiver).poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
        }
        assert_eq!(Arc::strong_count(&counts[0]), 1);
        sender.send(());
        assert_eq!(counts.map(|count| *count.0.lock().unwrap()), [0, 1]);
    }

    #[test]
    fn threads_wait_for_one_another() {
        for _ in 0..1000 {
            let (sender, receiver) = channel();
            let thread = thread::spawn(|| receiver.blocking_recv());
            sender.send(7);
            assert_eq!(thread.join().unwrap(), Some(7));
        }
    }
}
