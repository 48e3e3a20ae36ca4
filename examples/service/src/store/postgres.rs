//! PostgreSQL, through a pool that replaces connections that were lost.

use std::collections::HashMap;
use std::str::FromStr;

use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row};

use super::StoreError;
use crate::flight::Flight;
use crate::later::Job;
use crate::settings::MOST_IN_FLIGHT;

/// Commits that rows one by one may have at the same time; batches have as many.
pub const WRITERS: usize = MOST_IN_FLIGHT;

pub struct Postgres {
    pool: Pool,
}

impl Postgres {
    /// Connects, and makes the table if there is none. There is no TLS: put the database
    /// on this machine or behind a tunnel, or give the pool a connector of its own.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let config = Config::from_str(url)?;
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let pool = Pool::builder(Manager::from_config(config, NoTls, recycling))
            // One more, for what is loaded.
            .max_size(2 * WRITERS + 1)
            .runtime(Runtime::Tokio1)
            .build()?;
        let client = pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => StoreError::from(error),
            error => error.into(),
        })?;
        let tables = "CREATE TABLE IF NOT EXISTS flights (
             id bigserial PRIMARY KEY,
             carrier text NOT NULL,
             flight integer NOT NULL,
             tailnum text,
             origin text NOT NULL,
             dest text NOT NULL,
             time_hour text NOT NULL,
             dep_delay integer,
             air_time integer,
             distance integer NOT NULL
         );
         CREATE TABLE IF NOT EXISTS stored_jobs (id text PRIMARY KEY)";
        client.batch_execute(tables).await?;
        drop(client);
        Ok(Self { pool })
    }

    pub async fn insert(&self, flights: Vec<Flight>) -> Result<Vec<i64>, StoreError> {
        let client = self.pool.get().await?;
        let columns = Flight::COLUMNS;
        let sql = format!(
            "INSERT INTO flights ({columns})
             SELECT {columns} FROM UNNEST(
                 $1::text[], $2::integer[], $3::text[], $4::text[], $5::text[],
                 $6::text[], $7::integer[], $8::integer[], $9::integer[]
             ) WITH ORDINALITY AS row ({columns}, place)
             ORDER BY place RETURNING id"
        );
        let insert = client.prepare_cached(&sql).await?;
        let columns = Columns::of(&flights);
        let rows = client.query(&insert, &columns.parameters()).await?;
        let ids = rows.iter().map(|row| row.try_get(0));
        let mut ids = ids.collect::<Result<Vec<i64>, _>>()?;
        // The ids are drawn in the order of the rows, which is promised, but they need
        // not be returned in that order.
        ids.sort_unstable();
        Ok(ids)
    }

    pub async fn insert_once(&self, jobs: Vec<Job>) -> Result<(), StoreError> {
        let client = self.pool.get().await?;
        let columns = Flight::COLUMNS;
        // One statement, so flights and marks are committed together.
        let sql = format!(
            "WITH new AS (
                 INSERT INTO stored_jobs SELECT UNNEST($10::text[])
                 ON CONFLICT DO NOTHING RETURNING id
             )
             INSERT INTO flights ({columns})
             SELECT {columns} FROM UNNEST(
                 $1::text[], $2::integer[], $3::text[], $4::text[], $5::text[],
                 $6::text[], $7::integer[], $8::integer[], $9::integer[], $10::text[]
             ) AS row ({columns}, id) JOIN new USING (id)"
        );
        let insert = client.prepare_cached(&sql).await?;
        let (ids, flights): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .map(|Job { id, flight }| (id, flight))
            .unzip();
        let columns = Columns::of(&flights);
        let mut parameters = columns.parameters();
        parameters.push(&ids);
        client.execute(&insert, &parameters).await?;
        Ok(())
    }

    pub async fn load(&self, ids: Vec<i64>) -> Result<Vec<Option<Flight>>, StoreError> {
        let client = self.pool.get().await?;
        let sql = format!(
            "SELECT id, {} FROM flights WHERE id = ANY($1)",
            Flight::COLUMNS
        );
        let select = client.prepare_cached(&sql).await?;
        let rows = client.query(&select, &[&ids]).await?;
        let flights = rows.iter().map(|row| Ok((row.try_get(0)?, flight(row)?)));
        let flights = flights.collect::<Result<HashMap<i64, _>, tokio_postgres::Error>>()?;
        Ok(ids.iter().map(|id| flights.get(id).cloned()).collect())
    }
}

/// The flights of a statement, by column, in the order of [`Flight::COLUMNS`].
struct Columns<'a>(Vec<Box<dyn ToSql + Sync + Send + 'a>>);

impl<'a> Columns<'a> {
    fn of(flights: &'a [Flight]) -> Self {
        fn column<'a, T: ToSql + Sync + Send + 'a>(
            flights: &'a [Flight],
            value: impl Fn(&'a Flight) -> T,
        ) -> Box<dyn ToSql + Sync + Send + 'a> {
            Box::new(flights.iter().map(value).collect::<Vec<T>>())
        }
        Self(vec![
            column(flights, |flight| &flight.carrier),
            column(flights, |flight| flight.flight),
            column(flights, |flight| flight.tailnum.as_deref()),
            column(flights, |flight| &flight.origin),
            column(flights, |flight| &flight.dest),
            column(flights, |flight| &flight.time_hour),
            column(flights, |flight| flight.dep_delay),
            column(flights, |flight| flight.air_time),
            column(flights, |flight| flight.distance),
        ])
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0
            .iter()
            .map(|column| &**column as &(dyn ToSql + Sync))
            .collect()
    }
}

fn flight(row: &Row) -> Result<Flight, tokio_postgres::Error> {
    Ok(Flight {
        carrier: row.try_get(1)?,
        flight: row.try_get(2)?,
        tailnum: row.try_get(3)?,
        origin: row.try_get(4)?,
        dest: row.try_get(5)?,
        time_hour: row.try_get(6)?,
        dep_delay: row.try_get(7)?,
        air_time: row.try_get(8)?,
        distance: row.try_get(9)?,
    })
}
