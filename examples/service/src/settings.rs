//! What can be changed while the service runs, and within which limits.

use std::time::Duration;

use microbatch::{MicroBatch, ReconfigureError};
use serde::{Deserialize, Serialize};

/// Jobs accepted and not yet taken up for the next batch; beyond it callers are refused.
pub const QUEUE_CAPACITY: usize = 512;
pub const MOST_IN_FLIGHT: usize = 4;
const LARGEST_BATCH: usize = 1000;
const LONGEST_INTERVAL_MS: u64 = 10_000;

/// The settings in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    pub max_batch_size: usize,
    pub interval_ms: u64,
    pub max_in_flight: usize,
    pub flush_when_idle: bool,
    pub paused: bool,
}

/// A change; what it leaves out stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    max_batch_size: Option<usize>,
    interval_ms: Option<u64>,
    max_in_flight: Option<usize>,
    flush_when_idle: Option<bool>,
    paused: Option<bool>,
}

impl Settings {
    pub fn of<J, R>(batcher: &MicroBatch<J, R>) -> Self {
        let settings = batcher.settings();
        Self {
            max_batch_size: settings.max_batch_size,
            interval_ms: u64::try_from(settings.interval.as_millis()).unwrap_or(u64::MAX),
            max_in_flight: settings.max_in_flight,
            flush_when_idle: settings.flush_when_idle,
            paused: batcher.is_paused(),
        }
    }
}

impl Change {
    /// Names the first value that the service does not allow. What no micro-batcher
    /// allows, as zero, it refuses itself.
    pub fn check(&self) -> Result<(), String> {
        let size = self.max_batch_size.unwrap_or(0) as u64;
        let in_flight = self.max_in_flight.unwrap_or(0) as u64;
        let limits = [
            ("max_batch_size", size, LARGEST_BATCH as u64),
            (
                "interval_ms",
                self.interval_ms.unwrap_or(0),
                LONGEST_INTERVAL_MS,
            ),
            ("max_in_flight", in_flight, MOST_IN_FLIGHT as u64),
        ];
        match limits.into_iter().find(|(_, value, most)| value > most) {
            Some((name, _, most)) => Err(format!("`{name}` is more than {most}")),
            None => Ok(()),
        }
    }

    /// Changes all of it or nothing.
    pub fn apply<J, R>(&self, batcher: &MicroBatch<J, R>) -> Result<(), ReconfigureError> {
        batcher.reconfigure(|settings| {
            if let Some(jobs) = self.max_batch_size {
                settings.max_batch_size = jobs;
            }
            if let Some(interval) = self.interval_ms {
                settings.interval = Duration::from_millis(interval);
            }
            if let Some(batches) = self.max_in_flight {
                settings.max_in_flight = batches;
            }
            if let Some(idle) = self.flush_when_idle {
                settings.flush_when_idle = idle;
            }
        })?;
        match self.paused {
            Some(true) => batcher.pause(),
            Some(false) => batcher.resume(),
            None => {}
        }
        Ok(())
    }
}
