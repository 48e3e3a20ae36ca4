//! A store that fails by seed.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::outcome::{Appended, Settled, Verdict};
use crate::store::{DeadLetters, Promises, Store};

/// How often, and how soon again, an answer of `lease` that is lost is put back while the
/// store itself fails.
const PUT_BACK: (u32, Duration) = (1000, Duration::from_millis(10));

/// A [`Store`] around another that fails at times, for tests of what uses a store.
///
/// Each call may be delayed; it may fail before anything is done; and its answer may be
/// lost: the store does what it was asked, and the caller gets an error. So those who call
/// cannot tell the one from the other, as with any store that is reached by a network.
/// What happens to a call is drawn from the seed, in the order of the calls.
///
/// - A lost answer of [`lease`](Store::lease) leaves leases that nobody has. If the store
///   has a [`lease_time`](Store::lease_time), they end with it. If it has none, they would
///   last as long as the process, so a task has the jobs tried again at once, the attempt
///   counted: as if the process that leased them had died.
/// - A call that is dropped while it is delayed does nothing.
/// - [`close`](Store::close) and [`lease_time`](Store::lease_time) are those of the store.
///
/// Clones are the same store, and draw from the same seed.
///
/// # Examples
///
/// Whoever is not sure repeats the call; ids keep the job from being appended twice:
///
/// ```
/// use microbatch_durable::{Faulty, MemoryStore, NewJob, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let store = Faulty::new(MemoryStore::new(), 42);
/// for n in 0..100 {
///     let job = NewJob { id: format!("{n}").into(), codec: "json".into(), payload: "1".into() };
///     while store.append(&[job.clone()]).await.is_err() {}
/// }
/// assert!(store.faults() > 0);
/// assert_eq!(store.get_ref().depth().await.unwrap().ready, 100);
/// # }
/// ```
pub struct Faulty<S> {
    store: Arc<S>,
    faults: Arc<Faults>,
    rates: Rates,
}

/// Why a [`Faulty`] store failed.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{Faulty, FaultyError, MemoryStore, Store};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = Faulty::new(MemoryStore::new(), 1).fail_rate(1.0);
/// let error = store.append(&[job("a")]).await.unwrap_err();
/// assert!(matches!(error, FaultyError::Injected));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultyError<E> {
    /// It was drawn. The call may have been done or not.
    #[error("an injected fault; the call may have been done")]
    Injected,
    /// The store itself failed.
    #[error(transparent)]
    Store(E),
}

#[derive(Debug)]
struct Faults {
    rng: Mutex<Rng>,
    injected: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Rates {
    fail: f64,
    lose: f64,
    delay: f64,
    longest_delay: Duration,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy)]
struct Fault {
    delay: Option<Duration>,
    kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fails,
    LosesAnswer,
}

impl<S> Faulty<S> {
    /// Wraps a store. Of the calls, 10 % fail, 10 % lose their answer, and 20 % are delayed
    /// by up to 5 ms.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Faulty, MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Faulty::new(MemoryStore::new(), 42);
    /// for _ in 0..100 {
    ///     let _ = store.depth().await;
    /// }
    /// assert!((1..100).contains(&store.faults()));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(store: S, seed: u64) -> Self {
        Self {
            store: Arc::new(store),
            faults: Arc::new(Faults {
                rng: Mutex::new(Rng::with_seed(seed)),
                injected: AtomicU64::new(0),
            }),
            rates: Rates {
                fail: 0.1,
                lose: 0.1,
                delay: 0.2,
                longest_delay: Duration::from_millis(5),
            },
        }
    }

    /// Sets which part of the calls fails without anything being done, from 0 to 1.
    ///
    /// # Default
    ///
    /// 0.1.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Faulty, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Faulty::new(MemoryStore::new(), 1).fail_rate(1.0);
    /// assert!(store.append(&[job("a")]).await.is_err());
    /// assert_eq!(store.get_ref().depth().await?.ready, 0); // nothing was done
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn fail_rate(mut self, rate: f64) -> Self {
        self.rates.fail = rate;
        self
    }

    /// Sets which part of the calls is done and loses its answer, from 0 to 1. If more
    /// than all were to fail or lose their answer, fewer lose it.
    ///
    /// # Default
    ///
    /// 0.1.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Faulty, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Faulty::new(MemoryStore::new(), 1).fail_rate(0.0).loss_rate(1.0);
    /// assert!(store.append(&[job("a")]).await.is_err());
    /// assert_eq!(store.get_ref().depth().await?.ready, 1); // it was done
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn loss_rate(mut self, rate: f64) -> Self {
        self.rates.lose = rate;
        self
    }

    /// Sets which part of the calls is delayed, from 0 to 1, and by how long at most.
    ///
    /// # Default
    ///
    /// 0.2, and 5 ms.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{Faulty, MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Faulty::new(MemoryStore::new(), 1)
    ///     .fail_rate(0.0)
    ///     .loss_rate(0.0)
    ///     .delay_rate(1.0, Duration::from_secs(1));
    /// let started = tokio::time::Instant::now(); // the clock is paused
    /// store.append(&[job("a")]).await?;
    /// assert!(started.elapsed() > Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn delay_rate(mut self, rate: f64, longest: Duration) -> Self {
        self.rates.delay = rate;
        self.rates.longest_delay = longest;
        self
    }

    /// Returns the store inside, which does not fail.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Faulty, MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Faulty::new(MemoryStore::new(), 1).fail_rate(1.0);
    /// assert!(store.depth().await.is_err());
    /// assert!(store.get_ref().depth().await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.store
    }

    /// Returns how many calls have failed or lost their answer by the seed.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Faulty, MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Faulty::new(MemoryStore::new(), 1).fail_rate(1.0);
    /// assert_eq!(store.faults(), 0);
    /// assert!(store.depth().await.is_err());
    /// assert_eq!(store.faults(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.injected.load(Ordering::Relaxed)
    }

    /// Draws what happens to a call. Each takes the same number of draws.
    fn draw(&self) -> Fault {
        let Rates {
            fail,
            lose,
            delay,
            longest_delay,
        } = self.rates;
        let mut rng = self
            .faults
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (fault, delayed, part) = (rng.f64(), rng.f64(), rng.f64());
        drop(rng);
        let kind = match fault {
            fault if fault < fail => Some(Kind::Fails),
            fault if fault < fail + lose => Some(Kind::LosesAnswer),
            _ => None,
        };
        Fault {
            delay: (delayed < delay).then(|| longest_delay.mul_f64(part)),
            kind,
        }
    }

    /// Delays a call, or fails instead of it. Returns whether its answer is to be lost.
    async fn before<E>(&self) -> Result<bool, FaultyError<E>> {
        let Fault { delay, kind } = self.draw();
        if let Some(delay) = delay {
            sleep(delay).await;
        }
        match kind {
            Some(Kind::Fails) => Err(self.injected()),
            kind => Ok(kind.is_some()),
        }
    }

    fn injected<E>(&self) -> FaultyError<E> {
        self.faults.injected.fetch_add(1, Ordering::Relaxed);
        FaultyError::Injected
    }

    async fn call<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, FaultyError<E>> {
        let lost = self.before().await?;
        let answer = call.await.map_err(FaultyError::Store)?;
        match lost {
            true => Err(self.injected()),
            false => Ok(answer),
        }
    }
}

impl<S> Clone for Faulty<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            faults: Arc::clone(&self.faults),
            rates: self.rates,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("store", &self.store)
            .field("rates", &self.rates)
            .field("faults", &self.faults())
            .finish_non_exhaustive()
    }
}

impl<S: Store> Store for Faulty<S> {
    type Lease = S::Lease;
    type Error = FaultyError<S::Error>;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, Self::Error> {
        self.call(self.store.append(jobs)).await
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<S::Lease>>, Self::Error> {
        let lost = self.before().await?;
        let leased = self.store.lease(max).await.map_err(FaultyError::Store)?;
        if !lost {
            return Ok(leased);
        }
        if self.store.lease_time().is_none() {
            // A task of its own, since this call may be dropped.
            tokio::spawn(put_back(Arc::clone(&self.store), leased));
        }
        Err(self.injected())
    }

    async fn settle(&self, verdicts: &[(S::Lease, Verdict)]) -> Result<Vec<Settled>, Self::Error> {
        self.call(self.store.settle(verdicts)).await
    }

    async fn extend(&self, leases: &[S::Lease]) -> Result<Vec<Settled>, Self::Error> {
        self.call(self.store.extend(leases)).await
    }

    fn lease_time(&self) -> Option<Duration> {
        self.store.lease_time()
    }

    async fn depth(&self) -> Result<Depth, Self::Error> {
        self.call(self.store.depth()).await
    }

    fn promises(&self) -> Promises {
        self.store.promises()
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

impl<S: DeadLetters> DeadLetters for Faulty<S> {
    async fn list(&self, after: Option<&JobId>, limit: usize) -> Result<Vec<DeadJob>, Self::Error> {
        self.call(self.store.list(after, limit)).await
    }

    async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>, Self::Error> {
        self.call(self.store.revive(ids)).await
    }

    async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>, Self::Error> {
        self.call(self.store.discard(ids)).await
    }
}

/// Ends leases that nobody has, their attempts counted.
async fn put_back<S: Store>(store: Arc<S>, leased: Vec<Leased<S::Lease>>) {
    let again = Verdict::Retry {
        after: Duration::ZERO,
        reason: "the answer of `lease` was lost".to_owned(),
    };
    let verdicts: Vec<_> = leased
        .into_iter()
        .map(|job| (job.lease, again.clone()))
        .collect();
    let (times, pause) = PUT_BACK;
    for _ in 0..times {
        if store.settle(&verdicts).await.is_ok() {
            return;
        }
        sleep(pause).await;
    }
    tracing::error!(
        jobs = verdicts.len(),
        "the store did not take the jobs back"
    );
}
