//! The pass to compare with: the same database thread, and for every row a
//! transaction of its own.

use std::path::Path;
use std::sync::Arc;

use microbatch::{BatchProcessor, BlockingProcessor, CancellationToken, JobError};

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
    let thread = database_thread::spawn(path, Method::RowByRow.table()).await?;
    let callers = options.row_by_row_callers();
    let (ledger, took) = callers::run(source, callers, Arc::new(thread), ledger, stop).await?;
    let tally = Tally {
        batches: ledger.stored,
        ..Tally::default()
    };
    Ok(Pass {
        method: Method::RowByRow,
        callers,
        took,
        tally,
        ledger,
    })
}

impl Inserts for Arc<BlockingProcessor<Record, i64>> {
    async fn insert(&self, record: Record) -> Result<i64, JobError> {
        let ids = self.process(vec![record]).await;
        ids.map(|ids| ids[0])
            .map_err(|error| JobError::Failed(Arc::from(error)))
    }

    async fn finish(&self) {}
}
