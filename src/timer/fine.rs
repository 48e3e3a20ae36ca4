//! The finer timer, of `async-io`: one thread for the whole process, asleep in
//! `epoll` until the nearest deadline, on Linux to the nanosecond. It is
//! started by the first deadline that is set.

use std::future;
use std::time::{Duration, Instant as SystemInstant};

use tokio::time::Instant;

/// What Tokio's timer rounds up to.
const RESOLUTION: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(super) struct Fine(Option<(Instant, async_io::Timer)>);

impl Fine {
    /// Sets the timer if the deadline is one that Tokio's cannot keep, else
    /// drops it. Returns whether it is set.
    pub(super) fn set(&mut self, deadline: Option<Instant>, now: Instant) -> bool {
        let set = self.0.as_ref().map(|(set, _)| *set);
        if set.is_none() || set != deadline {
            self.0 = deadline
                .filter(|deadline| *deadline - now < RESOLUTION && is_system_time())
                .map(|deadline| (deadline, async_io::Timer::at(deadline.into_std())));
        }
        self.0.is_some()
    }

    pub(super) async fn elapsed(&mut self) {
        match &mut self.0 {
            Some((_, timer)) => timer.await,
            None => future::pending().await,
        };
        // It goes off only once. Where Tokio's clock has been paused meanwhile,
        // the deadline is yet to come, and is set anew.
        self.0 = None;
    }
}

/// Whether Tokio's clock shows the system's time: not if it is paused or ever
/// was, since no other timer follows it then.
fn is_system_time() -> bool {
    let before = SystemInstant::now();
    let time = Instant::now().into_std();
    before <= time && time <= SystemInstant::now()
}
