//! A channel for one value, between a batch and a job's handle.
//!
//! A value and a waker behind a mutex that is held for a few moves. Unlike Tokio's
//! `oneshot` it takes nothing from the task's cooperative budget, so a task that
//! collects many handles never has to yield while their results are there. Being
//! generic throughout, it is compiled and inlined in the user's crate.
//!
//! # Invariants
//!
//! - The channel goes from `Open` to `Sent` to `Taken`, or to `Closed` once the
//!   receiver is dropped.
//! - A waker is dropped and woken, and a value dropped, after the lock is
//!   released: all three run foreign code.

use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::oneshot;

enum Channel<T> {
    Open(Option<Waker>),
    Sent(T),
    Taken,
    /// The receiver was dropped.
    Closed,
}

#[inline]
fn lock<T>(shared: &Arc<Mutex<Channel<T>>>) -> MutexGuard<'_, Channel<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Sender<T>(Arc<Mutex<Channel<T>>>);

/// Resolves to the value once. Pending for ever if polled again.
pub(crate) struct Receiver<T>(Option<Arc<Mutex<Channel<T>>>>);

#[inline]
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Mutex::new(Channel::Open(None)));
    (Sender(Arc::clone(&shared)), Receiver(Some(shared)))
}

impl<T> Sender<T> {
    /// Sends the value and wakes the receiver; drops the value if the receiver was
    /// dropped. The waker may panic.
    #[inline]
    pub(crate) fn send(self, value: T) {
        let mut state = lock(&self.0);
        match &mut *state {
            Channel::Open(waker) => {
                let waker = waker.take();
                *state = Channel::Sent(value);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            _ => drop(state),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(*lock(&self.0), Channel::Closed)
    }
}

impl<T> Receiver<T> {
    /// Whether the value was sent or taken.
    pub(crate) fn is_ready(&self) -> bool {
        let shared = self.0.as_ref();
        shared.is_none_or(|shared| matches!(*lock(shared), Channel::Sent(_)))
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.0.is_none()
    }

    /// Blocks the thread until the value is sent.
    ///
    /// # Panics
    ///
    /// Within an asynchronous context, as Tokio's channels.
    pub(crate) fn blocking_recv(mut self) -> Option<T> {
        self.0.as_ref()?;
        loop {
            let (notify, notified) = oneshot::channel();
            let waker = Waker::from(Arc::new(ThreadWaker(Mutex::new(Some(notify)))));
            let polled = Pin::new(&mut self).poll(&mut Context::from_waker(&waker));
            drop(waker);
            // Tokio panics in an asynchronous context; so do we, also if there is
            // no need to wait.
            match polled {
                Poll::Ready(value) => {
                    let (notify, notified) = oneshot::channel();
                    let _ = notify.send(());
                    let _ = notified.blocking_recv();
                    return Some(value);
                }
                Poll::Pending => {
                    let _ = notified.blocking_recv();
                }
            }
        }
    }
}

/// Wakes a thread in `blocking_recv`.
struct ThreadWaker(Mutex<Option<oneshot::Sender<()>>>);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        let notify = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(notify) = notify {
            let _ = notify.send(());
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
            Channel::Sent(_) => {
                let sent = mem::replace(&mut *state, Channel::Taken);
                drop(state);
                self.0 = None;
                match sent {
                    Channel::Sent(value) => Poll::Ready(value),
                    _ => Poll::Pending,
                }
            }
            Channel::Open(waker) => {
                let last = match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => None,
                    waker => waker.replace(cx.waker().clone()),
                };
                drop(state);
                drop(last);
                Poll::Pending
            }
            Channel::Taken | Channel::Closed => Poll::Pending,
        }
    }
}

impl<T> Drop for Receiver<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            let left = mem::replace(&mut *lock(&shared), Channel::Closed);
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
