//! A thread of its own for the database, because SQLite blocks and an
//! asynchronous thread must not.

use std::sync::mpsc;
use std::thread;

use anyhow::{Context, anyhow};
use microbatch::BatchProcessor;
use tokio::sync::oneshot;
use tokio::task;

use crate::database::{Database, DatabaseError};
use crate::record::Record;

/// Hands batches to the thread, which ends when this is dropped.
pub(crate) struct DatabaseThread(mpsc::Sender<Batch>);

type Batch = (
    Vec<Record>,
    oneshot::Sender<Result<Vec<i64>, DatabaseError>>,
);

/// Tells when the thread has closed its database.
pub(crate) struct Ended(thread::JoinHandle<()>);

impl DatabaseThread {
    pub(crate) fn spawn(mut database: Database) -> anyhow::Result<(Self, Ended)> {
        let (sender, batches) = mpsc::channel::<Batch>();
        let thread = thread::Builder::new().name("database".into());
        let thread = thread.spawn(move || {
            for (records, answer) in batches {
                // Nobody waits for the answer where a stop ran out of time.
                let _ = answer.send(database.insert(&records));
            }
        });
        let thread = thread.context("cannot start a thread for the database")?;
        Ok((Self(sender), Ended(thread)))
    }
}

impl BatchProcessor<Record, i64> for DatabaseThread {
    type Error = anyhow::Error;

    async fn process(&self, records: Vec<Record>) -> anyhow::Result<Vec<i64>> {
        let (answer, ids) = oneshot::channel();
        // A send fails only where the thread is gone, and then so is `answer`.
        let _ = self.0.send((records, answer));
        Ok(ids.await.context("the database thread has ended")??)
    }
}

impl Ended {
    pub(crate) async fn wait(self) -> anyhow::Result<()> {
        let joined = task::spawn_blocking(|| self.0.join()).await?;
        joined.map_err(|_| anyhow!("the database thread panicked"))
    }
}
