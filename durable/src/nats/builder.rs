//! The options of a store on a NATS server.

use std::time::Duration;

use async_nats::Client;

use super::client::Connection;
use super::error::JetStreamError;
use super::face::JetStreamStore;
use super::names::{Names, OVERHEAD};
use super::setup;

/// The shortest time that a server counts duplicates for, and that a lease may have.
const SHORTEST: Duration = Duration::from_millis(100);

/// Builds a [`JetStreamStore`].
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use microbatch_durable::{JetStreamStore, Store};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = JetStreamStore::builder()
///     .stream("orders")
///     .lease_time(Duration::from_secs(60))
///     .connect("nats://localhost:4222")
///     .await?;
/// assert_eq!(store.lease_time(), Some(Duration::from_secs(60)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct JetStreamStoreBuilder {
    options: Options,
}

#[derive(Debug, Clone)]
pub(super) struct Options {
    stream: String,
    pub(super) lease_time: Option<Duration>,
    pub(super) dedup_window: Option<Duration>,
    pub(super) replicas: Option<usize>,
    pub(super) max_leased: Option<usize>,
    call_timeout: Duration,
    max_payload: Option<usize>,
}

impl JetStreamStoreBuilder {
    pub(super) fn new() -> Self {
        let options = Options {
            stream: "microbatch".to_owned(),
            lease_time: None,
            dedup_window: None,
            replicas: None,
            max_leased: None,
            call_timeout: Duration::from_secs(10),
            max_payload: None,
        };
        Self { options }
    }

    /// Sets the name of the stream: 1 to 128 ASCII letters, digits, `-` and `_`. For `jobs`
    /// there are the streams `jobs`, `jobs_DEAD` and `jobs_FREED` with the subjects
    /// `jobs.jobs.*`, `jobs.dead.*` and `jobs.freed.*`, and the consumer `workers` of the
    /// first. Stores of one name share their jobs.
    ///
    /// # Default
    ///
    /// `microbatch`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::builder().stream("orders").connect("localhost").await?;
    /// assert_eq!(store.stream(), "orders");
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(mut self, name: impl Into<String>) -> Self {
        self.options.stream = name.into();
        self
    }

    /// Sets how long a lease holds without [`extend`](crate::Store::extend), for all who
    /// use the stream: at least 100 ms, and longer than a worker may pause. It is the
    /// `ack_wait` of the consumer. A job that this process has kept, as it was released or
    /// as more came than was asked for, has up to a third less when it is leased.
    ///
    /// # Default
    ///
    /// What the consumer has; 30 seconds, if it is created.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use microbatch_durable::{JetStreamStore, Store};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let time = Duration::from_secs(300);
    /// let store = JetStreamStore::builder().lease_time(time).connect("localhost").await?;
    /// assert_eq!(store.lease_time(), Some(time));
    /// # Ok(())
    /// # }
    /// ```
    pub fn lease_time(mut self, time: Duration) -> Self {
        self.options.lease_time = Some(time);
        self
    }

    /// Sets how long after its append an id stays taken even if the job is done, for all
    /// who use the stream: at least 100 ms. It is the `duplicate_window` of the stream.
    ///
    /// # Default
    ///
    /// What the stream has; 2 minutes, if it is created.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let window = Duration::from_secs(3600);
    /// let store = JetStreamStore::builder().dedup_window(window).connect("localhost").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.options.dedup_window = Some(window);
        self
    }

    /// Sets how many servers of a cluster keep each job: 1, 3 or 5.
    ///
    /// # Default
    ///
    /// What the stream has; 1, if it is created.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::builder().replicas(3).connect("a,b,c").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.options.replicas = Some(replicas);
        self
    }

    /// Sets how many jobs may be leased or delayed at the same time, for all who use the
    /// stream; with so many, no other job is leased. It is the `max_ack_pending` of the
    /// consumer.
    ///
    /// # Default
    ///
    /// What the consumer has; a million, if it is created.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::builder().max_leased(10_000).connect("localhost").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_leased(mut self, jobs: usize) -> Self {
        self.options.max_leased = Some(jobs);
        self
    }

    /// Sets how long a call waits for the server until it fails with
    /// [`TimedOut`](JetStreamError::TimedOut). A lease waits for a job as long as that
    /// takes, and so long for a server that says nothing. What is done to dead letters takes
    /// several requests, of which each has this time.
    ///
    /// # Default
    ///
    /// 10 seconds.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{JetStreamError, JetStreamStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// // Nobody listens on the port 1.
    /// let builder = JetStreamStore::builder().call_timeout(Duration::from_secs(2));
    /// let error = builder.connect("127.0.0.1:1").await.unwrap_err();
    /// assert!(matches!(error, JetStreamError::Unreachable { .. }));
    /// # }
    /// ```
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.options.call_timeout = timeout;
        self
    }

    /// Sets the most bytes of an encoded job; larger ones are refused.
    ///
    /// # Default
    ///
    /// What the server takes as a message, less 8 KiB for the id, the name of the codec,
    /// and the reason should it die: with the server's default of 1 MiB that is 1016 KiB.
    /// More than that is never taken.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::{JetStreamStore, NewJob, Store};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::builder().max_payload(3).connect("localhost").await?;
    /// let large = NewJob { id: "a".into(), codec: "json".into(), payload: "1234".into() };
    /// assert!(!store.append(&[large]).await?[0].is_accepted());
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.options.max_payload = Some(bytes);
        self
    }

    /// Connects to a server, or to one of several with commas between them, and creates
    /// what is missing of the streams and the consumer. A user and a password may stand in
    /// the address. For TLS, tokens and keys, see [`connect_with`](Self::connect_with).
    ///
    /// # Errors
    ///
    /// [`JetStreamError`] names what is wrong: no server, wrong credentials, a missing
    /// right, a stream that is not one of this store, a consumer that is ahead of its
    /// stream.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime. The store is bound to the runtime that it is opened on.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::builder().connect("nats://me:secret@localhost:4222").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(self, url: impl AsRef<str>) -> Result<JetStreamStore, JetStreamError> {
        self.check()?;
        let open = async {
            let connection = Connection::open(url.as_ref(), self.options.call_timeout).await?;
            self.open(connection).await
        };
        Box::pin(open).await
    }

    /// Uses a connection that is there, of `async-nats` 0.51. A right that is missing is
    /// then told by a timeout, as the events of the connection are not this store's to hear.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime. The store is bound to the runtime that it is opened on.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = async_nats::ConnectOptions::with_token("secret".into())
    ///     .connect("localhost")
    ///     .await?;
    /// let store = JetStreamStore::builder().connect_with(client).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect_with(self, client: Client) -> Result<JetStreamStore, JetStreamError> {
        self.check()?;
        let connection = Connection::of_client(client, self.options.call_timeout);
        Box::pin(self.open(connection)).await
    }

    fn check(&self) -> Result<(), JetStreamError> {
        let Options {
            lease_time,
            dedup_window,
            replicas,
            max_leased,
            call_timeout,
            ..
        } = self.options;
        for (option, time) in [
            ("lease_time", lease_time),
            ("dedup_window", dedup_window),
            ("call_timeout", Some(call_timeout)),
        ] {
            if time.is_some_and(|time| time < SHORTEST) {
                let reason = format!("it is {time:?}, and has to be {SHORTEST:?} at least");
                return Err(JetStreamError::BadOption { option, reason });
            }
        }
        for (option, number) in [("replicas", replicas), ("max_leased", max_leased)] {
            if number == Some(0) {
                let reason = "it is 0".to_owned();
                return Err(JetStreamError::BadOption { option, reason });
            }
        }
        Names::new(&self.options.stream).map(drop)
    }

    async fn open(self, connection: Connection) -> Result<JetStreamStore, JetStreamError> {
        let names = Names::new(&self.options.stream)?;
        let lease_time = setup::run(&connection, &names, &self.options).await?;
        let server_max = connection.client.max_payload();
        if server_max < 2 * OVERHEAD {
            return Err(JetStreamError::BadOption {
                option: "max_payload",
                reason: format!(
                    "the server takes messages of {server_max} bytes; this store needs {} at \
                     least",
                    2 * OVERHEAD
                ),
            });
        }
        let most = server_max - OVERHEAD;
        let max_payload = self
            .options
            .max_payload
            .map_or(most, |bytes| bytes.min(most));
        let stream = async |name: &str| {
            let stream = connection.jetstream.get_stream_no_info(name).await;
            stream.map_err(|error| connection.unreachable(&error))
        };
        let streams = [
            stream(&names.live).await?,
            stream(&names.dead).await?,
            stream(&names.freed).await?,
        ];
        Ok(JetStreamStore::start(
            connection,
            names,
            lease_time,
            max_payload,
            streams,
        ))
    }
}
