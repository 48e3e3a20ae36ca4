//! What happens to a batch: it is appended in one commit, as far as the backlog has room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use microbatch::BatchProcessor;
use tokio::time::Instant;

use crate::job::NewJob;
use crate::outcome::{Appended, Refusal};
use crate::store::Store;

/// How long the store's word on its backlog counts. Others may append to it as well.
const BACKLOG_AGE: Duration = Duration::from_secs(1);

/// The first and the longest pause between two looks at a backlog that is full.
const BACKLOG_PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// What travels through the micro-batcher.
pub(super) enum Request {
    Append(NewJob),
    /// It is answered without the store.
    Refused(Refusal),
    /// Asks the store how large the backlog is.
    Refresh,
}

/// Appends a batch, in one commit unless the backlog has room for a part of it only.
pub(super) struct Appender<S> {
    pub(super) store: Arc<S>,
    pub(super) backlog: Option<Arc<Backlog>>,
}

impl<S: Store> BatchProcessor<Request, Appended> for Appender<S> {
    type Error = S::Error;

    async fn process(&self, requests: Vec<Request>) -> Result<Vec<Appended>, S::Error> {
        let mut jobs = Vec::with_capacity(requests.len());
        let mut refresh = false;
        let mut answers: Vec<_> = requests
            .into_iter()
            .map(|request| match request {
                Request::Append(job) => {
                    jobs.push(job);
                    None
                }
                Request::Refused(refusal) => Some(Appended::Refused(refusal)),
                Request::Refresh => {
                    refresh = true;
                    // Nobody awaits it.
                    Some(Appended::Duplicate)
                }
            })
            .collect();
        if refresh && let Some(backlog) = &self.backlog {
            let outcome = backlog.refresh(&*self.store).await;
            backlog.refreshing.store(false, Ordering::Release);
            // The jobs beside it tell of a store that fails.
            if let (Err(error), true) = (outcome, jobs.is_empty()) {
                return Err(error);
            }
        }
        let mut appended = Vec::with_capacity(jobs.len());
        while appended.len() < jobs.len() {
            let rest = &jobs[appended.len()..];
            let part = match &self.backlog {
                Some(backlog) => backlog.wait_for_room(&*self.store, rest.len()).await?,
                None => rest.len(),
            };
            let outcomes = match self.store.append(&rest[..part]).await {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    // They may be in the store.
                    if let Some(backlog) = &self.backlog {
                        backlog.expire();
                    }
                    return Err(error);
                }
            };
            if let Some(backlog) = &self.backlog {
                let new = outcomes.iter().filter(|outcome| **outcome == Appended::New);
                backlog
                    .known
                    .fetch_add(new.count() as u64, Ordering::AcqRel);
            }
            if outcomes.len() != part {
                // Nobody's answer is known. The micro-batcher tells each caller so.
                return Ok(Vec::new());
            }
            appended.extend(outcomes);
        }
        let mut appended = appended.into_iter();
        for answer in &mut answers {
            if answer.is_none() {
                *answer = appended.next();
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

/// How far the backlog in the store is from its limit.
///
/// # Invariants
///
/// `known` is at least the backlog, as long as nobody else appends: it is set to what the
/// store says and raised by what is appended, and one batch at a time does either. After an
/// append that failed it may be less, and the store is asked before the next.
pub(super) struct Backlog {
    limit: u64,
    known: AtomicU64,
    /// When the store was last asked.
    asked: Mutex<Option<Instant>>,
    /// Set while a `Refresh` is on its way.
    pub(super) refreshing: AtomicBool,
}

impl Backlog {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            known: AtomicU64::new(0),
            asked: Mutex::new(None),
            refreshing: AtomicBool::new(false),
        }
    }

    pub(super) fn room(&self) -> usize {
        let room = self
            .limit
            .saturating_sub(self.known.load(Ordering::Acquire));
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    fn is_stale(&self) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_none_or(|asked| asked.elapsed() >= BACKLOG_AGE)
    }

    /// Has the store asked before the next append.
    fn expire(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn refresh<S: Store>(&self, store: &S) -> Result<(), S::Error> {
        let pending = store.depth().await?.pending();
        self.known.store(pending, Ordering::Release);
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    /// Returns how many of `wanted` jobs there is room for: at least one.
    async fn wait_for_room<S: Store>(&self, store: &S, wanted: usize) -> Result<usize, S::Error> {
        if self.room() < wanted || self.is_stale() {
            self.refresh(store).await?;
        }
        let (mut pause, longest) = BACKLOG_PAUSES;
        while self.room() == 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
            self.refresh(store).await?;
        }
        Ok(self.room().min(wanted))
    }
}
