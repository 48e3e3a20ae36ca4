//! The pass this example is about: many callers, and a micro-batcher between
//! them and the database.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use microbatch::{CancellationToken, JobError, MicroBatch};

use crate::callers::{self, Inserts};
use crate::database_thread;
use crate::ledger::Ledger;
use crate::options::Options;
use crate::pass::{Method, Pass, Tally};
use crate::record::Record;
use crate::source::Source;

pub(crate) async fn run(
    source: &Source,
    options: &Options,
    path: &Path,
    ledger: Ledger,
    stop: &CancellationToken,
) -> anyhow::Result<Pass> {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let hook = Arc::clone(&tally);
    let database = database_thread::spawn(path, Method::Batched.table()).await?;
    let inserts = MicroBatch::builder(database)
        .max_batch_size(options.batch_size())
        .interval(options.interval())
        .flush_when_idle(options.idle)
        .queue_capacity(options.producers())
        .on_batch(move |report| {
            let mut tally = hook.lock().unwrap_or_else(PoisonError::into_inner);
            tally.add(report);
        })
        .build_running(stop.clone())?;

    let callers = options.producers();
    let (ledger, took) = callers::run(source, callers, inserts.clone(), ledger, stop).await?;
    inserts.shutdown().await?;
    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Pass {
        method: Method::Batched,
        callers,
        took,
        tally,
        ledger,
    })
}

impl Inserts for MicroBatch<Record, i64> {
    async fn insert(&self, record: Record) -> Result<i64, JobError> {
        self.submit(record).await
    }

    async fn finish(&self) {
        // Nobody will fill the last batch, so it need not wait for that.
        self.flush().await;
    }
}
