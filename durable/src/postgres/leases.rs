//! One delivery of one job, what a lease brought until its caller has it, and where in the
//! line to look for the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::face::Inner;
use crate::job::{JobId, Leased};
use crate::outcome::Verdict;

/// One delivery of one job of a [`PostgresStore`](super::PostgresStore).
///
/// # Examples
///
/// ```no_run
/// use microbatch_durable::{PostgresLease, PostgresStore, Store, Verdict};
///
/// # async fn run(store: PostgresStore) -> Result<(), Box<dyn std::error::Error>> {
/// let leases = store.lease(10).await?.into_iter().map(|leased| leased.lease);
/// let done: Vec<(PostgresLease, Verdict)> = leases.map(|lease| (lease, Verdict::Done)).collect();
/// store.settle(&done).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PostgresLease {
    /// The job.
    pub(super) seq: i64,
    /// Another one for each delivery.
    pub(super) number: i64,
    /// For those who are told that it was lost.
    pub(super) id: JobId,
}

/// What a lease brought. Its drop releases the jobs unless they were received.
pub(super) struct Unreceived {
    jobs: Vec<Leased<PostgresLease>>,
    inner: Arc<Inner>,
    runtime: Handle,
    /// Keeps a `close` waiting.
    _tracked: TaskTrackerToken,
}

impl Unreceived {
    pub(super) fn new(jobs: Vec<Leased<PostgresLease>>, inner: Arc<Inner>) -> Self {
        Self {
            jobs,
            _tracked: inner.looks.token(),
            inner,
            runtime: Handle::current(),
        }
    }

    pub(super) fn receive(mut self) -> Vec<Leased<PostgresLease>> {
        std::mem::take(&mut self.jobs)
    }
}

impl Drop for Unreceived {
    fn drop(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let leases = self.jobs.drain(..).map(|job| (job.lease, Verdict::Release));
        let (leases, inner): (Vec<_>, _) = (leases.collect(), Arc::clone(&self.inner));
        let release = async move {
            if let Err(error) = inner.settle(&leases).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "jobs of a dropped call are due when their leases end"
                );
            }
        };
        self.inner.looks.spawn_on(release, &self.runtime);
    }
}

/// How often the line is looked at from its beginning, at most.
const WHOLE_LOOK: Duration = Duration::from_secs(5);

/// How much longer than a look from the beginning takes it is, at least, until the next.
const LOOKS_APART: u32 = 50;

/// Where the line begins, as far as this process knows: the place of the first job of its last
/// lease. What is before was leased, and its index entries are dead; while a transaction is
/// held open anywhere in the database, nobody can remove them, and to walk over them takes ever
/// longer. What comes to be due before the mark is noticed, or found by a look from the
/// beginning, of which there is one every few seconds.
#[derive(Debug, Default)]
pub(super) struct Mark(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    from: Option<SystemTime>,
    next_whole: Option<Instant>,
}

impl Mark {
    fn lock(&self) -> MutexGuard<'_, Looks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From where on to look; `None` is from the beginning.
    pub(super) fn from(&self) -> Option<SystemTime> {
        let looks = self.lock();
        let is_due = looks.next_whole.is_none_or(|at| at <= Instant::now());
        looks.from.filter(|_| !is_due)
    }

    /// Notes a look from there, when it began, and the first place that it found.
    pub(super) fn looked(
        &self,
        from: Option<SystemTime>,
        began: Instant,
        first: Option<SystemTime>,
    ) {
        let mut looks = self.lock();
        if from.is_none() {
            let pause = WHOLE_LOOK.max(began.elapsed() * LOOKS_APART);
            looks.next_whole = Some(Instant::now() + pause);
        }
        if first.is_some() {
            looks.from = first;
        }
    }

    /// Notes that something is due from then on.
    pub(super) fn lower(&self, due: SystemTime) {
        let mut looks = self.lock();
        looks.from = looks.from.map(|from| from.min(due));
    }
}
