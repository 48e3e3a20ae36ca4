//! The options of a store in a file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::redb::StorageBackend;

use super::error::RedbError;
use super::face::RedbStore;

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

impl Default for Options {
    fn default() -> Self {
        Self {
            dedup_window: Duration::from_secs(120),
            max_payload: 16 << 20,
            cache_size: 64 << 20,
            check_integrity: true,
            is_file: true,
            on_repair: Arc::new(|_| {}),
        }
    }
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
    pub(super) fn new() -> Self {
        let options = Options::default();
        Self { options }
    }

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
        RedbStore::start(path, self.options, move |builder| builder.create(&file)).await
    }

    /// Opens a store on what `backend` makes, for tests of this crate that lose power.
    #[doc(hidden)]
    pub async fn open_on<B: StorageBackend>(
        mut self,
        backend: impl Fn() -> B + Send + Sync + 'static,
    ) -> Result<RedbStore, RedbError> {
        self.options.is_file = false;
        let open = move |builder: &::redb::Builder| builder.create_with_backend(backend());
        RedbStore::start(PathBuf::from("a backend of a test"), self.options, open).await
    }
}
