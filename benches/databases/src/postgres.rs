//! Postgres: the statements, and what is made of them.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use anyhow::ensure;
use futures::StreamExt;
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::callers::{self, Outcome};
use crate::check::Check;
use crate::flight::{self, Flight, Flights, INTEGERS, TEXTS};
use crate::ways::Bulk;

/// As many connections as any way has.
const CONNECTIONS: usize = 64;

pub struct Postgres {
    connections: Vec<Arc<Mutex<Connection>>>,
    /// For what is not measured.
    admin: Client,
}

struct Connection {
    client: Client,
    one: Statement,
    unnest: Statement,
    copy: Statement,
}

impl Postgres {
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let admin = open(socket).await?;
        let integers = INTEGERS.map(|name| format!(", {name} integer")).concat();
        let texts = TEXTS.map(|name| format!(", {name} text")).concat();
        let table = format!(
            "CREATE TABLE flights (id bigserial PRIMARY KEY, number bigint NOT NULL{integers}{texts})"
        );
        admin.batch_execute(&table).await?;
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let connection = Connection::new(open(socket).await?).await?;
            connections.push(Arc::new(Mutex::new(connection)));
        }
        Ok(Self { connections, admin })
    }

    /// Empties the table and leaves nothing to write for a checkpoint.
    pub async fn reset(&self) -> anyhow::Result<()> {
        let sql = "TRUNCATE flights RESTART IDENTITY";
        self.admin.batch_execute(sql).await?;
        self.admin.batch_execute("CHECKPOINT").await?;
        Ok(())
    }

    /// A transaction for each row. Callers beyond the number of connections
    /// share them.
    pub async fn row_by_row(
        &self,
        flights: Vec<Flight>,
        connections: usize,
        callers: usize,
    ) -> anyhow::Result<Outcome> {
        let pool: Arc<[_]> = self.connections[..connections].into();
        let store = move |caller: usize, flight: Flight| {
            let connection = Arc::clone(&pool[caller % pool.len()]);
            async move { connection.lock().await.insert(&flight).await }
        };
        callers::run(flights, callers, store).await
    }

    pub fn unnest(&self, connections: usize) -> Table {
        self.table(Kind::Unnest, connections)
    }

    pub fn copy(&self, connections: usize) -> Table {
        self.table(Kind::Copy, connections)
    }

    fn table(&self, kind: Kind, connections: usize) -> Table {
        let connections = self.connections[..connections].into();
        Table { kind, connections }
    }

    pub async fn verify(
        &self,
        flights: &Flights,
        with_ids: bool,
        receipts: &[i64],
    ) -> anyhow::Result<()> {
        let sql = format!(
            "COPY (SELECT id, {} FROM flights) TO STDOUT (FORMAT binary)",
            flight::columns()
        );
        let mut types = vec![Type::INT8];
        types.extend(types_of_a_row());
        let rows = self.admin.copy_out(&sql).await?;
        let mut rows = pin!(BinaryCopyOutStream::new(rows, &types));
        let mut check = Check::new(flights, receipts);
        while let Some(row) = rows.next().await {
            let row = row?;
            let mut flight = Flight {
                number: row.try_get(1)?,
                integers: [None; INTEGERS.len()],
                texts: Default::default(),
            };
            for (index, value) in (2..).zip(&mut flight.integers) {
                *value = row.try_get(index)?;
            }
            for (index, value) in (2 + INTEGERS.len()..).zip(&mut flight.texts) {
                *value = row.try_get(index)?;
            }
            check.row(row.try_get(0)?, with_ids, &flight)?;
        }
        check.finish()
    }
}

async fn open(socket: &Path) -> anyhow::Result<Client> {
    let mut config = Config::new();
    config.host_path(socket).user("postgres").dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client; its errors reach the callers that wait for an answer.
    tokio::spawn(connection);
    Ok(client)
}

fn types_of_a_row() -> Vec<Type> {
    let integers = [Type::INT4; INTEGERS.len()];
    let texts = [Type::TEXT; TEXTS.len()];
    [Type::INT8]
        .into_iter()
        .chain(integers)
        .chain(texts)
        .collect()
}

type Value<'a> = &'a (dyn ToSql + Sync);

fn values(flight: &Flight) -> Vec<Value<'_>> {
    let mut values: Vec<Value<'_>> = Vec::with_capacity(1 + INTEGERS.len() + TEXTS.len());
    values.push(&flight.number);
    values.extend(flight.integers.iter().map(|value| value as Value<'_>));
    values.extend(flight.texts.iter().map(|value| value as Value<'_>));
    values
}

impl Connection {
    async fn new(client: Client) -> anyhow::Result<Self> {
        let columns = flight::columns();
        let types = types_of_a_row();
        let marks: Vec<String> = (1..=types.len()).map(|mark| format!("${mark}")).collect();
        let arrays: Vec<String> = (1..)
            .zip(&types)
            .map(|(mark, kind)| format!("${mark}::{kind}[]"))
            .collect();
        let (marks, arrays) = (marks.join(", "), arrays.join(", "));
        let one = format!("INSERT INTO flights ({columns}) VALUES ({marks}) RETURNING id");
        let unnest = format!(
            "INSERT INTO flights ({columns}) SELECT * FROM UNNEST({arrays}) RETURNING id, number"
        );
        let copy = format!("COPY flights ({columns}) FROM STDIN (FORMAT binary)");
        Ok(Self {
            one: client.prepare(&one).await?,
            unnest: client.prepare(&unnest).await?,
            copy: client.prepare(&copy).await?,
            client,
        })
    }

    async fn insert(&self, flight: &Flight) -> anyhow::Result<i64> {
        let row = self.client.query_one(&self.one, &values(flight)).await?;
        Ok(row.try_get(0)?)
    }

    /// Returns the ids.
    async fn unnest(&self, flights: &[Flight]) -> anyhow::Result<Vec<i64>> {
        let numbers: Vec<i64> = flights.iter().map(|flight| flight.number).collect();
        let integers: [Vec<Option<i32>>; INTEGERS.len()] = std::array::from_fn(|column| {
            let values = flights.iter().map(|flight| flight.integers[column]);
            values.collect()
        });
        let texts: [Vec<Option<&str>>; TEXTS.len()] = std::array::from_fn(|column| {
            let values = flights.iter().map(|flight| flight.texts[column].as_deref());
            values.collect()
        });
        let mut arrays: Vec<Value<'_>> = vec![&numbers];
        arrays.extend(integers.iter().map(|array| array as Value<'_>));
        arrays.extend(texts.iter().map(|array| array as Value<'_>));
        let rows = self.client.query(&self.unnest, &arrays).await?;
        ensure!(rows.len() == flights.len(), "not every row came back");
        let ids = rows.iter().zip(numbers).map(|(row, number)| {
            // Postgres does it in order, but does not promise to.
            ensure!(row.try_get::<_, i64>(1)? == number, "rows out of order");
            Ok(row.try_get(0)?)
        });
        ids.collect()
    }

    /// Returns the numbers, because `COPY` does not tell the ids.
    async fn copy(&self, flights: &[Flight]) -> anyhow::Result<Vec<i64>> {
        let sink = self.client.copy_in(&self.copy).await?;
        let mut writer = pin!(BinaryCopyInWriter::new(sink, &types_of_a_row()));
        for flight in flights {
            writer.as_mut().write(&values(flight)).await?;
        }
        let rows = writer.finish().await?;
        ensure!(rows == flights.len() as u64, "not every row was copied");
        Ok(flights.iter().map(|flight| flight.number).collect())
    }
}

#[derive(Clone)]
pub struct Table {
    kind: Kind,
    connections: Arc<[Arc<Mutex<Connection>>]>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Unnest,
    Copy,
}

impl Table {
    /// A connection that is not in use; there is one where no more batches are
    /// in flight than there are connections.
    async fn free(&self) -> MutexGuard<'_, Connection> {
        let free = self.connections.iter().find_map(|one| one.try_lock().ok());
        match free {
            Some(free) => free,
            None => self.connections[0].lock().await,
        }
    }
}

impl Bulk for Table {
    async fn store(&self, flights: Vec<Flight>) -> anyhow::Result<Vec<i64>> {
        let connection = self.free().await;
        match self.kind {
            Kind::Unnest => connection.unnest(&flights).await,
            Kind::Copy => connection.copy(&flights).await,
        }
    }
}
