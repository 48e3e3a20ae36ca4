//! Where flights are kept. All SQL is in the two files below, and all of it is
//! parameterised.

mod postgres;
mod sqlite;

use std::error::Error;

pub use postgres::Postgres;
pub use sqlite::Sqlite;

use crate::flight::Flight;
use crate::later::Job;

pub type StoreError = Box<dyn Error + Send + Sync>;

pub enum Store {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

impl Store {
    /// Stores all flights in one commit, or none, and returns their ids in the same order.
    pub async fn insert(&self, flights: Vec<Flight>) -> Result<Vec<i64>, StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.insert(flights).await,
            Self::Postgres(postgres) => postgres.insert(flights).await,
        }
    }

    /// Stores the flights of these jobs in one commit, or none; those of a job that is
    /// stored already are left out. So a job that comes twice is stored once.
    pub async fn insert_once(&self, jobs: Vec<Job>) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.insert_once(jobs).await,
            Self::Postgres(postgres) => postgres.insert_once(jobs).await,
        }
    }

    /// Loads the flights of these ids, in the same order.
    pub async fn load(&self, ids: Vec<i64>) -> Result<Vec<Option<Flight>>, StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.load(ids).await,
            Self::Postgres(postgres) => postgres.load(ids).await,
        }
    }

    /// How many commits it works on side by side.
    pub fn writers(&self) -> usize {
        match self {
            Self::Sqlite(_) => 1,
            Self::Postgres(_) => postgres::WRITERS,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }
}

/// Tells an error and its causes, each once: some errors tell their cause themselves.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
