//! Steering a micro-batcher while it runs.

use crate::error::{Closed, ReconfigureError};
use crate::micro_batch::MicroBatch;
use crate::settings::Settings;

impl<J, R> MicroBatch<J, R> {
    /// Returns the settings that are in force.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.queue().settings()
    }

    /// Changes any number of settings at once, and returns those that are then in force.
    ///
    /// The change takes effect with the loop's next decision. A batch that is already cut
    /// is untouched. The limits are hard for all batches cut afterwards: with a smaller
    /// size or weight, what is pending goes in several batches, and a job accepted before
    /// that is heavier than the new limit goes alone. A new interval counts from when the
    /// first pending job was accepted. Lowering `max_in_flight` cancels nothing; raising
    /// it starts what is due at once.
    ///
    /// Where changes are concurrent the last one wins, whole. May be called before
    /// [`start`](Self::start). Not every queued job has its own accept time, so some may
    /// count as accepted earlier than they were after a change, never later.
    ///
    /// # Errors
    ///
    /// [`ReconfigureError::Invalid`] where a value means nothing, and
    /// [`ReconfigureError::Closed`] after a stop. Then nothing is changed.
    ///
    /// # Panics
    ///
    /// A panic of `change` reaches the caller and changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch::{CancellationToken, MicroBatch};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = MicroBatch::new_running(
    ///     CancellationToken::new(),
    ///     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// );
    /// let before = echo.settings();
    /// let now = echo.reconfigure(|settings| {
    ///     settings.max_batch_size = 100;
    ///     settings.interval = Duration::from_millis(5);
    /// })?;
    /// assert_eq!((before.max_batch_size, now.max_batch_size), (3, 100));
    /// assert!(echo.reconfigure(|settings| settings.max_in_flight = 0).is_err());
    /// assert_eq!(echo.settings(), now);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reconfigure(
        &self,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Settings, ReconfigureError> {
        let mut settings = self.settings();
        change(&mut settings);
        if self.queue().is_closed() {
            return Err(ReconfigureError::Closed);
        }
        let settings = settings.validated()?;
        self.queue()
            .reconfigure(settings)
            .map_err(|Closed| ReconfigureError::Closed)
    }

    /// Cuts no more batches until [`resume`](Self::resume): while a database is down, for
    /// example.
    ///
    /// Batches in flight go on. Jobs are accepted while there is room, and wait for it
    /// then. A requested flush waits for the end of the pause. The interval goes on
    /// counting, so what is overdue is flushed at once afterwards. A stop ends a pause.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let echo = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |jobs: Vec<u8>| async move { Ok::<_, String>(jobs) },
    /// # );
    /// echo.pause();
    /// let handle = echo.submit(1);
    /// tokio::time::sleep(echo.settings().interval * 2).await;
    /// assert!(echo.is_paused() && !handle.is_finished());
    /// echo.resume();
    /// assert_eq!(handle.await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause(&self) {
        self.queue().set_paused(true);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.queue().set_paused(false);
    }

    /// Returns whether batches are held back by [`pause`](Self::pause).
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.queue().is_paused()
    }
}
