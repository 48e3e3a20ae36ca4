//! What is compared, and how one run of it goes.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};

use crate::callers::Outcome;
use crate::flight::{Flight, Flights};
use crate::postgres::Postgres;
use crate::sqlite::Sqlite;
use crate::ways::{self, Bulk, Shape};

/// Batches side by side on Postgres, each on a connection of its own.
pub const IN_FLIGHT: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Postgres(Statement),
    Sqlite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    Insert,
    Unnest,
    Copy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    RowByRow { callers: usize },
    Microbatch(Shape),
    BatchAintOne(Shape),
    ByHand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    pub store: Store,
    pub way: Way,
    pub connections: usize,
    /// So many that a run takes a second or two.
    pub rows: usize,
}

impl Contender {
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |store, way, connections, rows| {
            all.push(Self {
                store,
                way,
                connections,
                rows,
            });
        };
        let insert = Store::Postgres(Statement::Insert);
        let unnest = Store::Postgres(Statement::Unnest);
        let copy = Store::Postgres(Statement::Copy);
        let row_by_row = |callers| Way::RowByRow { callers };

        add(insert, row_by_row(1), 1, 1_000);
        add(insert, row_by_row(16), 16, 10_000);
        add(insert, row_by_row(64), 64, 20_000);
        add(insert, row_by_row(2048), 64, 20_000);
        for store in [unnest, copy] {
            // A share of the callers fills a batch while the others wait for
            // theirs, so every connection has work.
            let shape = |callers| Shape {
                callers,
                batch: callers / IN_FLIGHT,
                in_flight: IN_FLIGHT,
            };
            for callers in [640, 1024, 2048] {
                add(store, Way::Microbatch(shape(callers)), IN_FLIGHT, 100_000);
            }
            add(store, Way::BatchAintOne(shape(2048)), IN_FLIGHT, 100_000);
            for connections in [2, IN_FLIGHT] {
                add(store, Way::ByHand, connections, 100_000);
            }
        }

        // There is one writer; a second batch waits at its door, so that it
        // need not wait for the callers.
        let shape = |callers| Shape {
            callers,
            batch: callers / 2,
            in_flight: 2,
        };
        for connections in [1, 16, 64] {
            add(Store::Sqlite, row_by_row(connections), connections, 1_000);
        }
        add(Store::Sqlite, Way::Microbatch(shape(64)), 1, 10_000);
        add(Store::Sqlite, Way::Microbatch(shape(2048)), 1, 100_000);
        add(Store::Sqlite, Way::BatchAintOne(shape(2048)), 1, 100_000);
        add(Store::Sqlite, Way::ByHand, 1, 100_000);
        all
    }

    pub fn is_postgres(&self) -> bool {
        self.store != Store::Sqlite
    }

    pub fn callers(&self) -> Option<usize> {
        match self.way {
            Way::RowByRow { callers } => Some(callers),
            Way::Microbatch(shape) | Way::BatchAintOne(shape) => Some(shape.callers),
            Way::ByHand => None,
        }
    }

    /// Most rows in one commit.
    pub fn batch(&self) -> usize {
        match self.way {
            Way::RowByRow { .. } => 1,
            Way::Microbatch(shape) | Way::BatchAintOne(shape) => shape.batch,
            Way::ByHand => ways::CHUNK,
        }
    }

    /// Whether this is what others are compared with: row by row, over as many
    /// connections as do best.
    pub fn is_baseline_of(&self, other: &Self) -> bool {
        let callers = match self.store {
            Store::Postgres(_) => 64,
            // Its writers take turns, and more of them only get in the way.
            Store::Sqlite => 1,
        };
        self.way == Way::RowByRow { callers } && self.is_postgres() == other.is_postgres()
    }

    /// Whether this is bulk made by hand with the same statement.
    pub fn is_ceiling_of(&self, other: &Self) -> bool {
        self.way == Way::ByHand && self.store == other.store
    }

    /// Runs it on an empty table and verifies every row.
    pub async fn run(
        &self,
        flights: &Flights,
        postgres: Option<&Postgres>,
        folder: &Path,
    ) -> anyhow::Result<Outcome> {
        let rows = flights.take(self.rows);
        let connections = self.connections;
        match self.store {
            Store::Sqlite => {
                let sqlite = Sqlite::create(folder)?;
                let outcome = match self.way {
                    Way::RowByRow { .. } => sqlite.row_by_row(rows, connections)?,
                    _ => self.serve(rows, sqlite.bulk().await?).await?,
                };
                sqlite.verify(flights, &outcome.receipts)?;
                Ok(outcome)
            }
            Store::Postgres(statement) => {
                let postgres = postgres.context("no Postgres to run on")?;
                postgres.reset().await?;
                let outcome = match (self.way, statement) {
                    (Way::RowByRow { callers }, _) => {
                        postgres.row_by_row(rows, connections, callers).await?
                    }
                    (_, Statement::Copy) => self.serve(rows, postgres.copy(connections)).await?,
                    _ => self.serve(rows, postgres.unnest(connections)).await?,
                };
                let with_ids = statement != Statement::Copy;
                postgres
                    .verify(flights, with_ids, &outcome.receipts)
                    .await?;
                Ok(outcome)
            }
        }
    }

    async fn serve<B: Bulk>(&self, rows: Vec<Flight>, bulk: B) -> anyhow::Result<Outcome> {
        match self.way {
            Way::Microbatch(shape) => ways::microbatch(rows, shape, bulk).await,
            Way::BatchAintOne(shape) => ways::batch_aint_one(rows, shape, bulk).await,
            Way::ByHand => ways::by_hand(rows, self.connections, bulk).await,
            Way::RowByRow { .. } => bail!("row by row is not in bulk"),
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::RowByRow { .. } => "row by row",
            Way::Microbatch(_) => "microbatch",
            Way::BatchAintOne(_) => "batch-aint-one",
            Way::ByHand => "by hand",
        };
        let statement = match self.store {
            Store::Postgres(Statement::Unnest) => ", `UNNEST`",
            Store::Postgres(Statement::Copy) => ", `COPY`",
            _ => "",
        };
        write!(f, "{way}{statement}")
    }
}
