//! The timer for deadlines that Tokio's cannot keep: that of `async-io`, which has one
//! thread for the whole process. The thread is started by the first deadline and sleeps
//! in `epoll` until the nearest one, on Linux exact to the nanosecond.
//!
//! Without the feature `fine-timer` it is never set, and takes no memory.

use std::future;

use tokio::time::Instant;

#[derive(Default)]
pub(super) struct FineTimer {
    #[cfg(feature = "fine-timer")]
    timer: Option<(Instant, async_io::Timer)>,
}

#[cfg(feature = "fine-timer")]
impl FineTimer {
    /// What Tokio's timer rounds up to.
    const RESOLUTION: std::time::Duration = std::time::Duration::from_millis(1);

    /// Sets the timer if Tokio's cannot keep the deadline, else clears it. Returns
    /// whether it is set.
    pub(super) fn set(&mut self, deadline: Option<Instant>, now: Instant) -> bool {
        let set = self.timer.as_ref().map(|(set, _)| *set);
        if set.is_none() || set != deadline {
            self.timer = deadline
                .filter(|deadline| *deadline - now < Self::RESOLUTION && is_system_time())
                .map(|deadline| (deadline, async_io::Timer::at(deadline.into_std())));
        }
        self.timer.is_some()
    }

    pub(super) async fn elapsed(&mut self) {
        match &mut self.timer {
            Some((_, timer)) => timer.await,
            None => future::pending().await,
        };
        // It fires once. If Tokio's clock was paused meanwhile, the deadline is still to
        // come, and is set again.
        self.timer = None;
    }
}

#[cfg(not(feature = "fine-timer"))]
impl FineTimer {
    pub(super) fn set(&mut self, _: Option<Instant>, _: Instant) -> bool {
        false
    }

    pub(super) async fn elapsed(&mut self) {
        future::pending().await
    }
}

/// Whether Tokio's clock shows the system's time. It does not while it is paused, nor
/// ever after, and no other timer follows it then.
#[cfg(feature = "fine-timer")]
fn is_system_time() -> bool {
    let before = std::time::Instant::now();
    let time = Instant::now().into_std();
    before <= time && time <= std::time::Instant::now()
}
