//! What one way of inserting does, from its callers' side.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::ServiceError;

/// Latencies are kept for as many samples.
const WINDOWS: usize = 8;

pub struct Meter {
    stored: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    latencies: Mutex<Latencies>,
}

struct Latencies {
    /// In microseconds.
    current: Histogram<u64>,
    before: VecDeque<Histogram<u64>>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Reading {
    pub commits: u64,
    pub jobs: u64,
    pub refused: u64,
    pub failed: u64,
    /// In milliseconds, over the last two seconds; none where nothing was stored.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

impl Meter {
    /// Awaits an insert, and counts how it ends and how long it takes.
    pub async fn measure<T>(
        &self,
        insert: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let started = Instant::now();
        let result = insert.await;
        let counter = match &result {
            Ok(_) => {
                let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                let mut latencies = self
                    .latencies
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                latencies.current.saturating_record(micros);
                &self.stored
            }
            Err(ServiceError::Full) => &self.refused,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts so far and the recent latencies, whose window it moves on. The
    /// commits are as many as the jobs.
    pub fn read(&self) -> Reading {
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let current = std::mem::replace(&mut latencies.current, histogram());
        if latencies.before.len() == WINDOWS {
            latencies.before.pop_front();
        }
        latencies.before.push_back(current);
        let mut recent = histogram();
        for window in &latencies.before {
            // All have the same bounds.
            let _ = recent.add(window);
        }
        drop(latencies);
        let quantile = |quantile| {
            let micros = recent.value_at_quantile(quantile) as f64;
            (!recent.is_empty()).then_some(micros / 1000.0)
        };
        let jobs = self.stored.load(Ordering::Relaxed);
        Reading {
            commits: jobs,
            jobs,
            refused: self.refused.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            p50: quantile(0.5),
            p99: quantile(0.99),
        }
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            stored: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latencies: Mutex::new(Latencies {
                current: histogram(),
                before: VecDeque::with_capacity(WINDOWS),
            }),
        }
    }
}

/// Up to a minute, to two digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("the bounds are valid")
}
