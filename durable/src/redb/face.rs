//! The store as its users have it: commands go through a micro-batcher to the thread.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use ::redb::{Database, DatabaseError, StorageBackend};
use microbatch::{BlockingProcessor, CancellationToken, JobError, MicroBatch, WeakMicroBatch};
use tokio::sync::{Notify, watch};

use super::engine::{Answer, Command, Engine, Held};
use super::error::RedbError;
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
        RedbStoreBuilder {
            options: Options {
                dedup_window: Duration::from_secs(120),
                max_payload: 16 << 20,
                cache_size: 64 << 20,
                check_integrity: true,
                is_file: true,
                on_repair: Arc::new(|_| {}),
            },
        }
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

/// Builds a [`RedbStore`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use microbatch_durable::{RedbStore, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("jobs.redb");
/// let store = RedbStore::builder()
///     .dedup_window(Duration::from_secs(3600))
///     .cache_size(16 << 20)
///     .open(&path)
///     .await?;
/// assert_eq!(store.depth().await?.pending(), 0);
/// store.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct RedbStoreBuilder {
    options: Options,
}

#[derive(Clone)]
pub(super) struct Options {
    pub(super) dedup_window: Duration,
    pub(super) max_payload: usize,
    pub(super) cache_size: usize,
    pub(super) check_integrity: bool,
    /// Whether there is a file at the path: not if a test brings a backend.
    pub(super) is_file: bool,
    pub(super) on_repair: Arc<dyn Fn(f64) + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("dedup_window", &self.dedup_window)
            .field("max_payload", &self.max_payload)
            .field("cache_size", &self.cache_size)
            .field("check_integrity", &self.check_integrity)
            .finish_non_exhaustive()
    }
}

impl RedbStoreBuilder {
    /// Sets how long the id of a job stays taken once the job is done.
    ///
    /// # Default
    ///
    /// 2 minutes.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{Appended, RedbStore, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("jobs.redb");
    /// let store = RedbStore::builder().dedup_window(Duration::ZERO).open(&path).await?;
    /// store.append(&[job("a")]).await?;
    /// let lease = store.lease(1).await?.remove(0).lease;
    /// store.settle(&[(lease, Verdict::Done)]).await?;
    /// assert_eq!(store.append(&[job("a")]).await?, [Appended::New]); // the id is free
    /// store.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.options.dedup_window = window;
        self
    }

    /// Sets the most bytes of an encoded job; larger ones are refused.
    ///
    /// # Default
    ///
    /// 16 MiB.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{NewJob, RedbStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("jobs.redb");
    /// let store = RedbStore::builder().max_payload(3).open(&path).await?;
    /// let large = NewJob { id: "a".into(), codec: "json".into(), payload: "1234".into() };
    /// assert!(!store.append(&[large]).await?[0].is_accepted());
    /// store.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.options.max_payload = bytes;
        self
    }

    /// Sets how many bytes of the file are kept in memory.
    ///
    /// # Default
    ///
    /// 64 MiB.
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
    /// let store = RedbStore::builder().cache_size(8 << 20).open(&path).await?;
    /// assert_eq!(store.depth().await?.pending(), 0);
    /// store.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cache_size(mut self, bytes: usize) -> Self {
        self.options.cache_size = bytes;
        self
    }

    /// Sets whether the whole file is checked when the store is opened. It is read once for that,
    /// so it takes as long as the backlog is large. Unchecked, damage may be met later, as
    /// an error, or as a job with other bytes.
    ///
    /// # Default
    ///
    /// On.
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
    /// // The backlog is huge, and the disk is trusted.
    /// let store = RedbStore::builder().check_integrity(false).open(&path).await?;
    /// assert_eq!(store.depth().await?.pending(), 0);
    /// store.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn check_integrity(mut self, check: bool) -> Self {
        self.options.check_integrity = check;
        self
    }

    /// Sets what is told how far the check at open is, or the repair of a file that was not
    /// closed: from 0 to 1. It is called on the thread of the store.
    ///
    /// # Default
    ///
    /// Nothing but an event of level info.
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
    /// RedbStore::open(&path).await?.close().await;
    /// let store = RedbStore::builder()
    ///     .on_repair(|progress| assert!((0.0..=1.0).contains(&progress)))
    ///     .open(&path)
    ///     .await?;
    /// assert_eq!(store.depth().await?.pending(), 0);
    /// store.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_repair(mut self, progress: impl Fn(f64) + Send + Sync + 'static) -> Self {
        self.options.on_repair = Arc::new(progress);
        self
    }

    /// Opens the file, or creates it in a folder that exists.
    ///
    /// # Errors
    ///
    /// See [`RedbStore::open`].
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{RedbError, RedbStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("jobs.redb");
    /// let nowhere = path.join("no").join("folder");
    /// let error = RedbStore::builder().open(&nowhere).await.unwrap_err();
    /// assert!(matches!(error, RedbError::Io { .. }));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn open(self, path: impl AsRef<Path>) -> Result<RedbStore, RedbError> {
        let path = path.as_ref().to_owned();
        let file = path.clone();
        self.open_by(path, move |builder| builder.create(&file))
            .await
    }

    /// Opens a store on what `backend` makes, for tests of this crate that lose power.
    #[doc(hidden)]
    pub async fn open_on<B: StorageBackend>(
        mut self,
        backend: impl Fn() -> B + Send + Sync + 'static,
    ) -> Result<RedbStore, RedbError> {
        self.options.is_file = false;
        let open = move |builder: &::redb::Builder| builder.create_with_backend(backend());
        self.open_by(PathBuf::from("a backend of a test"), open)
            .await
    }

    async fn open_by(
        self,
        path: PathBuf,
        open: impl Fn(&::redb::Builder) -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<RedbStore, RedbError> {
        let shared = Arc::new(Shared {
            path,
            options: self.options,
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
        Ok(RedbStore {
            batcher,
            shared,
            open,
        })
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

/// Leases whose jobs reached nobody, because the call was dropped. The next transaction
/// releases them.
#[derive(Default)]
pub(super) struct Unreceived {
    leases: Mutex<Vec<RedbLease>>,
    batcher: OnceLock<WeakMicroBatch<Command, Answer>>,
}

impl Unreceived {
    fn set_batcher(&self, batcher: WeakMicroBatch<Command, Answer>) {
        let _ = self.batcher.set(batcher);
    }

    pub(super) fn take(&self) -> Vec<RedbLease> {
        std::mem::take(&mut *self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn put_back(&self, leases: Vec<RedbLease>) {
        self.leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(leases);
    }

    fn release(&self, leases: Vec<RedbLease>) {
        self.put_back(leases);
        let batcher = self.batcher.get().and_then(WeakMicroBatch::upgrade);
        // If the queue is full, what is in it makes a transaction as well. If there is no
        // batcher any more, the leases end with it.
        if let Some(batcher) = batcher {
            drop(batcher.try_submit(Command::Release));
        }
    }
}

/// What a lease brought. Its drop releases the jobs unless they were received.
pub(super) struct Leases {
    jobs: Vec<Leased<RedbLease>>,
    /// If there is none: when there will be one.
    due: Option<SystemTime>,
    unreceived: Arc<Unreceived>,
}

impl Leases {
    pub(super) fn new(
        jobs: Vec<Leased<RedbLease>>,
        due: Option<SystemTime>,
        unreceived: &Arc<Unreceived>,
    ) -> Self {
        Self {
            jobs,
            due,
            unreceived: Arc::clone(unreceived),
        }
    }

    fn receive(mut self) -> Vec<Leased<RedbLease>> {
        std::mem::take(&mut self.jobs)
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if !self.jobs.is_empty() {
            let leases = self.jobs.drain(..).map(|job| job.lease);
            self.unreceived.release(leases.collect());
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
