//! The jobs are in a PostgreSQL database, and what the workers write is in the same one: a
//! batch is one insert, in one transaction with its settlement. So each record is written
//! exactly once, whoever dies when.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Context;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use microbatch_durable::{
    CancellationToken, Delivery, Drain, Drained, PostgresLease, PostgresStore, Verdict,
};
use microbatch_postgres::Server;
use tokio_postgres::{Client, NoTls};

use super::engine::{Engine, IN_FLIGHT, Place, report};
use super::flights::Flight;
use super::found::Found;
use super::message::Message;
use super::options::Which;
use super::output::say;

pub(crate) const HOW_TO_GET: &str = "`apt-get install postgresql`, or put its `initdb` on the PATH";

/// The folder with the programs of the server.
pub(crate) fn program() -> Option<PathBuf> {
    microbatch_postgres::programs().next()
}

pub(crate) struct Postgres;

impl Engine for Postgres {
    type Store = PostgresStore;
    type Server = Server;

    const WHICH: Which = Which::Postgres;
    const NAME: &'static str = "Postgres";
    const CHECKED: &'static str = "every record was written exactly once, as the file has it.";

    fn start() -> anyhow::Result<(Server, String)> {
        let programs =
            program().with_context(|| format!("no PostgreSQL is found: {HOW_TO_GET}"))?;
        say("starting PostgreSQL, in a temporary folder");
        let server = Server::start(programs)?;
        let url = format!("host='{}' user=postgres", server.socket().display());
        Ok((server, url))
    }

    async fn prepare(place: &Place) -> anyhow::Result<PostgresStore> {
        let store = open(place).await?;
        store.migrate().await?;
        let client = connect(place).await?;
        // The second record of a line would be refused.
        let table = format!(
            "CREATE TABLE {}.flights (
                 line bigint PRIMARY KEY, time_hour text NOT NULL, carrier text NOT NULL,
                 flight bigint NOT NULL, tailnum text, origin text NOT NULL, dest text NOT NULL,
                 dep_delay integer, arr_delay integer, air_time bigint, distance bigint NOT NULL
             )",
            place.name
        );
        client.batch_execute(&table).await?;
        Ok(store)
    }

    async fn work(place: &Place, stop: CancellationToken) -> anyhow::Result<Drained> {
        let store = open(place).await?;
        let (pool, settling) = (pool(place)?, store.clone());
        let insert = format!(
            "INSERT INTO {schema}.flights
             SELECT * FROM json_populate_recordset(NULL::{schema}.flights, $1::text::json)",
            schema = place.name
        );
        let drain = Drain::deliveries(store, move |batch| {
            let (pool, store, insert) = (pool.clone(), settling.clone(), insert.clone());
            async move {
                Message::Begun.send();
                write(&pool, &store, &insert, batch).await
            }
        })
        .max_batch_size(place.batch_size)
        .max_in_flight(IN_FLIGHT)
        .on_batch(report)
        .build()?;
        Ok(drain.run(stop).await?)
    }

    async fn check(place: &Place, flights: &[Flight]) -> anyhow::Result<Found> {
        let client = connect(place).await?;
        let select = format!("SELECT row_to_json(f)::text FROM {}.flights f", place.name);
        let rows = client.query(&select, &[]).await?;
        let mut stored = HashMap::new();
        for row in &rows {
            let flight: Flight = serde_json::from_str(row.get(0))?;
            stored.insert(flight.line, flight);
        }
        let found = Found::look(flights, |line| anyhow::Ok(stored.remove(&line)))?;
        Ok(Found {
            stored: rows.len() as u64,
            ..found
        })
    }

    async fn remove(place: &Place) -> anyhow::Result<()> {
        let client = connect(place).await?;
        let drop = format!("DROP SCHEMA IF EXISTS {} CASCADE", place.name);
        Ok(client.batch_execute(&drop).await?)
    }
}

/// Writes a batch and settles it: both, or neither.
async fn write(
    pool: &Pool,
    store: &PostgresStore,
    insert: &str,
    batch: Vec<Delivery<Flight, PostgresLease>>,
) -> anyhow::Result<Vec<Verdict>> {
    let flights: Vec<_> = batch.iter().map(|delivery| &delivery.job).collect();
    let flights = serde_json::to_string(&flights)?;
    let done: Vec<_> = (batch.iter())
        .map(|delivery| (delivery.lease.clone(), Verdict::Done))
        .collect();

    let mut client = pool.get().await?;
    let transaction = client.transaction().await?;
    transaction.execute(insert, &[&flights]).await?;
    // Fails if one of the leases is lost, and with it the transaction: somebody else has
    // the job then.
    store.settle_in(&transaction, &done).await?;
    transaction.commit().await?;
    Ok(vec![Verdict::Settled; done.len()])
}

/// The store. It has a schema of the run's own.
async fn open(place: &Place) -> anyhow::Result<PostgresStore> {
    let store = PostgresStore::builder()
        .schema(&place.name)
        .lease_time(place.lease_time())
        .connect(&place.url)
        .await;
    Ok(store?)
}

/// Connections for what the workers write.
fn pool(place: &Place) -> anyhow::Result<Pool> {
    let recycling_method = RecyclingMethod::Verified;
    let config = ManagerConfig { recycling_method };
    let manager = Manager::from_config(place.url.parse()?, NoTls, config);
    Ok(Pool::builder(manager).max_size(IN_FLIGHT).build()?)
}

async fn connect(place: &Place) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(&place.url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
