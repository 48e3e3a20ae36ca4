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
    /// With the job: no other delivery has both.
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

/// How much longer than a look from the beginning takes it is, at least, until the next; and
/// at most how long.
const LOOKS_APART: (u32, Duration) = (50, Duration::from_secs(60));

/// How far behind its first job a look begins the next time, where nothing is heard: what
/// becomes due is seen once it is committed, and its time is that of the statement.
const LAG: Duration = Duration::from_secs(2);

/// Where the line begins, as far as this process knows: at the first job of its last lease, or
/// a little before it. What is before was leased, and its index entries are dead; while a transaction
/// is held open anywhere in the database, nobody can remove them, and to walk over them takes
/// ever longer. What comes to be due before the mark is noticed, or found by a look from the
/// beginning, of which there is one every few seconds.
#[derive(Debug, Default)]
pub(super) struct Mark(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    from: Option<SystemTime>,
    next_whole: Option<Instant>,
    /// How often it was lowered.
    lowered: u64,
}

/// A look that has begun.
#[derive(Debug)]
pub(super) struct Look {
    /// From where on; `None` is from the beginning.
    pub(super) from: Option<SystemTime>,
    lag: Duration,
    began: Instant,
    lowered: u64,
}

impl Mark {
    fn lock(&self) -> MutexGuard<'_, Looks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a look. Whether others' changes are heard meanwhile is what `is_heard` says.
    pub(super) fn look(&self, is_heard: bool) -> Look {
        let looks = self.lock();
        let began = Instant::now();
        let is_due = looks.next_whole.is_none_or(|at| at <= began);
        Look {
            from: looks.from.filter(|_| !is_due),
            lag: if is_heard { Duration::ZERO } else { LAG },
            began,
            lowered: looks.lowered,
        }
    }

    /// Notes that a look has ended, and the place of the first job that it found.
    pub(super) fn looked(&self, look: &Look, first: Option<SystemTime>) {
        let mut looks = self.lock();
        if look.from.is_none() {
            let pause = look.began.elapsed() * LOOKS_APART.0;
            let pause = pause.clamp(WHOLE_LOOK, LOOKS_APART.1);
            looks.next_whole = Some(Instant::now() + pause);
        }
        // What was lowered meanwhile may be what this look did not see.
        if looks.lowered == look.lowered
            && let Some(first) = first
        {
            looks.from = first.checked_sub(look.lag);
        }
    }

    /// Notes that something is due from then on.
    pub(super) fn lower(&self, due: SystemTime) {
        let mut looks = self.lock();
        looks.lowered += 1;
        looks.from = looks.from.map(|from| from.min(due));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noticed_during_a_look_is_not_skipped_by_it() {
        let mark = Mark::default();
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let first = mark.look(true);
        assert_eq!(first.from, None, "the first look is from the beginning");
        mark.looked(&first, Some(at(100)));
        let look = mark.look(true);
        assert_eq!(look.from, Some(at(100)));
        mark.lower(at(50));
        mark.looked(&look, Some(at(100)));
        let look = mark.look(false);
        assert_eq!(look.from, Some(at(50)));
        mark.looked(&look, Some(at(60)));
        assert_eq!(mark.look(true).from, Some(at(58)), "nothing was heard");
    }
}
