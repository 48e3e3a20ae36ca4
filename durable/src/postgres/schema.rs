//! The tables: made and upgraded by `migrate`.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::error::PostgresError;
use super::link::Link;

/// The statements that lead from each version to the next.
const MIGRATIONS: [&str; 1] = [include_str!("schema.sql")];

/// Begins a transaction of ours, whatever the role has as its default.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// What there was.
enum Found {
    Version(i32),
    /// Another encoding of the database than UTF-8.
    Encoding(String),
}

/// Brings the tables to the latest version, in one transaction. Several processes at once do
/// it one after another. Leaves all as it was where it cannot.
pub(super) async fn migrate(link: &Link) -> Result<(), PostgresError> {
    let schema = &*link.schema;
    let connection = link.borrow().await?;
    connection.ask(|client| client.batch_execute(BEGIN)).await?;
    let found = connection.ask(|client| migrate_in(client, schema)).await;
    let known = MIGRATIONS.len() as i32;
    let outcome = match found {
        Ok(Found::Encoding(found)) => Err(PostgresError::Encoding { found }),
        Ok(Found::Version(found)) if found > known => Err(PostgresError::Version {
            schema: schema.to_owned(),
            found,
            known,
        }),
        Ok(_) => {
            return connection
                .ask(|client| client.batch_execute("COMMIT"))
                .await;
        }
        Err(error) => Err(error),
    };
    // If it cannot be asked for, the end of the connection does it.
    let _ = connection
        .ask(|client| client.batch_execute("ROLLBACK"))
        .await;
    outcome
}

/// Returns the version that was found.
async fn migrate_in(client: &Client, schema: &str) -> Result<Found, Error> {
    let sql = "SELECT current_setting('server_encoding')";
    let encoding: String = client.query_typed_one(sql, &[]).await?.get(0);
    if encoding != "UTF8" {
        return Ok(Found::Encoding(encoding));
    }
    // Released with the transaction.
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    let name = format!("microbatch migrates {schema}");
    client.query_typed(lock, &[(&name, Type::TEXT)]).await?;
    // Not by `IF NOT EXISTS`, for which a right is needed also where it exists.
    let exists = async |function: &str, name: &str| -> Result<bool, Error> {
        let sql = format!("SELECT {function}($1) IS NOT NULL");
        Ok(client
            .query_typed_one(&sql, &[(&name, Type::TEXT)])
            .await?
            .get(0))
    };
    if !exists("to_regnamespace", schema).await? {
        client
            .batch_execute(&format!("CREATE SCHEMA {schema}"))
            .await?;
    }
    if !exists("to_regclass", &format!("{schema}.version")).await? {
        let sql = format!(
            "CREATE TABLE {schema}.version (number integer NOT NULL);
            INSERT INTO {schema}.version VALUES (0)",
        );
        client.batch_execute(&sql).await?;
    }
    let sql = format!("SELECT max(number) FROM {schema}.version");
    let found: Option<i32> = client.query_typed_one(&sql, &[]).await?.get(0);
    let found = found.unwrap_or(0);
    let open = MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0));
    let mut open = open.peekable();
    if open.peek().is_none() {
        return Ok(Found::Version(found));
    }
    for sql in open {
        client
            .batch_execute(&sql.replace("{schema}", schema))
            .await?;
    }
    let known = MIGRATIONS.len();
    let sql = format!("UPDATE {schema}.version SET number = {known}");
    client.batch_execute(&sql).await?;
    Ok(Found::Version(found))
}
