//! The worker's timer: Tokio's, which has a resolution of a millisecond, and with the
//! feature `fine-timer` another one for earlier deadlines.
//!
//! # Invariants
//!
//! - At most one of the two is set; without a deadline neither is.
//! - A timer only wakes the worker, which asks the clock what is due. So one that fires
//!   at a wrong time costs a turn and decides nothing.

use std::pin::Pin;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

mod fine;

use fine::FineTimer;

pin_project! {
    #[derive(Default)]
    pub(crate) struct Timer {
        #[pin]
        coarse: Option<Sleep>,
        fine: FineTimer,
    }
}

impl Timer {
    /// Sets the timer to the deadline, or clears it.
    pub(crate) fn set(self: Pin<&mut Self>, deadline: Option<Instant>, now: Instant) {
        let mut this = self.project();
        let is_fine = this.fine.set(deadline, now);
        let mut timer = this.coarse.as_mut();
        match (timer.as_mut().as_pin_mut(), deadline.filter(|_| !is_fine)) {
            (Some(sleep), Some(deadline)) if sleep.deadline() == deadline => {}
            (Some(sleep), Some(deadline)) => sleep.reset(deadline),
            (None, Some(deadline)) => timer.set(Some(sleep_until(deadline))),
            (_, None) => timer.set(None),
        }
    }

    /// Waits for the deadline; for ever if none is set.
    pub(crate) async fn elapsed(self: Pin<&mut Self>) {
        let this = self.project();
        match this.coarse.as_pin_mut() {
            Some(sleep) => sleep.await,
            None => this.fine.elapsed().await,
        }
    }
}
