//! A store in memory, for tests.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::outcome::{Appended, Settled, Verdict};
use crate::store::{DeadLetters, Store};

/// A [`Store`] in memory, for tests: it behaves as one on disk does, but nothing survives
/// the process.
///
/// Its clock is Tokio's, so it obeys a paused runtime, and [`advance`](Self::advance) sets
/// it forward by hand. [`restart`](Self::restart) does what the death of a process does to
/// a store on disk. Clones are the same store.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{MemoryStore, NewJob, Store, Verdict};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let store = MemoryStore::new();
/// let job = NewJob { id: "a".into(), codec: "json".into(), payload: "1".into() };
/// store.append(&[job]).await.unwrap();
///
/// let first = store.lease(10).await.unwrap();
/// assert_eq!(first[0].attempt.get(), 1);
/// store.restart(); // as if the process had died here
/// let second = store.lease(10).await.unwrap();
/// assert_eq!(second[0].attempt.get(), 2);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

/// One delivery of one job of a [`MemoryStore`].
///
/// # Examples
///
/// ```
/// use microbatch_durable::{MemoryLease, MemoryStore, Store};
///
/// # fn job(id: &str) -> microbatch_durable::NewJob {
/// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// store.append(&[job("a")]).await?;
/// let lease: MemoryLease = store.lease(1).await?.remove(0).lease;
/// store.restart();
/// let later: MemoryLease = store.lease(1).await?.remove(0).lease;
/// assert_ne!(lease, later);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemoryLease(u64);

/// Builds a [`MemoryStore`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use microbatch_durable::{MemoryStore, Store};
///
/// let store = MemoryStore::builder().lease_time(Duration::from_secs(30)).max_payload(1024).build();
/// assert_eq!(store.lease_time(), Some(Duration::from_secs(30)));
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct MemoryStoreBuilder {
    lease_time: Option<Duration>,
    dedup_window: Duration,
    max_payload: usize,
}

impl MemoryStoreBuilder {
    /// Sets how long a lease holds without being extended.
    ///
    /// # Default
    ///
    /// Until [`restart`](MemoryStore::restart).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{MemoryStore, Store};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::builder().lease_time(Duration::from_secs(30)).build();
    /// store.append(&[job("a")]).await?;
    /// store.lease(1).await?;
    /// store.advance(Duration::from_secs(30));
    /// assert_eq!(store.lease(1).await?[0].attempt.get(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lease_time(mut self, time: Duration) -> Self {
        self.lease_time = Some(time);
        self
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
    /// use microbatch_durable::{Appended, MemoryStore, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::builder().dedup_window(Duration::from_secs(60)).build();
    /// store.append(&[job("a")]).await?;
    /// let lease = store.lease(1).await?.remove(0).lease;
    /// store.settle(&[(lease, Verdict::Done)]).await?;
    /// assert_eq!(store.append(&[job("a")]).await?, [Appended::Duplicate]);
    /// store.advance(Duration::from_secs(60));
    /// assert_eq!(store.append(&[job("a")]).await?, [Appended::New]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.dedup_window = window;
        self
    }

    /// Sets the most bytes of an encoded job.
    ///
    /// # Default
    ///
    /// 16 MiB.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{MemoryStore, NewJob, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::builder().max_payload(3).build();
    /// let large = NewJob { id: "a".into(), codec: "json".into(), payload: "1234".into() };
    /// assert!(!store.append(&[large]).await?[0].is_accepted());
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Builds it.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::builder().build();
    /// assert_eq!(store.depth().await?.pending(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn build(self) -> MemoryStore {
        MemoryStore {
            inner: Arc::new(Inner {
                options: self,
                started: (Instant::now(), SystemTime::now()),
                state: Mutex::default(),
                changed: Notify::new(),
            }),
        }
    }
}

impl MemoryStore {
    /// Makes an empty store with the defaults of its builder.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{MemoryStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// assert_eq!(store.lease_time(), None);
    /// assert_eq!(store.depth().await?.pending(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Starts to build one.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{MemoryStore, Store};
    ///
    /// let store = MemoryStore::builder().lease_time(Duration::from_secs(30)).build();
    /// assert_eq!(store.lease_time(), Some(Duration::from_secs(30)));
    /// ```
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder {
            lease_time: None,
            dedup_window: Duration::from_secs(120),
            max_payload: 16 << 20,
        }
    }

    /// Sets the store's clock forward.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use microbatch_durable::{MemoryStore, Store, Verdict};
    ///
    /// # fn job(id: &str) -> microbatch_durable::NewJob {
    /// #     microbatch_durable::NewJob { id: id.into(), codec: "json".into(), payload: "1".into() }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// store.append(&[job("a")]).await?;
    /// let lease = store.lease(1).await?.remove(0).lease;
    /// let after = Duration::from_secs(3600);
    /// store.settle(&[(lease, Verdict::Retry { after, reason: "busy".to_owned() })]).await?;
    /// assert_eq!(store.depth().await?.delayed, 1);
    /// store.advance(after);
    /// assert_eq!(store.depth().await?.ready, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn advance(&self, by: Duration) {
        let mut state = self.inner.lock();
        state.ahead = state.ahead.saturating_add(by).min(FAR);
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// Ends every lease, as the death of the process does that held them: their jobs are
    /// due, with the attempt counted.
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
    /// store.restart();
    /// assert_eq!(store.settle(&[(lease, Verdict::Done)]).await?, [Settled::Lost]);
    /// assert_eq!(store.lease(1).await?[0].attempt.get(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn restart(&self) {
        let mut state = self.inner.lock();
        let numbers: Vec<_> = state.leases.keys().copied().collect();
        for number in numbers {
            if let Some(lease) = state.end_lease(number) {
                state.ready.insert(lease.order, lease.seq);
            }
        }
        drop(state);
        self.inner.changed.notify_waiters();
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Inner {
    options: MemoryStoreBuilder,
    started: (Instant, SystemTime),
    state: Mutex<State>,
    /// Told of everything that may make a job due.
    changed: Notify,
}

/// # Invariants
///
/// A live job is in exactly one of `ready`, `delayed` and `leases`; `ids` has the id of
/// each live, dead and lately settled job, and of no other.
#[derive(Debug, Default)]
struct State {
    /// How far the clock was set forward.
    ahead: Duration,
    /// The next place in line, which is also the number of a new job.
    next: u64,
    jobs: BTreeMap<u64, Job>,
    /// By place in line.
    ready: BTreeMap<u64, u64>,
    delayed: BTreeSet<(Instant, u64)>,
    leases: HashMap<u64, Lease>,
    lapses: BTreeSet<(Instant, u64)>,
    ids: HashMap<JobId, IdState>,
    settled: VecDeque<(Instant, JobId)>,
    dead: BTreeMap<JobId, DeadJob>,
}

#[derive(Debug)]
struct Job {
    new: NewJob,
    appended: SystemTime,
    attempt: u32,
}

#[derive(Debug)]
struct Lease {
    seq: u64,
    order: u64,
    until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdState {
    Taken,
    Settled,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state with everything done that time has brought. Returns the time too.
    fn at_present(&self) -> (MutexGuard<'_, State>, Instant) {
        let mut state = self.lock();
        let now = Instant::now() + state.ahead;
        state.pass(now, self.options.dedup_window);
        (state, now)
    }

    fn system_time(&self, now: Instant) -> SystemTime {
        self.started.1 + now.saturating_duration_since(self.started.0)
    }
}

impl State {
    fn pass(&mut self, now: Instant, dedup_window: Duration) {
        while let Some(&(until, number)) = self.lapses.first()
            && until <= now
        {
            if let Some(lease) = self.end_lease(number) {
                self.ready.insert(lease.order, lease.seq);
            }
        }
        while let Some(&(due, seq)) = self.delayed.first()
            && due <= now
        {
            self.delayed.pop_first();
            self.queue(seq);
        }
        while let Some((at, _)) = self.settled.front()
            && now.saturating_duration_since(*at) >= dedup_window
        {
            let id = self.settled.pop_front().map(|(_, id)| id);
            // It may have been revived, or taken by discarding it.
            if let Some(id) = id
                && self.ids.get(&id) == Some(&IdState::Settled)
            {
                self.ids.remove(&id);
            }
        }
    }

    /// Puts a job at the end of the line.
    fn queue(&mut self, seq: u64) {
        self.ready.insert(self.next, seq);
        self.next += 1;
    }

    fn append(&mut self, new: NewJob, appended: SystemTime) {
        let seq = self.next;
        self.ids.insert(new.id.clone(), IdState::Taken);
        self.jobs.insert(
            seq,
            Job {
                new,
                appended,
                attempt: 0,
            },
        );
        self.queue(seq);
    }

    fn end_lease(&mut self, number: u64) -> Option<Lease> {
        let lease = self.leases.remove(&number)?;
        if let Some(until) = lease.until {
            self.lapses.remove(&(until, number));
        }
        Some(lease)
    }

    fn lease(&mut self, max: usize, until: Option<Instant>) -> Vec<Leased<MemoryLease>> {
        let mut leased = Vec::new();
        while leased.len() < max
            && let Some((order, seq)) = self.ready.pop_first()
        {
            let Some(job) = self.jobs.get_mut(&seq) else {
                continue;
            };
            job.attempt += 1;
            let number = next_lease();
            self.leases.insert(number, Lease { seq, order, until });
            self.lapses.extend(until.map(|until| (until, number)));
            leased.push(Leased {
                id: job.new.id.clone(),
                attempt: NonZeroU32::new(job.attempt).unwrap_or(NonZeroU32::MIN),
                codec: Arc::clone(&job.new.codec),
                payload: job.new.payload.clone(),
                appended: job.appended,
                lease: MemoryLease(number),
            });
        }
        leased
    }

    fn settle(
        &mut self,
        lease: &MemoryLease,
        verdict: &Verdict,
        now: Instant,
        died: SystemTime,
    ) -> Settled {
        if *verdict == Verdict::Settled {
            return self.holds(lease);
        }
        let Some(Lease { seq, order, .. }) = self.end_lease(lease.0) else {
            return Settled::Lost;
        };
        match verdict {
            Verdict::Done => {
                if let Some(job) = self.jobs.remove(&seq) {
                    self.ids.insert(job.new.id.clone(), IdState::Settled);
                    self.settled.push_back((now, job.new.id));
                }
            }
            Verdict::Retry { after, .. } if after.is_zero() => self.queue(seq),
            Verdict::Retry { after, .. } => {
                let due = later(now, *after);
                self.delayed.insert((due, seq));
            }
            Verdict::Dead { reason } => {
                if let Some(Job {
                    new,
                    appended,
                    attempt,
                }) = self.jobs.remove(&seq)
                {
                    let NewJob { id, codec, payload } = new;
                    let reason = reason.clone();
                    let dead = DeadJob {
                        id: id.clone(),
                        attempt,
                        codec,
                        payload,
                        appended,
                        died,
                        reason,
                    };
                    self.dead.insert(id, dead);
                }
            }
            Verdict::Release => {
                if let Some(job) = self.jobs.get_mut(&seq) {
                    job.attempt -= 1;
                }
                self.ready.insert(order, seq);
            }
            Verdict::Settled => {}
        }
        Settled::Held
    }

    fn holds(&self, lease: &MemoryLease) -> Settled {
        match self.leases.contains_key(&lease.0) {
            true => Settled::Held,
            false => Settled::Lost,
        }
    }

    /// When time will next make a job due.
    fn next_change(&self) -> Option<Instant> {
        let lapse = self.lapses.first().map(|(until, _)| *until);
        let due = self.delayed.first().map(|(due, _)| *due);
        lapse.into_iter().chain(due).min()
    }
}

/// Later than any process lasts.
const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);

fn later(now: Instant, by: Duration) -> Instant {
    now + by.min(FAR)
}

/// The number of a lease that no other lease of this process has.
pub(crate) fn next_lease() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Store for MemoryStore {
    type Lease = MemoryLease;
    type Error = Infallible;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, Infallible> {
        let (mut state, now) = self.inner.at_present();
        let appended = self.inner.system_time(now);
        let append = |job: &NewJob| {
            if let Err(refusal) = job.check(self.inner.options.max_payload) {
                return Appended::Refused(refusal);
            }
            if state.ids.contains_key(&job.id) {
                return Appended::Duplicate;
            }
            state.append(job.clone(), appended);
            Appended::New
        };
        let answers = jobs.iter().map(append).collect();
        drop(state);
        self.inner.changed.notify_waiters();
        Ok(answers)
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<MemoryLease>>, Infallible> {
        loop {
            let mut changed = pin!(self.inner.changed.notified());
            // Listens before it looks, so that no change is missed.
            changed.as_mut().enable();
            let next = {
                let (mut state, now) = self.inner.at_present();
                let until = self.inner.options.lease_time.map(|time| later(now, time));
                let leased = state.lease(max.max(1), until);
                if !leased.is_empty() {
                    return Ok(leased);
                }
                state.next_change().map(|next| next - state.ahead)
            };
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = due => {}
            }
        }
    }

    async fn settle(
        &self,
        verdicts: &[(MemoryLease, Verdict)],
    ) -> Result<Vec<Settled>, Infallible> {
        let (mut state, now) = self.inner.at_present();
        let died = self.inner.system_time(now);
        let settle = |(lease, verdict): &(MemoryLease, _)| state.settle(lease, verdict, now, died);
        let answers = verdicts.iter().map(settle).collect();
        drop(state);
        self.inner.changed.notify_waiters();
        Ok(answers)
    }

    async fn extend(&self, leases: &[MemoryLease]) -> Result<Vec<Settled>, Infallible> {
        let (mut state, now) = self.inner.at_present();
        let until = self.inner.options.lease_time.map(|time| later(now, time));
        let extend = |lease: &MemoryLease| {
            let State { leases, lapses, .. } = &mut *state;
            let Some(held) = leases.get_mut(&lease.0) else {
                return Settled::Lost;
            };
            if let (Some(old), Some(new)) = (held.until, until) {
                lapses.remove(&(old, lease.0));
                lapses.insert((new, lease.0));
                held.until = Some(new);
            }
            Settled::Held
        };
        Ok(leases.iter().map(extend).collect())
    }

    fn lease_time(&self) -> Option<Duration> {
        self.inner.options.lease_time
    }

    async fn depth(&self) -> Result<Depth, Infallible> {
        let (state, _) = self.inner.at_present();
        Ok(Depth {
            ready: state.ready.len() as u64,
            leased: state.leases.len() as u64,
            delayed: state.delayed.len() as u64,
            dead: state.dead.len() as u64,
            oldest: state.jobs.first_key_value().map(|(_, job)| job.appended),
        })
    }
}

impl DeadLetters for MemoryStore {
    async fn list(&self, after: Option<&JobId>, limit: usize) -> Result<Vec<DeadJob>, Infallible> {
        let (state, _) = self.inner.at_present();
        let later = state
            .dead
            .iter()
            .filter(|(id, _)| after.is_none_or(|after| *id > after));
        Ok(later.take(limit).map(|(_, dead)| dead.clone()).collect())
    }

    async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>, Infallible> {
        let (mut state, _) = self.inner.at_present();
        let revive = |id: &JobId| {
            let Some(dead) = state.dead.remove(id) else {
                return false;
            };
            let DeadJob {
                id,
                codec,
                payload,
                appended,
                ..
            } = dead;
            state.append(NewJob { id, codec, payload }, appended);
            true
        };
        let answers = ids.iter().map(revive).collect();
        drop(state);
        self.inner.changed.notify_waiters();
        Ok(answers)
    }

    async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>, Infallible> {
        let (mut state, _) = self.inner.at_present();
        let discard = |id: &JobId| {
            let found = state.dead.remove(id).is_some();
            if found {
                state.ids.remove(id);
            }
            found
        };
        Ok(ids.iter().map(discard).collect())
    }
}
