//! The SQLite database: everything that blocks, and all of the SQL.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rusqlite::types::{ToSqlOutput, Value};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use crate::record::{COLUMNS, Column, Kind, Record};

/// How long to wait for another process to release its lock.
const PATIENCE: Duration = Duration::from_millis(500);

/// How many pages are logged before they are copied into the database and the
/// log starts over. Commits wait for that, so it should be rare.
const CHECKPOINT_PAGES: u32 = 4000;

/// More than is ever logged.
const LOG_MEGABYTES: u32 = 24;

/// What the database has of a record.
pub(crate) struct Row {
    pub(crate) line: i64,
    /// One per column, in their order.
    pub(crate) values: Vec<Value>,
}

pub(crate) struct Database {
    connection: Connection,
    insert: String,
    select: String,
    count: String,
}

/// What SQLite says, without the cause, which says it again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DatabaseError(String);

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string())
    }
}

type Result<T> = std::result::Result<T, DatabaseError>;

impl Database {
    /// Opens the database and makes the table anew.
    pub(crate) fn create(path: &Path, table: &str) -> anyhow::Result<Self> {
        let database = Self::open(path, table)?;
        let columns = COLUMNS.iter().map(Column::definition).collect::<String>();
        // What is rolled back has made the write-ahead log as long as it will
        // be. A commit takes half as long again while the log still grows, and
        // that would be all of a short pass and hardly any of a long one.
        let sql = format!(
            "DROP TABLE IF EXISTS {table};
             BEGIN IMMEDIATE;
             CREATE TABLE {table} AS WITH RECURSIVE megabyte(number) AS
                 (SELECT 1 UNION ALL SELECT number + 1 FROM megabyte LIMIT {LOG_MEGABYTES})
                 SELECT zeroblob(1048576) AS filler FROM megabyte;
             ROLLBACK;
             CREATE TABLE {table} (id INTEGER PRIMARY KEY, line INTEGER NOT NULL{columns});"
        );
        let name = || format!("cannot write to the database {}", path.display());
        database.run(&sql).with_context(name)?;
        Ok(database)
    }

    pub(crate) fn open(path: &Path, table: &str) -> anyhow::Result<Self> {
        let name = || format!("cannot open the database {}", path.display());
        let connection = Self::connect(path).with_context(name)?;
        let columns = COLUMNS.map(|column| column.name).join(", ");
        let marks = ", ?".repeat(COLUMNS.len());
        Ok(Self {
            connection,
            insert: format!("INSERT INTO {table} (line, {columns}) VALUES (?{marks})"),
            select: format!("SELECT line, {columns} FROM {table} WHERE id = ?"),
            count: format!("SELECT count(*) FROM {table}"),
        })
    }

    /// Makes every commit wait until its rows are on the disk.
    fn connect(path: &Path) -> Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(DatabaseError("it cannot have a write-ahead log".into()));
        }
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "synchronous", "full")?;
        // Where a plain fsync stops at the disk's own cache, as on macOS.
        connection.pragma_update(None, "fullfsync", true)?;
        Ok(connection)
    }

    /// Stores all of the records, in one transaction, or none; returns their
    /// row ids in the same order.
    pub(crate) fn insert(&mut self, records: &[Record]) -> Result<Vec<i64>> {
        let behavior = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(behavior)?;
        let mut ids = Vec::with_capacity(records.len());
        let mut insert = transaction.prepare_cached(&self.insert)?;
        for record in records {
            insert.raw_bind_parameter(1, record.line())?;
            for (index, value) in (2..).zip(record.values()) {
                insert.raw_bind_parameter(index, ToSqlOutput::Borrowed(value))?;
            }
            insert.raw_execute()?;
            ids.push(transaction.last_insert_rowid());
        }
        drop(insert);
        transaction.commit()?;
        Ok(ids)
    }

    /// Reads all that follows from the same snapshot, which also saves asking
    /// for one row by row.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.run("BEGIN")
    }

    fn run(&self, sql: &str) -> Result<()> {
        Ok(self.connection.execute_batch(sql)?)
    }

    pub(crate) fn find(&self, id: i64) -> Result<Option<Row>> {
        let mut select = self.connection.prepare_cached(&self.select)?;
        let record = select.query_row([id], |row| {
            Ok(Row {
                line: row.get(0)?,
                values: (1..=COLUMNS.len())
                    .map(|index| row.get(index))
                    .collect::<rusqlite::Result<_>>()?,
            })
        });
        Ok(record.optional()?)
    }

    pub(crate) fn count(&self) -> Result<u64> {
        let count: i64 = self
            .connection
            .query_row(&self.count, [], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }
}

impl Column {
    fn definition(&self) -> String {
        let kind = match self.kind {
            Kind::Integer => "INTEGER",
            Kind::Text => "TEXT",
        };
        let null = if self.optional { "" } else { " NOT NULL" };
        format!(", {} {kind}{null}", self.name)
    }
}
