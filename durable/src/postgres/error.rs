//! Why the database could not do what it was asked.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use crate::job::JobId;

/// Why a [`PostgresStore`](super::PostgresStore) could not do what it was asked. The jobs are
/// where they were, or where they were to be: after all but [`BadOption`](Self::BadOption) and
/// [`LeasesLost`](Self::LeasesLost) the call may be repeated.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{PostgresError, PostgresStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path().display();
/// let error = PostgresStore::connect(&format!("host={folder} user=app")).await.unwrap_err();
/// assert!(matches!(error, PostgresError::Unreachable { .. }));
/// # }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// No connection, or it broke: no server there, no network, a server that starts or ends.
    #[error("cannot reach the PostgreSQL server")]
    Unreachable {
        /// What the client said.
        #[source]
        source: Arc<tokio_postgres::Error>,
    },
    /// The server does not know this user with this password, or not for this database.
    #[error("the PostgreSQL server refuses the user, the password or the database")]
    Credentials {
        /// What the server said.
        #[source]
        source: Arc<tokio_postgres::Error>,
    },
    /// The role has no right to do that.
    #[error("the role lacks a right on the tables of jobs in the schema `{schema}`")]
    Forbidden {
        /// The schema.
        schema: String,
        /// What the server said.
        #[source]
        source: Arc<tokio_postgres::Error>,
    },
    /// The tables are not there, or are those of another version.
    #[error("the schema `{schema}` has no tables of jobs of this version; call `migrate`")]
    NotMigrated {
        /// The schema.
        schema: String,
        /// What the server said.
        #[source]
        source: Arc<tokio_postgres::Error>,
    },
    /// The tables were made by a later version of this crate.
    #[error("the tables in the schema `{schema}` are of version {found}; this crate knows {known}")]
    Version {
        /// The schema.
        schema: String,
        /// Their version.
        found: i32,
        /// The latest version that this crate knows.
        known: i32,
    },
    /// Ids are in UTF-8, and the database is not.
    #[error("the encoding of the database is {found}; jobs need UTF8")]
    Encoding {
        /// The encoding of the database.
        found: String,
    },
    /// All connections of the pool were in use for the whole time.
    #[error("no connection of the pool was free within {waited:?}")]
    PoolExhausted {
        /// How long the call waited.
        waited: Duration,
    },
    /// There was no answer in time. It is not known whether the call took effect.
    #[error("the PostgreSQL server did not answer within {waited:?}")]
    TimedOut {
        /// How long the call waited.
        waited: Duration,
    },
    /// Some of the leases that were to be settled in a transaction do not hold any longer.
    /// The transaction can only be rolled back.
    #[error("{} of the leases were lost, the first that of {:?}", jobs.len(), jobs.first())]
    LeasesLost {
        /// The jobs whose leases were lost.
        jobs: Vec<JobId>,
    },
    /// An option of the builder that cannot be.
    #[error("the option `{option}` {reason}")]
    BadOption {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The store or its pool was closed.
    #[error("the store is closed")]
    Closed,
    /// The database could not do it, for a reason of its own.
    #[error("the database failed")]
    Database {
        /// What it said.
        #[source]
        source: Arc<tokio_postgres::Error>,
    },
}

impl PostgresError {
    /// `schema` is for the message.
    pub(super) fn from_client(error: tokio_postgres::Error, schema: &str) -> Self {
        let source = Arc::new(error);
        let schema = schema.to_owned();
        let Some(state) = source.code() else {
            // What is not from the server is of the connection, or of its start.
            let text = source.to_string();
            let is = |kind: &str| text.starts_with(kind);
            return match () {
                () if is("invalid configuration") => {
                    Self::bad_option("url", crate::outcome::describe(&*source))
                }
                () if is("authentication error") => Self::Credentials { source },
                () if is("error serializing") || is("error deserializing") => {
                    Self::Database { source }
                }
                () => Self::Unreachable { source },
            };
        };
        match state.code() {
            // Connection exceptions; the server stops, starts, or has no room for us.
            code if code.starts_with("08") || code.starts_with("57P") => {
                Self::Unreachable { source }
            }
            _ if *state == SqlState::TOO_MANY_CONNECTIONS => Self::Unreachable { source },
            code if code.starts_with("28") || code == "3D000" => Self::Credentials { source },
            _ if *state == SqlState::INSUFFICIENT_PRIVILEGE => Self::Forbidden { schema, source },
            _ if [
                SqlState::UNDEFINED_TABLE,
                SqlState::UNDEFINED_COLUMN,
                SqlState::INVALID_SCHEMA_NAME,
            ]
            .contains(state) =>
            {
                Self::NotMigrated { schema, source }
            }
            _ => Self::Database { source },
        }
    }

    /// The places, from 0, that the server has told with `leases_lost`.
    pub(super) fn lost_places(&self) -> Option<Vec<usize>> {
        let Self::Database { source } = self else {
            return None;
        };
        let error = source.as_db_error()?;
        if error.code().code() != "MB001" {
            return None;
        }
        let places = error.detail().unwrap_or_default();
        let places = places.split(|c: char| !c.is_ascii_digit());
        let places = places.filter_map(|place| place.parse::<usize>().ok()?.checked_sub(1));
        Some(places.collect())
    }

    pub(super) fn from_pool(error: PoolError, schema: &str, waited: Duration) -> Self {
        match error {
            PoolError::Backend(error) => Self::from_client(error, schema),
            PoolError::Timeout(TimeoutType::Wait) => Self::PoolExhausted { waited },
            PoolError::Closed => Self::Closed,
            PoolError::Timeout(_) | PoolError::NoRuntimeSpecified => Self::TimedOut { waited },
            PoolError::PostCreateHook(error) => Self::BadOption {
                option: "pool",
                reason: format!("has a hook that fails: {error}"),
            },
        }
    }

    pub(super) fn bad_option(option: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::BadOption { option, reason }
    }
}
