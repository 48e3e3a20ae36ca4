//! The store as its users have it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::datetime::parse_rfc3339;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::builder::JetStreamStoreBuilder;
use super::client::Connection;
use super::dead::{DeadStream, system_time};
use super::error::JetStreamError;
use super::leases::Leases;
use super::names::Names;
use super::pull::Pulls;
use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::outcome::{Appended, Settled, Verdict};
use crate::store::{DeadLetters, Promises, Store};

/// What part of the lease time a job is kept for the next lease of this process.
const KEPT_PART: u32 = 3;

/// How often in that time what is kept is looked at.
const LOOKS: u32 = 4;

/// A [`Store`] on a NATS server with JetStream, for any number of processes and machines.
///
/// Clones are the same store. It ends with [`close`](Store::close), which gives back what it
/// has not given to anybody, or when the last clone is dropped, which starts the same.
///
/// # What it promises
///
/// | | |
/// | --- | --- |
/// | an appended job survives the server's process | yes |
/// | … and the power | with `sync_interval: always` in the server's configuration (2.10 and later), or on three servers; by default a server syncs every 2 minutes (every minute before 2.10), and what was appended since may be gone |
/// | an id is taken | while its job lives or is dead, and for [`dedup_window`](JetStreamStoreBuilder::dedup_window) from its append on |
/// | the attempt is exact | unless the server is killed: it writes who has what ten times a second, so a job may come again with an attempt that it had before |
/// | a released job is uncounted | if this process leases it again; one that is given back, at [`close`](Store::close) or because nobody asked for a third of the lease time, has its attempt counted |
/// | a settlement of a lost lease does nothing | by the clock of this process, from before the job was asked for; the server itself compares nothing, so a process that pauses between looking at its clock and sending may settle another's lease |
/// | order | that of appends; jobs that are tried again come before new ones |
///
/// With `sync_interval: always` and one server, each append waits for a sync of its own, so
/// a batch takes as many.
///
/// A server of 2.9 passes the suite, but do not kill it: 2.9.10, killed under load, took for
/// done what it had delivered only, and never delivered it again. 2.15.1 did not.
///
/// # Rights
///
/// Who connects publishes to `$JS.API.STREAM.INFO.*` and `$JS.API.CONSUMER.INFO.>`, and
/// to create what is missing, to `$JS.API.STREAM.CREATE.*`, `$JS.API.STREAM.UPDATE.*` and
/// `$JS.API.CONSUMER.DURABLE.CREATE.>`. Appending needs `NAME.jobs.*`, leasing
/// `$JS.API.CONSUMER.MSG.NEXT.>` and `$JS.ACK.>`, declaring dead `NAME.dead.*`, and looking
/// after dead letters `NAME.freed.*`, `$JS.API.STREAM.MSG.GET.*` and
/// `$JS.API.STREAM.MSG.DELETE.*`. Once there are dead letters, who appends or leases needs
/// `$JS.API.STREAM.MSG.GET.*` as well. All subscribe to `_INBOX.>`.
///
/// # Examples
///
/// ```no_run
/// use microbatch_durable::{JetStreamStore, NewJob, Store, Verdict};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = JetStreamStore::connect("nats://localhost:4222").await?;
/// let job = NewJob { id: "a".into(), codec: "json".into(), payload: "1".into() };
/// store.append(&[job]).await?;
/// let leased = store.lease(10).await?;
/// // What the job says is done here.
/// store.settle(&[(leased[0].lease.clone(), Verdict::Done)]).await?;
/// store.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct JetStreamStore {
    shared: Arc<Shared>,
    /// Ends the tasks with the last clone.
    _open: Arc<DropGuard>,
}

/// One delivery of one job of a [`JetStreamStore`].
///
/// # Examples
///
/// ```no_run
/// use microbatch_durable::{JetStreamLease, JetStreamStore, Settled, Store, Verdict};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = JetStreamStore::connect("nats://localhost:4222").await?;
/// let lease: JetStreamLease = store.lease(1).await?.remove(0).lease;
/// assert_eq!(store.settle(&[(lease, Verdict::Done)]).await?, [Settled::Held]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JetStreamLease(pub(super) u64);

/// What the clones and the tasks share.
pub(super) struct Shared {
    pub(super) connection: Connection,
    pub(super) names: Names,
    pub(super) lease_time: Duration,
    pub(super) max_payload: usize,
    pub(super) dead: DeadStream,
    /// Told when there may be jobs to give.
    pub(super) changed: Notify,
    pub(super) tasks: TaskTracker,
    leases: Mutex<Leases>,
    pulls: Mutex<Pulls>,
    pub(super) cancel: CancellationToken,
}

impl Shared {
    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pulls(&self) -> MutexGuard<'_, Pulls> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn check_open(&self) -> Result<(), JetStreamError> {
        match self.pulls().is_closed() {
            false => Ok(()),
            true => Err(self.closed()),
        }
    }

    pub(super) fn closed(&self) -> JetStreamError {
        JetStreamError::Closed {
            stream: self.names.live.clone(),
        }
    }

    async fn depth(&self) -> Result<Depth, JetStreamError> {
        let (connection, names) = (&self.connection, &self.names);
        let consumer = connection.consumer_info(names).await?;
        let counts = self.leases().counts();
        let live = connection.stream_info(&names.live, &Value::Null);
        let (live, dead) = tokio::try_join!(live, self.dead.count())?;
        let messages = live["state"]["messages"].as_u64().unwrap_or(0);
        let oldest = live["state"]["first_ts"]
            .as_str()
            .filter(|_| messages > 0)
            .and_then(|time| parse_rfc3339(time).ok())
            .map(|time| system_time(time.unix_timestamp_nanos()));
        let unsettled = consumer["num_ack_pending"].as_u64().unwrap_or(0);
        let unsettled = unsettled.min(messages);
        let delayed = counts.delayed.min(unsettled);
        let due = counts.due.min(unsettled - delayed);
        Ok(Depth {
            ready: messages - unsettled + due,
            leased: unsettled - delayed - due,
            delayed,
            dead,
            oldest,
        })
    }

    /// Gives back what nobody leases, until the store ends; then all that is kept.
    async fn keep(self: Arc<Self>) {
        let patience = self.lease_time / KEPT_PART;
        let mut looks = interval(patience / LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.cancel.cancelled() => break,
            }
            let stale = {
                let mut leases = self.leases();
                leases.sweep(self.lease_time);
                leases.take_stale(patience)
            };
            self.give_back_all(stale).await;
        }
        self.pulls().close();
        self.changed.notify_waiters();
        let pull = self.pulls().current();
        if let Some(pull) = pull {
            let _ = pull.await;
        }
        let kept = self.leases().take_stale(Duration::ZERO);
        self.give_back_all(kept).await;
    }
}

impl JetStreamStore {
    /// Connects to a server with the defaults of [`builder`](Self::builder), and creates
    /// what is missing of the streams and the consumer. A user and a password may stand in
    /// the address.
    ///
    /// # Errors
    ///
    /// See [`JetStreamStoreBuilder::connect`].
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime. The store is bound to the runtime that it is opened on.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::{JetStreamStore, Store};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::connect("nats://localhost:4222").await?;
    /// assert_eq!(store.depth().await?.dead, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, JetStreamError> {
        Self::builder().connect(url).await
    }

    /// Starts to build one with other options.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::builder().stream("orders").connect("localhost").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> JetStreamStoreBuilder {
        JetStreamStoreBuilder::new()
    }

    /// Returns the name of the stream.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::JetStreamStore;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = JetStreamStore::connect("localhost").await?;
    /// assert_eq!(store.stream(), "microbatch");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.shared.names.live
    }

    pub(super) fn start(
        connection: Connection,
        names: Names,
        lease_time: Duration,
        max_payload: usize,
        streams: [async_nats::jetstream::stream::Stream<()>; 3],
    ) -> Self {
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared {
            dead: DeadStream::new(connection.clone(), names.clone(), streams),
            connection,
            names,
            lease_time,
            max_payload,
            changed: Notify::new(),
            tasks: TaskTracker::new(),
            leases: Mutex::default(),
            pulls: Mutex::default(),
            cancel: cancel.clone(),
        });
        shared.tasks.spawn(Arc::clone(&shared).keep());
        Self {
            shared,
            _open: Arc::new(cancel.drop_guard()),
        }
    }
}

impl fmt::Debug for JetStreamStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamStore")
            .field("server", &self.shared.connection.server)
            .field("stream", &self.shared.names.live)
            .finish_non_exhaustive()
    }
}

// The calls are boxed: they are large, and a caller that has several would have to move them.
impl Store for JetStreamStore {
    type Lease = JetStreamLease;
    type Error = JetStreamError;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, JetStreamError> {
        self.shared.check_open()?;
        let append = Box::pin(self.shared.append(jobs));
        self.shared.connection.bounded("append", &[], append).await
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<JetStreamLease>>, JetStreamError> {
        Box::pin(self.shared.lease(max)).await
    }

    async fn settle(
        &self,
        verdicts: &[(JetStreamLease, Verdict)],
    ) -> Result<Vec<Settled>, JetStreamError> {
        self.shared.check_open()?;
        Box::pin(self.shared.settle(verdicts)).await
    }

    async fn extend(&self, leases: &[JetStreamLease]) -> Result<Vec<Settled>, JetStreamError> {
        self.shared.check_open()?;
        Box::pin(self.shared.extend(leases)).await
    }

    fn lease_time(&self) -> Option<Duration> {
        Some(self.shared.lease_time)
    }

    /// Counts the jobs. A job that this process has given back is `ready` or `delayed`;
    /// one that another process has given back is `leased` until it is leased again, as the
    /// server does not tell them apart. [`pending`](Depth::pending) is exact.
    async fn depth(&self) -> Result<Depth, JetStreamError> {
        self.shared.check_open()?;
        let depth = Box::pin(self.shared.depth());
        self.shared.connection.bounded("depth", &[], depth).await
    }

    fn promises(&self) -> Promises {
        Promises {
            releases_uncounted: false,
            retries_in_order: false,
            delays_counted: false,
        }
    }

    /// Gives back the jobs that were released and not leased again, each with its attempt
    /// counted, and returns once no task of the store runs: after half a second at most, if
    /// the server answers. Leases that are not settled end with their time.
    async fn close(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl DeadLetters for JetStreamStore {
    async fn list(
        &self,
        after: Option<&JobId>,
        limit: usize,
    ) -> Result<Vec<DeadJob>, JetStreamError> {
        self.shared.check_open()?;
        Box::pin(self.shared.dead.list(after, limit)).await
    }

    async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>, JetStreamError> {
        self.shared.check_open()?;
        let revived = Box::pin(self.shared.dead.revive(ids)).await;
        self.shared.changed.notify_waiters();
        revived
    }

    async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>, JetStreamError> {
        self.shared.check_open()?;
        Box::pin(self.shared.dead.discard(ids)).await
    }
}
