//! The callers: each has one record at a time inserted, and waits for its row
//! id before it takes the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use microbatch::{CancellationToken, JobError};
use tokio::task::JoinSet;

use crate::desk::Desk;
use crate::ledger::{Ledger, Receipt};
use crate::record::Record;
use crate::source::Source;

/// A way to have records inserted.
pub(crate) trait Inserts: Clone + Send + 'static {
    /// Returns the record's row id when the record is stored.
    fn insert(&self, record: Record) -> impl Future<Output = Result<i64, JobError>> + Send;

    /// Hears from a caller that there are no more records.
    fn finish(&self) -> impl Future<Output = ()> + Send;
}

/// Has the records inserted until there are no more or `stop` is cancelled,
/// which the first failure does, too. Returns the ledger, and how long it took.
pub(crate) async fn run<I: Inserts>(
    source: &Source,
    callers: usize,
    inserts: I,
    ledger: Ledger,
    stop: &CancellationToken,
) -> anyhow::Result<(Ledger, Duration)> {
    let file = source.records()?;
    let started = Instant::now();
    let (desk, staff) = Desk::open(file, ledger);
    let desk = Arc::new(desk);
    let mut all = JoinSet::new();
    for _ in 0..callers {
        all.spawn(call(Arc::clone(&desk), inserts.clone(), stop.clone()));
    }
    drop(inserts);
    while let Some(caller) = all.join_next().await {
        caller?;
    }
    let took = started.elapsed();
    if let Some(desk) = Arc::into_inner(desk) {
        desk.close().await;
    }
    Ok((staff.close().await?, took))
}

async fn call<I: Inserts>(desk: Arc<Desk>, inserts: I, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let Some(record) = desk.take().await else {
            return inserts.finish().await;
        };
        let line = record.line();
        let submitted = Instant::now();
        let id = inserts.insert(record).await;
        let latency = submitted.elapsed();
        match id {
            // Stopped in the meantime, and this record was not accepted.
            Err(JobError::Closed) => return,
            // The record is good, so the next one would fare no better.
            Err(_) => stop.cancel(),
            Ok(_) => {}
        }
        let receipt = Receipt { line, id, latency };
        desk.leave(receipt).await;
    }
}
