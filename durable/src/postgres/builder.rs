//! The options of a store in a PostgreSQL database.

use std::time::Duration;

use deadpool_postgres::Pool;
use tokio_postgres::tls::{MakeTlsConnect, NoTls, TlsConnect};
use tokio_postgres::{Config, Socket};

use super::error::PostgresError;
use super::face::PostgresStore;
use super::link::{self, Listening};

/// Beyond it a time counts as this one; the interval type would lose its microseconds.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Builds a [`PostgresStore`].
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use microbatch_durable::PostgresStore;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::builder()
///     .queue("mails")
///     .lease_time(Duration::from_secs(10))
///     .connect("host=/run/postgresql user=app dbname=app")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct PostgresStoreBuilder {
    pub(super) options: Options,
}

#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) schema: String,
    pub(super) queue: String,
    pub(super) lease_time: Duration,
    pub(super) dedup_window: Duration,
    pub(super) max_payload: usize,
    pub(super) call_timeout: Duration,
    pub(super) poll_interval: Duration,
    pub(super) notify: bool,
    pub(super) max_connections: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schema: "microbatch".to_owned(),
            queue: "default".to_owned(),
            lease_time: Duration::from_secs(30),
            dedup_window: Duration::from_secs(120),
            max_payload: 16 << 20,
            call_timeout: Duration::from_secs(10),
            poll_interval: Duration::from_secs(1),
            notify: true,
            max_connections: 8,
        }
    }
}

impl PostgresStoreBuilder {
    pub(super) fn new() -> Self {
        Self {
            options: Options::default(),
        }
    }

    /// Sets the schema that has the tables.
    ///
    /// # Default
    ///
    /// `microbatch`.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.options.schema = name.into();
        self
    }

    /// Sets the queue. Stores of different queues share the tables, and see nothing of each
    /// other.
    ///
    /// # Default
    ///
    /// `default`.
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.options.queue = name.into();
        self
    }

    /// Sets how long a lease holds without being extended. A job whose process died is due
    /// again after as long. A drain extends at each third.
    ///
    /// # Default
    ///
    /// 30 seconds.
    pub fn lease_time(mut self, time: Duration) -> Self {
        self.options.lease_time = time;
        self
    }

    /// Sets how long the id of a job stays taken once the job is done.
    ///
    /// # Default
    ///
    /// 2 minutes.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.options.dedup_window = window;
        self
    }

    /// Sets the most bytes of an encoded job. The server takes less than 1 GiB.
    ///
    /// # Default
    ///
    /// 16 MiB.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.options.max_payload = bytes;
        self
    }

    /// Sets how long a call may take, from the wait for a connection to the answer. `lease`
    /// waits for jobs without a limit, but not for an answer. Keep it below half of the lease
    /// time, so that a lease can be extended after a call that had no answer.
    ///
    /// # Default
    ///
    /// 10 seconds.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.options.call_timeout = timeout;
        self
    }

    /// Sets the longest pause, before jitter, between two looks for a due job. It matters where
    /// no notice comes: with [`notify(false)`](Self::notify), with a [`pool`](Self::pool) of
    /// yours, behind PgBouncer. There, a job whose append took more than two seconds to commit,
    /// or that another process gave back, may be found some seconds later.
    ///
    /// # Default
    ///
    /// 1 second.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.options.poll_interval = interval;
        self
    }

    /// Sets whether each batch that makes jobs due says so by `NOTIFY`, and whether this store
    /// listens, with a connection of its own. `NOTIFY` takes a lock of the whole cluster while
    /// its transaction commits, so turn it off where many commits a second notify anyway.
    ///
    /// # Default
    ///
    /// On.
    pub fn notify(mut self, notify: bool) -> Self {
        self.options.notify = notify;
        self
    }

    /// Sets the most connections of the pool that [`connect`](Self::connect) makes; the one that
    /// listens comes on top.
    ///
    /// # Default
    ///
    /// 8.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.options.max_connections = connections;
        self
    }

    /// Connects by a URL or a string of `key=value`, without TLS.
    ///
    /// # Errors
    ///
    /// As [`connect_tls`](Self::connect_tls).
    pub async fn connect(self, url: &str) -> Result<PostgresStore, PostgresError> {
        self.connect_tls(url, NoTls).await
    }

    /// Connects by a URL or a string of `key=value`, with any connector for TLS, such as that of
    /// `tokio-postgres-rustls`. Keepalives and a `tcp_user_timeout` of the call timeout are set
    /// unless the string says otherwise.
    ///
    /// # Errors
    ///
    /// If an option cannot be, or the server cannot be reached, or refuses the user. The tables
    /// may be missing: [`migrate`](PostgresStore::migrate) makes them.
    pub async fn connect_tls<T>(self, url: &str, tls: T) -> Result<PostgresStore, PostgresError>
    where
        T: MakeTlsConnect<Socket> + Clone + Sync + Send + 'static,
        T::Stream: Sync + Send,
        T::TlsConnect: Sync + Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            PostgresError::bad_option("url", format!("cannot be read: {error}"))
        })?;
        let options = self.checked()?;
        if config.get_connect_timeout().is_none() {
            // One that is away leaves time for the next.
            let hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
            let hosts = u32::try_from(hosts).unwrap_or(u32::MAX).max(1);
            config.connect_timeout(options.call_timeout / hosts);
        }
        if config.get_tcp_user_timeout().is_none() {
            // The system takes hours, and whole seconds of idleness.
            let timeout = options.call_timeout.min(Duration::from_secs(3600));
            config.tcp_user_timeout(timeout);
            config.keepalives_idle(timeout.max(Duration::from_secs(1)));
        }
        if config.get_application_name().is_none() {
            config.application_name("microbatch");
        }
        let pool = link::pool(config.clone(), tls.clone(), options.max_connections)?;
        let listening = options.notify.then(|| Listening::new(config, tls));
        let store = PostgresStore::start(options, pool, true, listening);
        store.check().await?;
        Ok(store)
    }

    /// Takes a pool of yours, which stays open when the store is closed. Give it
    /// [`RecyclingMethod::Verified`](deadpool_postgres::RecyclingMethod::Verified), or calls meet
    /// connections that died. The store does not listen on it: it looks for due jobs after
    /// pauses that double from 10 ms up to [`poll_interval`](Self::poll_interval).
    ///
    /// # Errors
    ///
    /// As [`connect_tls`](Self::connect_tls).
    pub async fn pool(self, pool: Pool) -> Result<PostgresStore, PostgresError> {
        let store = PostgresStore::start(self.checked()?, pool, false, None);
        store.check().await?;
        Ok(store)
    }

    fn checked(self) -> Result<Options, PostgresError> {
        let mut options = self.options;
        for (option, name) in [("schema", &options.schema), ("queue", &options.queue)] {
            if name.is_empty() || name.contains('\0') {
                return Err(PostgresError::bad_option(option, "is empty, or has a NUL"));
            }
        }
        if options.schema.len() > 63 {
            // The server would cut it.
            return Err(PostgresError::bad_option(
                "schema",
                "has more than 63 bytes",
            ));
        }
        for (option, time) in [
            ("lease_time", &mut options.lease_time),
            ("call_timeout", &mut options.call_timeout),
            ("poll_interval", &mut options.poll_interval),
        ] {
            if *time < Duration::from_millis(1) {
                return Err(PostgresError::bad_option(option, "is below a millisecond"));
            }
            *time = (*time).min(LONGEST);
        }
        if options.max_connections == 0 {
            return Err(PostgresError::bad_option("max_connections", "is zero"));
        }
        options.max_payload = options.max_payload.min(MAX_PAYLOAD);
        Ok(options)
    }
}

/// A message of the protocol and a value have less than 1 GiB.
const MAX_PAYLOAD: usize = 1_000_000_000;

/// Microseconds for an interval.
pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.min(LONGEST).as_micros()).unwrap_or(i64::MAX)
}
