//! When the queue, which counts everything, tells the metrics.

use super::Queue;
use crate::metrics::Snapshot;
use crate::report::BatchReport;

impl<J, R> Queue<J, R> {
    /// Tells the metrics what has changed.
    pub(crate) fn record_metrics(&self) {
        self.metrics.record(|| self.snapshot());
    }

    /// Tells the metrics of a finished batch, which is counted.
    pub(crate) fn record_batch(&self, report: &BatchReport<'_>) {
        self.metrics.record_batch(report);
        self.record_metrics();
    }

    fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        Snapshot {
            stats: state.stats(),
            refused_full: state.refusals.full,
            refused_closed: state.refusals.closed,
            refused_too_heavy: state.refusals.too_heavy,
            settings: state.control.settings,
            queue_capacity: self.options.capacity,
        }
    }
}

impl<J, R> Drop for Queue<J, R> {
    fn drop(&mut self) {
        // Jobs may have been refused since the end.
        self.record_metrics();
    }
}
