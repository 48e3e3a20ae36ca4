//! The store as its users have it: commands go through a micro-batcher to the thread.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ::redb::{Database, DatabaseError};
use microbatch::{BlockingProcessor, CancellationToken, JobError, MicroBatch};
use tokio::sync::{Notify, watch};

use super::builder::{Options, RedbStoreBuilder};
use super::engine::{Answer, Command, Engine, Held};
use super::error::RedbError;
use super::leases::Unreceived;
use crate::gather;
use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::outcome::{Appended, Settled, Verdict, describe};
use crate::store::{DeadLetters, Store};

/// The longest sleep until a delayed job is due: the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// A [`Store`] in one file, for one process, without a server; on redb.
///
/// It is itself a [`MicroBatch`] over a [`BlockingProcessor`]: every call that waits while
/// the disk syncs goes into the next transaction, and all calls of a transaction share one
/// fsync. So leasing and settling cost no fsync of their own under load.
///
/// - What is appended survives the process and the system (the power, too, if the disk
///   keeps what it has synced).
/// - Leases last as long as the process; all that is unsettled is due again at the next
///   open, its attempt counted.
/// - The file grows with the backlog and is compacted, once empty, when it is opened or
///   closed.
///
/// Clones are the same store. It is closed when the last clone is dropped, a moment later,
/// or by [`close`](Store::close), which waits for that.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{NewJob, RedbStore, Store, Verdict};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("jobs.redb");
/// let store = RedbStore::open(&path).await?;
/// let job = NewJob { id: "a".into(), codec: "json".into(), payload: "1".into() };
/// store.append(&[job]).await?;
/// store.lease(1).await?;
/// store.close().await; // unsettled
///
/// let store = RedbStore::open(&path).await?;
/// let leased = store.lease(1).await?;
/// assert_eq!(leased[0].attempt.get(), 2);
/// store.settle(&[(leased[0].lease.clone(), Verdict::Done)]).await?;
/// # store.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedbStore {
    batcher: MicroBatch<Command, Answer>,
    shared: Arc<Shared>,
    /// Ends when the thread has closed the file.
    open: watch::Receiver<()>,
}

/// One delivery of one job of a [`RedbStore`].
///
/// # Examples
///
/// ```
/// use microbatch_durable::{RedbLease, RedbStore, Settled, Store, Verdict};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("jobs.redb");
/// let store = RedbStore::open(&path).await?;
/// store.append(&[job("a")]).await?;
/// let lease: RedbLease = store.lease(1).await?.remove(0).lease;
/// assert_eq!(store.settle(&[(lease, Verdict::Done)]).await?, [Settled::Held]);
/// store.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RedbLease(pub(super) u64);

impl RedbStore {
    /// Opens the file, or creates it in a folder that exists, with the defaults of
    /// [`builder`](Self::builder).
    ///
    /// # Errors
    ///
    /// [`RedbError`] names the file and says what is wrong: no such folder, no right, in use
    /// by another process, not a store, of another version, damaged.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime. The store is bound to the runtime that it is opened on.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{RedbStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("jobs.redb");
    /// let store = RedbStore::open(&path).await?;
    /// assert_eq!(store.depth().await?.pending(), 0);
    /// store.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, RedbError> {
        Self::builder().open(path).await
    }

    /// Starts to build one with other options.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{RedbStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("jobs.redb");
    /// let store = RedbStore::builder().check_integrity(false).open(&path).await?;
    /// store.close().await;
    /// assert!(path.exists());
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> RedbStoreBuilder {
        RedbStoreBuilder::new()
    }

    /// Returns the path that it was opened by.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{RedbStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("jobs.redb");
    /// let store = RedbStore::open(&path).await?;
    /// assert_eq!(store.path(), path);
    /// store.close().await;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Starts the thread, and waits until it has the file open.
    pub(super) async fn start(
        path: PathBuf,
        options: Options,
        open: impl Fn(&::redb::Builder) -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<Self, RedbError> {
        let shared = Arc::new(Shared {
            path,
            options,
            open: Box::new(open),
            held: Held::default(),
            unreceived: Arc::default(),
            opened: AtomicBool::new(false),
            changed: Notify::new(),
        });
        let (is_open, open) = watch::channel(());
        let in_thread = Arc::clone(&shared);
        let init = move || Engine::open(Arc::clone(&in_thread), is_open.clone());
        let processor = BlockingProcessor::spawn(init, Engine::run)
            .await
            .map_err(|error| {
                let error = error.into_inner();
                match error.downcast::<RedbError>() {
                    Ok(error) => *error,
                    // A panic in redb, which it has for damage that it does not expect.
                    Err(error) => match error.downcast_ref::<JobError>() {
                        Some(error) => shared.error_of(error),
                        None => RedbError::corrupt(&shared.path, describe(&*error)),
                    },
                }
            })?;
        let batcher = MicroBatch::builder(processor)
            .flush_when_idle(true)
            .max_batch_size(1024)
            .queue_capacity(1024)
            .shutdown_timeout(Duration::MAX)
            .name("microbatch-durable-redb")
            .build()
            .map_err(|error| RedbError::io(&shared.path, std::io::Error::other(error)))?;
        gather::start(&batcher, CancellationToken::new());
        shared.unreceived.set_batcher(batcher.downgrade());
        Ok(Self {
            batcher,
            shared,
            open,
        })
    }

    async fn call(&self, command: Command) -> Result<Answer, RedbError> {
        self.batcher
            .submit(command)
            .await
            .map_err(|error| self.shared.error_of(&error))
    }

    /// What a call says whose answer is not of its kind, which no version of it does.
    fn mismatch(&self) -> RedbError {
        RedbError::corrupt(&self.shared.path, "a call got the answer of another")
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

/// What the thread and the face share.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) options: Options,
    pub(super) open: Box<OpenDatabase>,
    pub(super) held: Held,
    pub(super) unreceived: Arc<Unreceived>,
    /// Whether this store has had the file open before.
    opened: AtomicBool,
    /// Told of every commit.
    pub(super) changed: Notify,
}

type OpenDatabase = dyn Fn(&::redb::Builder) -> Result<Database, DatabaseError> + Send + Sync;

impl Shared {
    pub(super) fn opened(&self) -> bool {
        self.opened.load(Ordering::Acquire)
    }

    pub(super) fn set_opened(&self) {
        self.opened.store(true, Ordering::Release);
    }

    fn error_of(&self, error: &JobError) -> RedbError {
        match error {
            JobError::Failed(cause) => match cause.downcast_ref::<RedbError>() {
                Some(error) => error.clone(),
                None => RedbError::io(&self.path, std::io::Error::other(Arc::clone(cause))),
            },
            JobError::Panicked(message) => RedbError::corrupt(&self.path, &**message),
            _ => RedbError::Closed {
                path: self.path.clone(),
            },
        }
    }
}

impl Store for RedbStore {
    type Lease = RedbLease;
    type Error = RedbError;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, RedbError> {
        match self.call(Command::Append(jobs.to_vec())).await? {
            Answer::Append(answers) => Ok(answers),
            _ => Err(self.mismatch()),
        }
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<RedbLease>>, RedbError> {
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            // Listens before it asks, so that no change is missed.
            changed.as_mut().enable();
            let Answer::Lease(leases) = self.call(Command::Lease(max.max(1))).await? else {
                return Err(self.mismatch());
            };
            if !leases.jobs.is_empty() {
                return Ok(leases.receive());
            }
            let until_due = leases.due.map_or(LONGEST_SLEEP, |due| {
                due.duration_since(SystemTime::now())
                    .unwrap_or_default()
                    .min(LONGEST_SLEEP)
            });
            let mut open = self.open.clone();
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(until_due) => {}
                // The next call says that the store is closed.
                _ = open.changed() => {}
            }
        }
    }

    async fn settle(&self, verdicts: &[(RedbLease, Verdict)]) -> Result<Vec<Settled>, RedbError> {
        match self.call(Command::Settle(verdicts.to_vec())).await? {
            Answer::Settle(answers) => Ok(answers),
            _ => Err(self.mismatch()),
        }
    }

    async fn extend(&self, leases: &[RedbLease]) -> Result<Vec<Settled>, RedbError> {
        let held = |lease| match self.shared.held.job_of(lease) {
            Some(_) => Settled::Held,
            None => Settled::Lost,
        };
        Ok(leases.iter().map(held).collect())
    }

    fn lease_time(&self) -> Option<Duration> {
        None
    }

    async fn depth(&self) -> Result<Depth, RedbError> {
        match self.call(Command::Depth).await? {
            Answer::Depth(depth) => Ok(depth),
            _ => Err(self.mismatch()),
        }
    }

    async fn close(&self) {
        // It has no deadline: what was accepted is written.
        let _ = self.batcher.shutdown().await;
        // Until the thread has dropped its end.
        let mut open = self.open.clone();
        while open.changed().await.is_ok() {}
    }
}

impl DeadLetters for RedbStore {
    async fn list(&self, after: Option<&JobId>, limit: usize) -> Result<Vec<DeadJob>, RedbError> {
        match self.call(Command::List(after.cloned(), limit)).await? {
            Answer::List(jobs) => Ok(jobs),
            _ => Err(self.mismatch()),
        }
    }

    async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>, RedbError> {
        match self.call(Command::Revive(ids.to_vec())).await? {
            Answer::Found(answers) => Ok(answers),
            _ => Err(self.mismatch()),
        }
    }

    async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>, RedbError> {
        match self.call(Command::Discard(ids.to_vec())).await? {
            Answer::Found(answers) => Ok(answers),
            _ => Err(self.mismatch()),
        }
    }
}
