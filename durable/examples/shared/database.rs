//! The SQLite database: everything that blocks, and all of the SQL.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Result, TransactionBehavior, named_params};

use super::flights::Flight;
use super::found::Found;

/// How long to wait for another process to release its lock.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Database(Connection);

impl Database {
    /// Opens the database; makes the table if it is new.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        // Every commit waits until its rows are on the disk: after that the job is gone.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "fullfsync", true)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS flights (
                 line INTEGER PRIMARY KEY, time_hour TEXT NOT NULL, carrier TEXT NOT NULL,
                 flight INTEGER NOT NULL, tailnum TEXT, origin TEXT NOT NULL, dest TEXT NOT NULL,
                 dep_delay INTEGER, arr_delay INTEGER, air_time INTEGER, distance INTEGER NOT NULL,
                 seen INTEGER NOT NULL
             )",
        )?;
        Ok(Self(connection))
    }

    /// Stores all of the flights, or none. A job may come again after its process died, so
    /// this may be said twice of a flight: the second time changes nothing but `seen`.
    pub(crate) fn store(&mut self, flights: &[Flight]) -> Result<()> {
        let behavior = TransactionBehavior::Immediate;
        let transaction = self.0.transaction_with_behavior(behavior)?;
        let mut upsert = transaction.prepare_cached(
            "INSERT INTO flights VALUES (:line, :time_hour, :carrier, :flight, :tailnum, :origin,
                 :dest, :dep_delay, :arr_delay, :air_time, :distance, 1)
             ON CONFLICT (line) DO UPDATE SET seen = seen + 1",
        )?;
        for flight in flights {
            upsert.execute(named_params! {
                ":line": flight.line,
                ":time_hour": flight.time_hour,
                ":carrier": flight.carrier,
                ":flight": flight.flight,
                ":tailnum": flight.tailnum,
                ":origin": flight.origin,
                ":dest": flight.dest,
                ":dep_delay": flight.dep_delay,
                ":arr_delay": flight.arr_delay,
                ":air_time": flight.air_time,
                ":distance": flight.distance,
            })?;
        }
        drop(upsert);
        transaction.commit()
    }

    /// Compares what is stored with what should be.
    pub(crate) fn compare(&self, flights: &[Flight]) -> Result<Found> {
        Ok(Found {
            stored: self.count()?,
            seen_again: self.number("SELECT count(*) FROM flights WHERE seen > 1")?,
            ..Found::look(flights, |line| self.find(line))?
        })
    }

    fn find(&self, line: u32) -> Result<Option<Flight>> {
        let mut select = self
            .0
            .prepare_cached("SELECT * FROM flights WHERE line = ?")?;
        let flight = select.query_row([line], |row| {
            Ok(Flight {
                line: row.get("line")?,
                time_hour: row.get("time_hour")?,
                carrier: row.get("carrier")?,
                flight: row.get("flight")?,
                tailnum: row.get("tailnum")?,
                origin: row.get("origin")?,
                dest: row.get("dest")?,
                dep_delay: row.get("dep_delay")?,
                arr_delay: row.get("arr_delay")?,
                air_time: row.get("air_time")?,
                distance: row.get("distance")?,
            })
        });
        flight.optional()
    }

    /// Returns how many flights there are.
    pub(crate) fn count(&self) -> Result<u64> {
        self.number("SELECT count(*) FROM flights")
    }

    fn number(&self, sql: &str) -> Result<u64> {
        let count: u32 = self.0.query_row(sql, [], |row| row.get(0))?;
        Ok(count.into())
    }
}
