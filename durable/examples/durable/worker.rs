//! The worker: submits what is left, and writes what the store gives into SQLite. It
//! knows nothing of the workers before it but what is in the store.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use microbatch::BlockingProcessor;
use microbatch_durable::{Appended, CancellationToken, Drain, Durable, RedbStore, Store};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use crate::database::Database;
use crate::flights::{self, Flight};
use crate::message::Message;
use crate::options::Options;
use crate::stop::stop_with_parent;
use crate::{DATABASE, JOBS};

/// Flights in a transaction of SQLite.
const BATCH: usize = 256;

/// Between two looks whether the store is empty.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(work(options));
    if let Err(error) = &outcome {
        // The parent says it.
        let why = format!("{error:#}");
        Message::Failed { why }.send();
        std::process::exit(1);
    }
    outcome
}

async fn work(options: &Options) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let left = what_is_left(options, &stop)?;
    let folder = options.folder.as_deref().unwrap_or(Path::new("."));

    let store = RedbStore::open(folder.join(JOBS)).await?;
    let path = folder.join(DATABASE);
    let database = Database::open(&path)?;
    Message::Opened {
        waiting: store.depth().await?.pending(),
        stored: database.count()?,
    }
    .send();

    // The back: from the store into SQLite, on a thread that may block.
    let sqlite = BlockingProcessor::spawn(
        move || Database::open(&path),
        |database, flights: Vec<Flight>| {
            database.store(&flights)?;
            Ok(vec![(); flights.len()])
        },
    )
    .await?;
    let drain = Drain::builder(store.clone(), sqlite)
        .max_batch_size(BATCH)
        // A death counts as an attempt, and here deaths are no fault of the job.
        .max_attempts(options.kills + 5)
        .on_batch(|batch| {
            let (jobs, attempt) = (batch.done as u64, batch.attempt);
            Message::Processed { jobs, attempt }.send();
        })
        .build()?;
    let end = CancellationToken::new();
    let draining = tokio::spawn(drain.run(end.clone()));

    // The front: from many callers into the store.
    let durable = Durable::builder(store.clone()).build_running(CancellationToken::new())?;
    let submitted = tokio::select! {
        submitted = submit(&durable, left, options.callers) => submitted,
        () = stop.cancelled() => Ok(()),
    };
    durable.shutdown().await?;
    submitted?;

    while !stop.is_cancelled() && store.depth().await?.pending() > 0 {
        tokio::time::sleep(LOOK).await;
    }
    end.cancel();
    draining.await??;
    store.close().await;
    Ok(())
}

/// Has many callers submit the flights, each one at a time.
async fn submit(
    durable: &Durable<Flight>,
    flights: Vec<Flight>,
    callers: u32,
) -> anyhow::Result<()> {
    let flights = Arc::new(Mutex::new(flights.into_iter()));
    let (acknowledge, acknowledged) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(report(durable.clone(), acknowledged));
    for _ in 0..callers {
        tasks.spawn(call(
            durable.clone(),
            Arc::clone(&flights),
            acknowledge.clone(),
        ));
    }
    drop(acknowledge);
    while let Some(joined) = tasks.join_next().await {
        joined??;
    }
    Ok(())
}

/// A caller: says of each of its flights when it is durable.
async fn call(
    durable: Durable<Flight>,
    flights: Arc<Mutex<std::vec::IntoIter<Flight>>>,
    acknowledge: UnboundedSender<(u32, Appended)>,
) -> anyhow::Result<()> {
    let next = || {
        let mut flights = flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.next()
    };
    while let Some(flight) = next() {
        let (id, line) = (flight.id(), flight.line);
        // Durable, or in the store from before: the id tells.
        let appended = durable.submit(id.clone(), flight).await?;
        if let Appended::Refused(refusal) = appended {
            return Err(refusal).context(format!("{id} was refused"));
        }
        let _ = acknowledge.send((line, appended));
    }
    Ok(())
}

/// Tells the parent what is durable.
async fn report(
    durable: Durable<Flight>,
    mut acknowledged: UnboundedReceiver<(u32, Appended)>,
) -> anyhow::Result<()> {
    let mut some = Vec::new();
    while acknowledged.recv_many(&mut some, BATCH).await > 0 {
        let duplicates = some
            .iter()
            .filter(|(_, appended)| *appended == Appended::Duplicate)
            .count() as u64;
        Message::Acknowledged {
            lines: some.drain(..).map(|(line, _)| line).collect(),
            duplicates,
            commits: durable.stats().batches,
        }
        .send();
    }
    Ok(())
}

/// Reads from the parent what is acknowledged, and returns the others. From then on the
/// end of the input cancels `stop`.
fn what_is_left(options: &Options, stop: &CancellationToken) -> anyhow::Result<Vec<Flight>> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let acknowledged: HashSet<u32> = serde_json::from_str(&line)?;
    stop_with_parent(stop);
    let mut flights = flights::read(&options.file, options.rows)?;
    flights.retain(|flight| !acknowledged.contains(&flight.line));
    Ok(flights)
}
