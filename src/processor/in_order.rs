//! Keeps batches in order where a processor must wait before it can call
//! another one.
//!
//! A processor is called with one batch at a time, and so in order; what it
//! does in its future may happen in any. Whoever has to wait first enters here
//! when it is called, waits, calls the inner processor, and leaves.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop;

pub(crate) struct InOrder(Arc<Semaphore>);

/// The turn of one batch; dropping it lets the next one through.
pub(crate) type Turn = Option<OwnedSemaphorePermit>;

impl InOrder {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for this batch's turn. Its place is taken by the call, and not by
    /// the first poll.
    pub(crate) fn enter(&self) -> impl Future<Output = Turn> + Send + 'static + use<> {
        let mut acquire = Box::pin(Arc::clone(&self.0).acquire_owned());
        // The semaphore is fair from the first poll on.
        let polled = pin!(coop::unconstrained(acquire.as_mut()))
            .poll(&mut Context::from_waker(Waker::noop()));
        async move {
            // It is never closed, so this is a turn.
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
        let first = order.enter().now_or_never().expect("nobody is there");
        let (second, third) = (order.enter(), order.enter());
        let (mut second, mut third) = (Box::pin(second), Box::pin(third));
        // Polled the other way round.
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let turn = second.as_mut().now_or_never().expect("it is its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(turn);
        assert!(third.as_mut().now_or_never().is_some());
    }
}
