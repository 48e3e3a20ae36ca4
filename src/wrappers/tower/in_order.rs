//! Keeps batches in order in a processor that must wait before it calls another one.
//!
//! `process` is called for one batch at a time, and so in order; the futures that it
//! returns may be polled in any order. A processor that must wait calls
//! [`enter`](InOrder::enter) in `process`. In its future it awaits the [`Turn`], waits,
//! calls the inner processor, and drops the turn.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop;

/// A fair semaphore with one permit.
pub(super) struct InOrder(Arc<Semaphore>);

/// The permit of one batch. Dropping it begins the turn of the next batch.
pub(super) type Turn = Option<OwnedSemaphorePermit>;

impl InOrder {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for this batch's turn. Turns come in the order of the calls, not of the
    /// first polls.
    pub(super) fn enter(&self) -> impl Future<Output = Turn> + Send + 'static + use<> {
        let mut acquire = Box::pin(Arc::clone(&self.0).acquire_owned());
        // The first poll puts it among the waiters of the semaphore, which is fair.
        let polled = pin!(coop::unconstrained(acquire.as_mut()))
            .poll(&mut Context::from_waker(Waker::noop()));
        async move {
            // The semaphore is never closed, so this is `Some`.
            match polled {
                Poll::Ready(turn) => turn.ok(),
                Poll::Pending => acquire.await.ok(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn turns_come_in_the_order_of_the_calls() {
        let order = InOrder::new();
        let first = order.enter().now_or_never().expect("it is the first");
        let (second, third) = (order.enter(), order.enter());
        let (mut second, mut third) = (Box::pin(second), Box::pin(third));
        // Polled in the other order.
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let turn = second.as_mut().now_or_never().expect("it is its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(turn);
        assert!(third.as_mut().now_or_never().is_some());
    }
}
