//! The ceiling: the same database thread and batches of the same size, put together by
//! hand from the file. No caller waits for a row id, so this is as fast as batches of
//! that size can be.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use microbatch::{BatchProcessor, CancellationToken, JobError};

use crate::database_thread;
use crate::desk::Desk;
use crate::ledger::{Ledger, Receipt};
use crate::options::Options;
use crate::pass::{Method, Pass, Tally};
use crate::source::Source;

pub(crate) async fn run(
    source: &Source,
    options: &Options,
    path: &Path,
    ledger: Ledger,
    stop: &CancellationToken,
) -> anyhow::Result<Pass> {
    let thread = database_thread::spawn(path, Method::Bulk.table()).await?;
    let file = source.records()?;
    let started = Instant::now();
    let (desk, staff) = Desk::open(file, ledger);
    let mut batches = 0;
    while !stop.is_cancelled() {
        let mut batch = Vec::with_capacity(options.batch_size());
        while batch.len() < options.batch_size() {
            match desk.take().await {
                Some(record) => batch.push(record),
                None => break,
            }
        }
        if batch.is_empty() {
            break;
        }
        let lines: Vec<i64> = batch.iter().map(|record| record.line()).collect();
        let submitted = Instant::now();
        let stored = thread.process(batch).await;
        let latency = submitted.elapsed();
        batches += 1;
        let ids: Vec<Result<i64, JobError>> = match stored {
            Ok(ids) => ids.into_iter().map(Ok).collect(),
            Err(error) => {
                stop.cancel();
                vec![Err(JobError::Failed(Arc::from(error))); lines.len()]
            }
        };
        for (line, id) in lines.into_iter().zip(ids) {
            desk.leave(Receipt { line, id, latency }).await;
        }
    }
    let took = started.elapsed();
    desk.close().await;
    let ledger = staff.close().await?;
    let tally = Tally {
        batches,
        ..Tally::default()
    };
    Ok(Pass {
        method: Method::Bulk,
        callers: 1,
        took,
        tally,
        ledger,
    })
}
