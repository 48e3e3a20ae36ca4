//! The options that can be changed while a micro-batcher runs.

use std::time::Duration;

use crate::error::BuildError;

/// The options that [`reconfigure`](crate::MicroBatch::reconfigure) changes while a
/// micro-batcher runs. Each is described at the method of
/// [`MicroBatchBuilder`](crate::MicroBatchBuilder) of the same name.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use microbatch::{CancellationToken, MicroBatch, Settings};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let rows = MicroBatch::new_running(
/// #     CancellationToken::new(),
/// #     |rows: Vec<u8>| async move { Ok::<_, String>(rows) },
/// # );
/// let by_day: Settings = rows.settings();
/// let by_night = rows.reconfigure(|settings| {
///     settings.max_batch_size = 10_000;
///     settings.interval = Duration::from_secs(60);
/// })?;
/// assert_eq!(by_night.max_in_flight, by_day.max_in_flight);
///
/// rows.reconfigure(|settings| *settings = by_day)?; // in the morning
/// assert_eq!(rows.settings(), by_day);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Settings {
    /// How many jobs a batch holds at most. Default 3.
    pub max_batch_size: usize,
    /// How much the jobs of a batch weigh together at most; `usize::MAX` where there is
    /// no weight function, whatever it is set to.
    pub max_batch_weight: usize,
    /// How long the first pending job waits at most. Default 1 s.
    pub interval: Duration,
    /// How many batches are processed side by side at most. Default 1.
    pub max_in_flight: usize,
    /// Whether to flush at once while no batch is in flight. Default false.
    pub flush_when_idle: bool,
    /// What a flush costs apart from its jobs. Default none; zero is the same as
    /// `flush_when_idle`.
    pub flush_cost: Option<Duration>,
}

impl Settings {
    pub(crate) const DEFAULT: Self = Self {
        max_batch_size: 3,
        max_batch_weight: usize::MAX,
        interval: Duration::from_secs(1),
        max_in_flight: 1,
        flush_when_idle: false,
        flush_cost: None,
    };

    /// Returns which of the settings that mean nothing at zero are zero.
    pub(crate) fn zeros(&self) -> [(&'static str, bool); 4] {
        [
            ("max_batch_size", self.max_batch_size == 0),
            ("interval", self.interval.is_zero()),
            ("max_in_flight", self.max_in_flight == 0),
            ("max_batch_weight", self.max_batch_weight == 0),
        ]
    }

    /// Returns the settings as they take effect, or the first that means nothing.
    pub(crate) fn validated(mut self) -> Result<Self, BuildError> {
        if let Some((option, _)) = self.zeros().into_iter().find(|(_, zero)| *zero) {
            return Err(BuildError::Zero(option));
        }
        if self.flush_cost.is_some_and(|cost| cost.is_zero()) {
            self.flush_cost = None;
            self.flush_when_idle = true;
        }
        Ok(self)
    }
}
