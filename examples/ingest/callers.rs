//! The callers: each has one record at a time inserted, and waits for its row
//! id before it takes the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use microbatch::{CancellationToken, JobError};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{self, JoinSet};

use crate::ledger::{Ledger, Receipt};
use crate::record::Record;
use crate::source::{Records, Source};

/// How many records, and how many receipts, may wait to be taken.
const CAPACITY: usize = 256;

/// Has the records inserted until there are no more or `stop` is cancelled,
/// which the first failure does, too. Returns the ledger, and how long it took.
pub(crate) async fn run<I, F>(
    source: &Source,
    callers: usize,
    insert: I,
    ledger: Ledger,
    stop: &CancellationToken,
) -> anyhow::Result<(Ledger, Duration)>
where
    I: Fn(Record) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<i64, JobError>> + Send + 'static,
{
    let file = source.records()?;
    let started = Instant::now();
    let (feed, records) = mpsc::channel(CAPACITY);
    let (receipts, entries) = mpsc::channel(CAPACITY);
    let reader = task::spawn_blocking(move || read(file, &feed));
    let clerk = task::spawn_blocking(move || keep(ledger, entries));
    let records = Arc::new(Mutex::new(records));
    let mut all = JoinSet::new();
    for _ in 0..callers {
        all.spawn(call(
            Arc::clone(&records),
            insert.clone(),
            receipts.clone(),
            stop.clone(),
        ));
    }
    // The reader and the clerk end when the last caller is gone.
    drop((records, insert, receipts));
    while let Some(caller) = all.join_next().await {
        caller?;
    }
    reader.await??;
    let ledger = clerk.await??;
    Ok((ledger, started.elapsed()))
}

async fn call<I, F>(
    records: Arc<Mutex<mpsc::Receiver<Record>>>,
    insert: I,
    receipts: mpsc::Sender<Receipt>,
    stop: CancellationToken,
) where
    I: Fn(Record) -> F,
    F: Future<Output = Result<i64, JobError>>,
{
    while !stop.is_cancelled() {
        let next = records.lock().await.recv().await;
        let Some(record) = next else { return };
        let line = record.line;
        let submitted = Instant::now();
        let id = insert(record).await;
        let latency = submitted.elapsed();
        match id {
            // Stopped in the meantime, and this record was not accepted.
            Err(JobError::Closed) => return,
            // The record is good, so the next one would fare no better.
            Err(_) => stop.cancel(),
            Ok(_) => {}
        }
        let receipt = Receipt { line, id, latency };
        if receipts.send(receipt).await.is_err() {
            // The clerk has failed, and will say so.
            return;
        }
    }
}

/// Reads the file, never far ahead of the callers.
fn read(file: Records, feed: &mpsc::Sender<Record>) -> anyhow::Result<()> {
    for record in file {
        if feed.blocking_send(record?).is_err() {
            break;
        }
    }
    Ok(())
}

/// Keeps the ledger, away from the callers' threads because it is a file.
fn keep(mut ledger: Ledger, mut entries: mpsc::Receiver<Receipt>) -> anyhow::Result<Ledger> {
    while let Some(receipt) = entries.blocking_recv() {
        ledger.enter(receipt)?;
    }
    ledger.close();
    Ok(ledger)
}
