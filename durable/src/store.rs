//! The traits of a place where jobs wait and survive.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::outcome::{Appended, Settled, Verdict};

/// A place where jobs wait and survive.
///
/// It deals in ids and bytes; [`Durable`](crate::Durable) and [`Drain`](crate::Drain)
/// encode and decode. Every answer is per job and in the order of the question. A call
/// with nothing in it answers with nothing. [`conformance`](crate::conformance) tests an
/// implementation.
///
/// # Ids
///
/// An id is taken from the moment that its job is appended until that job is done and
/// the store's deduplication window after that has passed; a dead job keeps its id.
///
/// # Leases
///
/// A lease is one delivery of one job. It ends when it is settled, when its time is over
/// without [`extend`](Store::extend), and with the process if
/// [`lease_time`](Store::lease_time) is `None`. A job whose lease ended unsettled is due
/// at once, with its attempt counted.
///
/// # Errors
///
/// An error of any method says that nothing is known: it may have happened. Every method
/// may be repeated: ids keep an append from happening twice, leases a settlement. What
/// the first call settled, the second calls [`Lost`](Settled::Lost).
///
/// # Examples
///
/// ```
/// use microbatch_durable::{MemoryStore, Settled, Store, Verdict};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// async fn finish_one<S: Store>(store: &S) -> Result<Settled, S::Error> {
///     let leased = store.lease(1).await?.remove(0);
///     // What the job says is done here.
///     Ok(store.settle(&[(leased.lease, Verdict::Done)]).await?.remove(0))
/// }
///
/// let store = MemoryStore::new();
/// store.append(&[job("a")]).await?;
/// assert_eq!(finish_one(&store).await?, Settled::Held);
/// assert_eq!(store.depth().await?.pending(), 0);
/// # Ok(())
/// # }
/// ```
pub trait Store: Send + Sync + 'static {
    /// One delivery of one job; a later delivery of the same job is another lease.
    type Lease: Clone + Debug + Send + Sync + 'static;

    /// Why the store could not do what it was asked.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Appends jobs, in order and in one commit. What is not refused is durable once this
    /// returns.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Appended, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// assert_eq!(store.append(&[job("a")]).await?, [Appended::New]);
    /// assert_eq!(store.append(&[job("a"), job("b")]).await?, [Appended::Duplicate, Appended::New]);
    /// # Ok(())
    /// # }
    /// ```
    fn append(
        &self,
        jobs: &[NewJob],
    ) -> impl Future<Output = Result<Vec<Appended>, Self::Error>> + Send;

    /// Waits until a job is due, and gives 1 to `max`, those longest due first. Each
    /// attempt is durable before this returns. `max` is at least 1.
    ///
    /// # Cancel safety
    ///
    /// What a dropped call has leased is released.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a"), job("b"), job("c")]).await?;
    /// assert_eq!(store.lease(2).await?.len(), 2);
    /// assert_eq!(&*store.lease(2).await?[0].id, "c");
    /// # Ok(())
    /// # }
    /// ```
    fn lease(
        &self,
        max: usize,
    ) -> impl Future<Output = Result<Vec<Leased<Self::Lease>>, Self::Error>> + Send;

    /// Does in one commit what the verdicts say, and answers for each whether its lease
    /// held; if not, its job is left alone.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{MemoryStore, Settled, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let lease = store.lease(1).await?.remove(0).lease;
    /// assert_eq!(store.settle(&[(lease, Verdict::Release)]).await?, [Settled::Held]);
    /// assert_eq!(store.lease(1).await?[0].attempt.get(), 1); // not counted
    /// # Ok(())
    /// # }
    /// ```
    fn settle(
        &self,
        verdicts: &[(Self::Lease, Verdict)],
    ) -> impl Future<Output = Result<Vec<Settled>, Self::Error>> + Send;

    /// Starts the time of these leases again, and answers for each whether it held.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{MemoryStore, Settled, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::builder().lease_time(Duration::from_secs(30)).build();
    /// store.append(&[job("a")]).await?;
    /// let lease = store.lease(1).await?.remove(0).lease;
    /// store.advance(Duration::from_secs(20));
    /// assert_eq!(store.extend(&[lease.clone()]).await?, [Settled::Held]);
    /// store.advance(Duration::from_secs(20)); // 40 seconds after the lease
    /// assert_eq!(store.settle(&[(lease, Verdict::Done)]).await?, [Settled::Held]);
    /// # Ok(())
    /// # }
    /// ```
    fn extend(
        &self,
        leases: &[Self::Lease],
    ) -> impl Future<Output = Result<Vec<Settled>, Self::Error>> + Send;

    /// How long a lease holds without [`extend`](Store::extend); `None`: as long as this
    /// process.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{MemoryStore, Store};
    ///
    /// assert_eq!(MemoryStore::new().lease_time(), None);
    /// let store = MemoryStore::builder().lease_time(Duration::from_secs(30)).build();
    /// assert_eq!(store.lease_time(), Some(Duration::from_secs(30)));
    /// ```
    fn lease_time(&self) -> Option<Duration>;

    /// Counts the jobs.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a"), job("b")]).await?;
    /// assert_eq!(store.depth().await?.ready, 2);
    /// # Ok(())
    /// # }
    /// ```
    fn depth(&self) -> impl Future<Output = Result<Depth, Self::Error>> + Send;

    /// Says which of the promises of this trait the store does not keep, for those who test
    /// it. By default it keeps all.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{MemoryStore, Promises, Store};
    ///
    /// assert_eq!(MemoryStore::new().promises(), Promises::default());
    /// ```
    fn promises(&self) -> Promises {
        Promises::default()
    }

    /// Gives back what the store holds, such as the lock of a file, so that it can be
    /// opened again. By default there is nothing to give back.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "redb"))]
    /// # fn main() {}
    /// # #[cfg(feature = "redb")]
    /// use microbatch_durable::{RedbStore, Store};
    ///
    /// # #[cfg(feature = "redb")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("jobs.redb");
    /// let store = RedbStore::open(&path).await?;
    /// store.close().await;
    /// let again = RedbStore::open(&path).await?; // not in use any longer
    /// again.close().await;
    /// # Ok(())
    /// # }
    /// ```
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Which of the finer promises of a [`Store`] are kept. [`conformance`](crate::conformance)
/// asks for less where one is not, and for nothing less elsewhere. By default all are kept.
///
/// # Examples
///
/// ```
/// use microbatch_durable::Promises;
///
/// let mut promises = Promises::default();
/// assert!(promises.releases_uncounted);
/// promises.releases_uncounted = false; // in `promises` of a store that counts them
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Promises {
    /// A released job is not counted, whoever leases it next. If not: it may be counted if
    /// the store is closed before the job is leased again.
    pub releases_uncounted: bool,
    /// A job that is to be tried again is leased behind those that were due before it, and
    /// before those that were due after it. If not: it may be leased before jobs that were
    /// due before it, and several have no order among themselves.
    pub retries_in_order: bool,
    /// [`depth`](Store::depth) tells jobs that wait for their next attempt from leased ones.
    /// If not: those that were delayed before the store was opened may be counted as leased.
    pub delays_counted: bool,
}

impl Default for Promises {
    fn default() -> Self {
        Self {
            releases_uncounted: true,
            retries_in_order: true,
            delays_counted: true,
        }
    }
}

/// What an operator needs of a store. A trait of its own, so that a store may be without.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{DeadLetters, MemoryStore, Store, Verdict};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// async fn revive_all(store: &impl DeadLetters) -> usize {
///     let dead = store.list(None, usize::MAX).await.unwrap();
///     let ids: Vec<_> = dead.into_iter().map(|job| job.id).collect();
///     store.revive(&ids).await.unwrap().into_iter().filter(|found| *found).count()
/// }
///
/// let store = MemoryStore::new();
/// store.append(&[job("a")]).await?;
/// let lease = store.lease(1).await?.remove(0).lease;
/// store.settle(&[(lease, Verdict::Dead { reason: "refused".to_owned() })]).await?;
/// assert_eq!(revive_all(&store).await, 1);
/// assert_eq!(store.depth().await?.ready, 1);
/// # Ok(())
/// # }
/// ```
pub trait DeadLetters: Store {
    /// Lists at most `limit` dead letters in the order of their ids, beginning after
    /// `after`.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{DeadLetters, MemoryStore, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a"), job("b")]).await?;
    /// for leased in store.lease(2).await? {
    ///     store.settle(&[(leased.lease, Verdict::Dead { reason: "refused".to_owned() })]).await?;
    /// }
    /// let first = store.list(None, 1).await?;
    /// let second = store.list(Some(&first[0].id), 1).await?;
    /// assert_eq!((&*first[0].id, &*second[0].id), ("a", "b"));
    /// # Ok(())
    /// # }
    /// ```
    fn list(
        &self,
        after: Option<&JobId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<DeadJob>, Self::Error>> + Send;

    /// Makes dead jobs due again, with no attempt counted, and answers for each whether
    /// it was among the dead.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{DeadLetters, MemoryStore, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let lease = store.lease(1).await?.remove(0).lease;
    /// store.settle(&[(lease, Verdict::Dead { reason: "refused".to_owned() })]).await?;
    /// assert_eq!(store.revive(&["a".into(), "b".into()]).await?, [true, false]);
    /// assert_eq!(store.lease(1).await?[0].attempt.get(), 1);
    /// # Ok(())
    /// # }
    /// ```
    fn revive(&self, ids: &[JobId]) -> impl Future<Output = Result<Vec<bool>, Self::Error>> + Send;

    /// Deletes dead jobs, and answers for each whether it was among the dead. Their ids
    /// are free at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Appended, DeadLetters, MemoryStore, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let lease = store.lease(1).await?.remove(0).lease;
    /// store.settle(&[(lease, Verdict::Dead { reason: "refused".to_owned() })]).await?;
    /// assert_eq!(store.discard(&["a".into()]).await?, [true]);
    /// assert_eq!(store.append(&[job("a")]).await?, [Appended::New]); // the id is free
    /// # Ok(())
    /// # }
    /// ```
    fn discard(&self, ids: &[JobId])
    -> impl Future<Output = Result<Vec<bool>, Self::Error>> + Send;
}

impl<S: Store> Store for Arc<S> {
    type Lease = S::Lease;
    type Error = S::Error;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, S::Error> {
        (**self).append(jobs).await
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<S::Lease>>, S::Error> {
        (**self).lease(max).await
    }

    async fn settle(&self, verdicts: &[(S::Lease, Verdict)]) -> Result<Vec<Settled>, S::Error> {
        (**self).settle(verdicts).await
    }

    async fn extend(&self, leases: &[S::Lease]) -> Result<Vec<Settled>, S::Error> {
        (**self).extend(leases).await
    }

    fn lease_time(&self) -> Option<Duration> {
        (**self).lease_time()
    }

    async fn depth(&self) -> Result<Depth, S::Error> {
        (**self).depth().await
    }

    fn promises(&self) -> Promises {
        (**self).promises()
    }

    async fn close(&self) {
        (**self).close().await;
    }
}

impl<S: DeadLetters> DeadLetters for Arc<S> {
    async fn list(&self, after: Option<&JobId>, limit: usize) -> Result<Vec<DeadJob>, S::Error> {
        (**self).list(after, limit).await
    }

    async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>, S::Error> {
        (**self).revive(ids).await
    }

    async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>, S::Error> {
        (**self).discard(ids).await
    }
}
