//! SQLite: a write-ahead log, and every commit on the disk before it returns.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use microbatch::{BatchProcessor, BlockingProcessor};
use rusqlite::{Connection, Statement};
use tokio::task;

use crate::callers::{Outcome, Queue, Receipt};
use crate::check::Check;
use crate::flight::{self, Flight, Flights, INTEGERS, TEXTS};
use crate::ways::Bulk;

/// Longer than any connection waits for its turn to write.
const PATIENCE: Duration = Duration::from_secs(120);

/// The log is made that long beforehand, because commits take half as long
/// again while it grows, which would be all of a short run.
const LOG_BYTES: u32 = 8 << 20;

const INSERT: &str = "INSERT INTO flights VALUES (NULL, ?1, \
    ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, \
    ?16, ?17, ?18, ?19, ?20)";

pub struct Sqlite(PathBuf);

impl Sqlite {
    /// Makes the database anew in this folder.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        for file in ["flights.db", "flights.db-wal", "flights.db-shm"] {
            let path = folder.join(file);
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        let sqlite = Self(folder.join("flights.db"));
        let integers = INTEGERS.map(|name| format!(", {name} INTEGER")).concat();
        let texts = TEXTS.map(|name| format!(", {name} TEXT")).concat();
        sqlite.connect()?.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             CREATE TABLE filler AS SELECT zeroblob({LOG_BYTES}) AS filler;
             ROLLBACK;
             CREATE TABLE flights (id INTEGER PRIMARY KEY, number INTEGER NOT NULL{integers}{texts});"
        ))?;
        Ok(sqlite)
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        let connection = Connection::open(&self.0)?;
        connection.busy_timeout(PATIENCE)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        ensure!(mode == "wal", "SQLite cannot have a write-ahead log here");
        connection.pragma_update(None, "synchronous", "full")?;
        // Where a plain fsync stops at the disk's own cache, as on macOS.
        connection.pragma_update(None, "fullfsync", true)?;
        Ok(connection)
    }

    /// A connection on a thread of its own, one transaction a batch.
    pub async fn bulk(&self) -> anyhow::Result<Thread> {
        let database = Self(self.0.clone());
        let init = move || database.connect();
        let run = |connection: &mut Connection, flights: Vec<Flight>| {
            let transaction = connection.transaction()?;
            let mut statement = transaction.prepare_cached(INSERT)?;
            let ids = flights.iter().map(|flight| {
                insert(&mut statement, flight)?;
                Ok(transaction.last_insert_rowid())
            });
            let ids = ids.collect::<anyhow::Result<_>>()?;
            drop(statement);
            transaction.commit()?;
            anyhow::Ok(ids)
        };
        let processor = BlockingProcessor::spawn(init, run).await?;
        Ok(Thread(Arc::new(processor)))
    }

    /// A thread for each connection, a transaction for each row.
    pub fn row_by_row(&self, flights: Vec<Flight>, connections: usize) -> anyhow::Result<Outcome> {
        let opened = (0..connections).map(|_| self.connect());
        let opened = opened.collect::<anyhow::Result<Vec<_>>>()?;
        let queue = Queue::new(flights);
        let started = Instant::now();
        let write = |connection: Connection| {
            let mut statement = connection.prepare(INSERT)?;
            let mut stored = Vec::new();
            while let Some(flight) = queue.next() {
                let submitted = Instant::now();
                insert(&mut statement, &flight)?;
                stored.push(Receipt {
                    number: flight.number,
                    told: connection.last_insert_rowid(),
                    latency: Some(submitted.elapsed()),
                });
            }
            anyhow::Ok(stored)
        };
        let write = &write;
        let stored = task::block_in_place(|| {
            thread::scope(|scope| {
                let threads = opened.into_iter();
                let threads = threads.map(|connection| scope.spawn(move || write(connection)));
                let threads: Vec<_> = threads.collect();
                let stored = threads.into_iter().map(|thread| match thread.join() {
                    Ok(stored) => stored,
                    Err(_) => Err(anyhow!("a writer panicked")),
                });
                stored.collect::<anyhow::Result<Vec<_>>>()
            })
        })?;
        Outcome::new(started.elapsed(), stored.into_iter().flatten().collect())
    }

    pub fn verify(&self, flights: &Flights, receipts: &[i64]) -> anyhow::Result<()> {
        let connection = self.connect()?;
        let sql = format!("SELECT id, {} FROM flights", flight::columns());
        let mut select = connection.prepare(&sql)?;
        let mut rows = select.query([])?;
        let mut check = Check::new(flights, receipts);
        while let Some(row) = rows.next()? {
            let mut flight = Flight {
                number: row.get(1)?,
                integers: [None; INTEGERS.len()],
                texts: Default::default(),
            };
            for (index, value) in (2..).zip(&mut flight.integers) {
                *value = row.get(index)?;
            }
            for (index, value) in (2 + INTEGERS.len()..).zip(&mut flight.texts) {
                *value = row.get(index)?;
            }
            check.row(row.get(0)?, true, &flight)?;
        }
        check.finish()
    }
}

fn insert(statement: &mut Statement<'_>, flight: &Flight) -> anyhow::Result<()> {
    statement.raw_bind_parameter(1, flight.number)?;
    for (index, value) in (2..).zip(&flight.integers) {
        statement.raw_bind_parameter(index, value)?;
    }
    for (index, value) in (2 + INTEGERS.len()..).zip(&flight.texts) {
        statement.raw_bind_parameter(index, value)?;
    }
    statement.raw_execute()?;
    Ok(())
}

#[derive(Clone)]
pub struct Thread(Arc<BlockingProcessor<Flight, i64>>);

impl Bulk for Thread {
    async fn store(&self, flights: Vec<Flight>) -> anyhow::Result<Vec<i64>> {
        let stored = self.0.process(flights).await;
        stored.map_err(|error| anyhow!(error))
    }
}
