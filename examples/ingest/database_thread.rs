//! The database on a thread of its own, because SQLite blocks and an
//! asynchronous thread must not.

use std::path::Path;

use microbatch::BlockingProcessor;

use crate::database::Database;
use crate::record::Record;

pub(crate) async fn spawn(
    path: &Path,
    table: &'static str,
) -> anyhow::Result<BlockingProcessor<Record, i64>> {
    let path = path.to_owned();
    let processor = BlockingProcessor::spawn(
        move || Database::open(&path, table),
        |database, records: Vec<Record>| Ok(database.insert(&records)?),
    );
    Ok(processor.await?)
}
