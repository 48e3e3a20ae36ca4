//! Steering a micro-batcher while it runs.

use crate::error::{Closed, ReconfigureError};
use crate::micro_batch::MicroBatch;
use crate::settings::Settings;

impl<J, R> MicroBatch<J, R> {
    /// Returns the settings that are in force.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::MicroBatch;
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let echo = MicroBatch::builder(|jobs: Vec<u8>| async move { Ok::<_, String>(jobs) })
    ///     .interval(Duration::from_millis(5))
    ///     .build()?;
    /// let settings = echo.settings();
    /// assert_eq!(settings.interval, Duration::from_millis(5));
    /// assert_eq!(settings.max_batch_size, 3); // the default
    /// # Ok(())
    /// # }
    /// ```
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
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use std::time::Duration;
    /// # use tokio::time::{Instant, sleep};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let rows = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |rows: Vec<u8>| async move { Ok::<_, String>(rows) },
    /// # );
    /// rows.pause();
    /// let waiting = rows.submit(1);
    /// sleep(Duration::from_secs(60)).await; // the database restarts
    ///
    /// let resumed = Instant::now();
    /// rows.resume();
    /// assert_eq!(waiting.await?, 1); // it was overdue, and goes at once
    /// assert!(resumed.elapsed() < Duration::from_millis(2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume(&self) {
        self.queue().set_paused(false);
    }

    /// Returns whether batches are held back by [`pause`](Self::pause).
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let rows = MicroBatch::new_running(
    /// #     CancellationToken::new(),
    /// #     |rows: Vec<u8>| async move { Ok::<_, String>(rows) },
    /// # );
    /// rows.pause();
    /// assert!(rows.is_paused());
    /// rows.shutdown().await?; // a stop ends a pause
    /// assert!(!rows.is_paused());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.queue().is_paused()
    }

    /// Tells the recorder of the `metrics` crate what is so now, for a handler of scrapes to
    /// call before it renders.
    ///
    /// Counters, histograms and gauges are brought up to date with each finished batch, and
    /// at the end. In between, this call is all that does it: while the processor hangs or
    /// nothing is submitted, no batch finishes, and without it the jobs that wait show only
    /// afterwards. It costs some twenty atomic operations, and never waits for a batch.
    ///
    /// Everything is registered when the micro-batcher is built, with the recorder that is
    /// installed by then, under the label `batcher`, its name or `default`. Counters and the
    /// gauges of jobs and batches add up over micro-batchers of one name, such as those of
    /// the keys of a [`Keyed`](crate::Keyed); those of limits show the last one told. So an
    /// exporter must not forget gauges that have not changed for a while. A panic of the
    /// recorder loses what it was told, and nothing else.
    ///
    /// | name | kind | meaning |
    /// | --- | --- | --- |
    /// | `microbatch_jobs_accepted_total` | counter | jobs accepted |
    /// | `microbatch_jobs_total{outcome}` | counter | accepted jobs that have ended: `completed`, `failed`, `withdrawn`, `abandoned` |
    /// | `microbatch_jobs_refused_total{why}` | counter | jobs that were never accepted: `full` (at `try_submit`), `closed`, `too_heavy` |
    /// | `microbatch_batches_total{reason}` | counter | finished batches, by [`FlushReason`](crate::FlushReason) |
    /// | `microbatch_batch_failures_total{kind}` | counter | failed batches: `error`, `panic`, `result_count` |
    /// | `microbatch_batch_size` | histogram, jobs | near the limit: under load, or the interval is long |
    /// | `microbatch_batch_wait_seconds` | histogram | longest wait in the batch, so it bounds that of each job |
    /// | `microbatch_batch_duration_seconds` | histogram | time in the processor |
    /// | `microbatch_jobs{state}` | gauge | jobs that have not ended: `waiting` for room, `queued`, `pending`, `processing` |
    /// | `microbatch_batches_in_flight` | gauge | at its limit all the time: the processor is the bottleneck |
    /// | `microbatch_queue_capacity`, `microbatch_batch_size_limit`, `microbatch_interval_seconds`, `microbatch_in_flight_limit` | gauge | the settings in force |
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch};
    /// # use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // A recorder is installed first, such as that of `metrics-exporter-prometheus`.
    /// # let recorder = DebuggingRecorder::new();
    /// # let exporter = recorder.snapshotter();
    /// # recorder.install()?;
    /// let rows = MicroBatch::builder(|rows: Vec<u8>| async move { Ok::<_, String>(rows) })
    ///     .name("rows")
    ///     .build_running(CancellationToken::new())?;
    /// let scrape = {
    ///     let rows = rows.downgrade();
    ///     move || {
    ///         if let Some(rows) = rows.upgrade() {
    ///             rows.record_metrics();
    ///         }
    ///         // `handle.render()` of the exporter.
    /// #         let metrics = exporter.snapshot().into_vec().into_iter();
    /// #         let mut accepted = metrics.filter_map(|(key, _, _, value)| match value {
    /// #             DebugValue::Counter(n) if key.key().name().contains("accepted") => Some(n),
    /// #             _ => None,
    /// #         });
    /// #         accepted.next()
    ///     }
    /// };
    /// let _handles = [rows.submit(1), rows.submit(2)]; // no batch has finished
    /// assert_eq!(scrape(), Some(2)); // `microbatch_jobs_accepted_total`
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        self.queue().record_metrics();
    }
}
