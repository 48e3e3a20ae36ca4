//! SQLite, which blocks, so one connection writes and one reads, each on a thread of its
//! own.

use std::path::Path;
use std::time::Duration;

use microbatch::{BatchProcessor, BlockingProcessor};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::StoreError;
use crate::flight::Flight;

pub struct Sqlite {
    writer: BlockingProcessor<Flight, i64>,
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
        self.writer.process(flights).await
    }

    pub async fn load(&self, ids: Vec<i64>) -> Result<Vec<Option<Flight>>, StoreError> {
        self.reader.process(ids).await
    }
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
         ) STRICT",
    )?;
    Ok(connection)
}

fn insert(connection: &mut Connection, flights: Vec<Flight>) -> rusqlite::Result<Vec<i64>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let sql = format!(
        "INSERT INTO flights ({}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        Flight::COLUMNS
    );
    let mut insert = transaction.prepare_cached(&sql)?;
    let ids = flights.iter().map(|flight| {
        insert.insert(params![
            flight.carrier,
            flight.flight,
            flight.tailnum,
            flight.origin,
            flight.dest,
            flight.time_hour,
            flight.dep_delay,
            flight.air_time,
            flight.distance,
        ])
    });
    let ids = ids.collect::<rusqlite::Result<_>>()?;
    drop(insert);
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
