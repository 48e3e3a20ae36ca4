//! One batch on its own: from the processor's hands to the callers'.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, mem};

use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::{Span, debug, debug_span, error};

use crate::error::JobError;
use crate::intake::Intake;
use crate::job::{Reply, send_all};
use crate::panics::{Shielded, discard, guard, trace};
use crate::processor::BatchProcessor;
use crate::recent::is_excess;
use crate::report::{BatchReport, FlushReason};

/// What every batch of one micro-batcher shares.
pub(crate) struct Context<J, R, P> {
    pub(crate) processor: Shielded<P>,
    pub(crate) intake: Arc<Intake<J, R>>,
    pub(crate) on_batch: Option<Shielded<Hook>>,
}

impl<J, R, P> Context<J, R, P> {
    pub(crate) fn name(&self) -> Option<&str> {
        self.intake.name()
    }
}

pub(crate) type Hook = Box<dyn Fn(&BatchReport<'_>) + Send + Sync>;

/// The replies owed for a batch. Whoever takes them answers them: the batch when
/// it has its results, or the loop when it gives the batch up.
pub(crate) struct Replies<R>(Mutex<Vec<Reply<R>>>);

impl<R> Replies<R> {
    /// Takes what is owed: nothing if it was taken before.
    pub(crate) fn take(&self) -> Vec<Reply<R>> {
        mem::take(&mut self.lock())
    }

    /// Sets what is owed; or gives back an empty vector, to be used again.
    pub(crate) fn put(&self, replies: Vec<Reply<R>>) {
        *self.lock() = replies;
    }

    /// Takes what is owed, and leaves a vector that is only kept to be used
    /// again.
    pub(crate) fn take_owed(&self) -> Vec<Reply<R>> {
        let mut owed = self.lock();
        if owed.is_empty() {
            return Vec::new();
        }
        mem::take(&mut owed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reply<R>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Default for Replies<R> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

/// A batch in the processor's hands.
pub(crate) struct Batch<J, R, P> {
    pub(crate) jobs: Vec<J>,
    pub(crate) owed: Arc<Replies<R>>,
    pub(crate) weight: usize,
    pub(crate) reason: FlushReason,
    pub(crate) waited: Duration,
    /// Last, so that the loop hears of the end after everything else is gone.
    pub(crate) slot: Slot<J, R, P>,
}

impl<J, R, P> Drop for Batch<J, R, P> {
    fn drop(&mut self) {
        // One by one: two jobs that panic in one drop would abort the process.
        discard(mem::take(&mut self.jobs), self.slot.context.name());
    }
}

/// One of the places for batches in flight. Its drop tells the loop that the
/// batch has ended, however it ends.
pub(crate) struct Slot<J, R, P> {
    pub(crate) context: Arc<Context<J, R, P>>,
    pub(crate) number: u64,
}

impl<J, R, P> Drop for Slot<J, R, P> {
    fn drop(&mut self) {
        self.context.intake.finished(self.number);
    }
}

impl<J, R, P: BatchProcessor<J, R>> Batch<J, R, P> {
    fn name(&self) -> Option<&str> {
        self.slot.context.name()
    }

    /// Returns the span of this batch, which follows from those of its jobs.
    pub(crate) fn span(&self, origins: &[Span]) -> Span {
        if LevelFilter::current() < LevelFilter::DEBUG {
            return Span::none();
        }
        let name = self.name();
        let (size, weight) = (self.jobs.len(), self.weight);
        let (reason, waited) = (self.reason, self.waited);
        let span =
            guard(|| debug_span!(parent: None, "batch", name, size, weight, %reason, ?waited));
        let span = span.unwrap_or_else(|_| Span::none());
        // While they are held: to be linked, they must not be closed.
        for origin in origins {
            trace(|| {
                span.follows_from(origin);
            });
        }
        trace(|| debug!(parent: &span, name, size, weight, %reason, ?waited, "flush"));
        span
    }

    /// Returns the time, if somebody wants to know how long the processor takes.
    pub(crate) fn clock(&self) -> Option<Instant> {
        let hook = self.slot.context.on_batch.as_ref();
        hook.map(|_| Instant::now())
    }

    /// Answers what is owed for so many jobs, with what the processor has
    /// returned, which was called at `started`.
    pub(crate) fn finish(
        self,
        size: usize,
        started: Option<Instant>,
        returned: Result<Result<Vec<R>, P::Error>, Arc<str>>,
    ) {
        let outcome =
            match returned {
                Ok(Ok(results)) => Ok(results),
                // An error that panics when it is boxed is a panic as well.
                Ok(Err(error)) => Err(guard(|| JobError::from_processor(error.into()))
                    .unwrap_or_else(JobError::Panicked)),
                Err(message) => Err(JobError::Panicked(message)),
            };
        let results = match outcome {
            Ok(results) if results.len() != size => {
                let actual = results.len();
                discard(results, self.name());
                Err(JobError::ResultCount {
                    expected: size,
                    actual,
                })
            }
            outcome => outcome,
        };
        let mut replies = self.owed.take();
        if replies.is_empty() {
            // The loop has given this batch up and answered for it.
            discard(results.into_iter().flatten(), self.name());
            return;
        }
        self.report(size, started, results.as_ref().err());
        // A result whose caller has gone is dropped here, which may panic, as may
        // whoever is woken; the others still have theirs to come.
        let panicked = match results {
            Ok(results) => send_all(replies.drain(..).zip(results.into_iter().map(Ok))),
            Err(error) => {
                let errors = replies.drain(..).map(|reply| (reply, Err(error.clone())));
                let panicked = send_all(errors);
                discard([error], self.name());
                panicked
            }
        };
        if let Some(error) = panicked {
            let name = self.name();
            trace(|| error!(name, %error, "the drop of a result, or a waker, panicked"));
        }
        if !is_excess(replies.capacity(), size) {
            self.owed.put(replies);
        }
    }

    /// Counts and reports the batch: before its callers hear of it, so that
    /// they find it counted.
    fn report(&self, size: usize, started: Option<Instant>, error: Option<&JobError>) {
        let context = &self.slot.context;
        if let Some(error) = error {
            let log = |error: &dyn fmt::Display| {
                error!(
                    name = self.name(),
                    size,
                    weight = self.weight,
                    reason = %self.reason,
                    %error,
                    "batch failed"
                );
            };
            if guard(|| log(&Chain(error))).is_err() {
                trace(|| error!(name = self.name(), "batch failed, and so did showing why"));
            }
        }
        context.intake.count(|stats| {
            stats.in_flight -= 1;
            stats.processing -= size;
            let outcome = match error {
                None => &mut stats.completed,
                Some(_) => &mut stats.failed,
            };
            *outcome += size as u64;
        });
        let (Some(hook), Some(started)) = (&context.on_batch, started) else {
            return;
        };
        let report = BatchReport {
            size,
            weight: self.weight,
            reason: self.reason,
            waited: self.waited,
            took: started.elapsed(),
            error,
        };
        if let Err(error) = guard(|| hook(&report)) {
            trace(|| error!(name = self.name(), %error, "the on_batch hook panicked"));
        }
    }
}

/// Shows an error with its causes.
struct Chain<'a>(&'a JobError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut error: &dyn std::error::Error = self.0;
        write!(f, "{error}")?;
        while let Some(cause) = error.source() {
            write!(f, ": {cause}")?;
            error = cause;
        }
        Ok(())
    }
}
