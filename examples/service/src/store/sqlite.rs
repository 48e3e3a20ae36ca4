//! SQLite, which blocks, so one connection writes and one reads, each on a thread of its
//! own.

use std::path::Path;
use std::time::Duration;

use microbatch::{BatchProcessor, BlockingProcessor};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::StoreError;
use crate::flight::Flight;
use crate::later::Job;

pub struct Sqlite {
    writer: BlockingProcessor<Row, Option<i64>>,
    reader: BlockingProcessor<i64, Option<Flight>>,
}

impl Sqlite {
    /// Opens the database, and makes it if there is none.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let (write, read) = (path.to_owned(), path.to_owned());
        // The writer first: it makes the table.
        let writer = BlockingProcessor::spawn(move || create(&write), insert).await?;
        let reader = BlockingProcessor::spawn(move || connect(&read), load).await?;
        Ok(Self { writer, reader })
    }

    pub async fn insert(&self, flights: Vec<Flight>) -> Result<Vec<i64>, StoreError> {
        let rows = flights.into_iter().map(|flight| Row { flight, job: None });
        let ids = self.writer.process(rows.collect()).await?;
        Ok(ids.into_iter().flatten().collect())
    }

    pub async fn insert_once(&self, jobs: Vec<Job>) -> Result<(), StoreError> {
        let rows = jobs.into_iter().map(|Job { id, flight }| Row {
            flight,
            job: Some(id),
        });
        self.writer.process(rows.collect()).await?;
        Ok(())
    }

    pub async fn load(&self, ids: Vec<i64>) -> Result<Vec<Option<Flight>>, StoreError> {
        self.reader.process(ids).await
    }
}

/// A flight to insert.
struct Row {
    flight: Flight,
    /// Its job, if it is to be stored once.
    job: Option<String>,
}

/// Makes every commit wait until its rows are on the disk.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // Where a plain fsync stops at the disk's own cache, as on macOS.
    connection.pragma_update(None, "fullfsync", true)?;
    Ok(connection)
}

fn create(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS flights (
             id INTEGER PRIMARY KEY,
             carrier TEXT NOT NULL,
             flight INTEGER NOT NULL,
             tailnum TEXT,
             origin TEXT NOT NULL,
             dest TEXT NOT NULL,
             time_hour TEXT NOT NULL,
             dep_delay INTEGER,
             air_time INTEGER,
             distance INTEGER NOT NULL
         ) STRICT;
         CREATE TABLE IF NOT EXISTS stored_jobs (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
    )?;
    Ok(connection)
}

/// Inserts all rows in one transaction. A row whose job is stored gets no id.
fn insert(connection: &mut Connection, rows: Vec<Row>) -> rusqlite::Result<Vec<Option<i64>>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let sql = format!(
        "INSERT INTO flights ({}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        Flight::COLUMNS
    );
    let mut insert = transaction.prepare_cached(&sql)?;
    let mut mark = transaction.prepare_cached("INSERT OR IGNORE INTO stored_jobs VALUES (?)")?;
    let ids = rows.iter().map(|Row { flight, job }| {
        if let Some(job) = job
            && mark.execute([job])? == 0
        {
            return Ok(None);
        }
        let id = insert.insert(params![
            flight.carrier,
            flight.flight,
            flight.tailnum,
            flight.origin,
            flight.dest,
            flight.time_hour,
            flight.dep_delay,
            flight.air_time,
            flight.distance,
        ])?;
        Ok(Some(id))
    });
    let ids = ids.collect::<rusqlite::Result<_>>()?;
    drop((insert, mark));
    transaction.commit()?;
    Ok(ids)
}

fn load(connection: &mut Connection, ids: Vec<i64>) -> rusqlite::Result<Vec<Option<Flight>>> {
    // One transaction, so that all see the same state.
    let transaction = connection.transaction()?;
    let sql = format!("SELECT {} FROM flights WHERE id = ?", Flight::COLUMNS);
    let mut select = transaction.prepare_cached(&sql)?;
    let flights = ids.into_iter().map(|id| {
        let flight = select.query_row([id], |row| {
            Ok(Flight {
                carrier: row.get(0)?,
                flight: row.get(1)?,
                tailnum: row.get(2)?,
                origin: row.get(3)?,
                dest: row.get(4)?,
                time_hour: row.get(5)?,
                dep_delay: row.get(6)?,
                air_time: row.get(7)?,
                distance: row.get(8)?,
            })
        });
        flight.optional()
    });
    flights.collect()
}
