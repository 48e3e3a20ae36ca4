//! The loop's timer: Tokio's, which keeps milliseconds, and with the feature
//! `fine-timer` another for what is due sooner.
//!
//! # Invariants
//!
//! - At most one of the two is set, and with no deadline neither is.
//! - A timer only wakes the loop, which asks the clock what is due. So one that
//!   goes off at a wrong time costs a turn and decides nothing.

use std::pin::Pin;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

#[cfg(feature = "fine-timer")]
mod fine;

/// Without the feature there is no finer timer: this takes no room and no time.
#[cfg(not(feature = "fine-timer"))]
mod fine {
    use std::future;

    use tokio::time::Instant;

    #[derive(Default)]
    pub(super) struct Fine;

    impl Fine {
        pub(super) fn set(&mut self, _: Option<Instant>, _: Instant) -> bool {
            false
        }

        pub(super) async fn elapsed(&mut self) {
            future::pending().await
        }
    }
}

pin_project! {
    #[derive(Default)]
    pub(crate) struct Timer {
        #[pin]
        coarse: Option<Sleep>,
        fine: fine::Fine,
    }
}

impl Timer {
    /// Sets the timer, or takes it out of the runtime's hands.
    pub(crate) fn set(self: Pin<&mut Self>, deadline: Option<Instant>, now: Instant) {
        let mut this = self.project();
        let kept = this.fine.set(deadline, now);
        let mut timer = this.coarse.as_mut();
        match (timer.as_mut().as_pin_mut(), deadline.filter(|_| !kept)) {
            (Some(sleep), Some(deadline)) if sleep.deadline() == deadline => {}
            (Some(sleep), Some(deadline)) => sleep.reset(deadline),
            (None, Some(deadline)) => timer.set(Some(sleep_until(deadline))),
            (_, None) => timer.set(None),
        }
    }

    /// Waits for the deadline, for ever if none is set.
    pub(crate) async fn elapsed(self: Pin<&mut Self>) {
        let this = self.project();
        match this.coarse.as_pin_mut() {
            Some(sleep) => sleep.await,
            None => this.fine.elapsed().await,
        }
    }
}
