//! One way to load the records, and what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

use microbatch::{BatchReport, FlushReason};

use crate::ledger::Ledger;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    RowByRow,
    Batched,
    Bulk,
}

impl Method {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RowByRow => "row by row",
            Self::Batched => "micro-batched",
            Self::Bulk => "bulk by hand",
        }
    }

    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::RowByRow => "row_by_row",
            Self::Batched => "micro_batched",
            Self::Bulk => "bulk_by_hand",
        }
    }
}

pub(crate) struct Pass {
    pub(crate) method: Method,
    pub(crate) callers: usize,
    pub(crate) took: Duration,
    pub(crate) tally: Tally,
    pub(crate) ledger: Ledger,
}

impl Pass {
    /// Rows per second.
    pub(crate) fn rate(&self) -> f64 {
        self.ledger.stored as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }

    pub(crate) fn mean_size(&self) -> f64 {
        self.ledger.stored as f64 / self.tally.batches.max(1) as f64
    }
}

/// Counts batches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) batches: u64,
    pub(crate) reasons: BTreeMap<FlushReason, u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, report: &BatchReport<'_>) {
        self.batches += 1;
        *self.reasons.entry(report.reason).or_default() += 1;
    }
}
