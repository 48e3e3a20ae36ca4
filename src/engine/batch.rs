//! One batch: what the processor returns for it, and the replies to its callers.
//!
//! # Invariants
//!
//! - Each job of a batch gets one reply, its own result or the error of the batch. The
//!   replies are taken once, by the batch or by the worker that abandons it.
//! - A batch is counted and reported before its callers get their replies, and the worker
//!   hears of its end after everything of it is dropped.

use std::collections::HashSet;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, mem};

use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::{Span, debug, error, info_span};

use super::panics::{Shielded, catch, discard, trace};
use super::peak::is_excess;
use super::permits::HeldPermits;
use super::queue::Queue;
use super::reply::{ReplySender, send_all};
use crate::error::JobError;
use crate::processor::BatchProcessor;
use crate::report::{BatchReport, FlushReason};

/// What all batches of a micro-batcher share.
pub(crate) struct BatchContext<J, R, P> {
    pub(crate) processor: Shielded<P>,
    pub(crate) queue: Arc<Queue<J, R>>,
    pub(crate) on_batch: Option<Shielded<Hook>>,
}

impl<J, R, P> BatchContext<J, R, P> {
    pub(crate) fn name(&self) -> Option<&str> {
        self.queue.name()
    }
}

pub(crate) type Hook = Box<dyn Fn(&BatchReport<'_>) + Send + Sync>;

/// The replies owed for a batch. Either the batch takes and sends them once it has its
/// results, or the worker takes and drops them when it abandons the batch.
pub(crate) struct BatchReplies<R>(Mutex<Vec<ReplySender<R>>>);

impl<R> BatchReplies<R> {
    /// Takes what is owed; nothing if it was taken before.
    pub(crate) fn take(&self) -> Vec<ReplySender<R>> {
        mem::take(&mut self.lock())
    }

    /// Sets what is owed, or gives an empty vector back to be used again.
    pub(crate) fn put(&self, replies: Vec<ReplySender<R>>) {
        *self.lock() = replies;
    }

    /// Takes what is owed, but leaves a vector that is only kept to be used again.
    pub(crate) fn take_owed(&self) -> Vec<ReplySender<R>> {
        let mut owed = self.lock();
        if owed.is_empty() {
            return Vec::new();
        }
        mem::take(&mut owed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ReplySender<R>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Default for BatchReplies<R> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

/// A batch in flight.
pub(crate) struct Batch<J, R, P> {
    pub(crate) jobs: Vec<J>,
    pub(crate) replies: Arc<BatchReplies<R>>,
    pub(crate) weight: usize,
    pub(crate) reason: FlushReason,
    pub(crate) waited: Duration,
    /// Last, so that the worker hears of the end after everything else is dropped.
    pub(crate) guard: InFlightGuard<J, R, P>,
}

impl<J, R, P> Drop for Batch<J, R, P> {
    fn drop(&mut self) {
        // One by one: two jobs that panic in one drop would abort the process.
        discard(mem::take(&mut self.jobs), self.guard.context.name());
    }
}

/// Its drop tells the worker that the batch has ended, however it ends.
pub(crate) struct InFlightGuard<J, R, P> {
    pub(crate) context: Arc<BatchContext<J, R, P>>,
    pub(crate) number: u64,
    pub(crate) _permits: HeldPermits,
}

impl<J, R, P> Drop for InFlightGuard<J, R, P> {
    fn drop(&mut self) {
        self.context.queue.batch_finished(self.number);
    }
}

impl<J, R, P: BatchProcessor<J, R>> Batch<J, R, P> {
    fn name(&self) -> Option<&str> {
        self.guard.context.name()
    }

    /// Returns the span of this batch, linked both ways with the spans its jobs were
    /// submitted in. An exporter keeps so many links a span, 128 by default: the spans of
    /// the callers of a larger batch lead to it all the same.
    pub(crate) fn span(&self, origins: &[Span]) -> Span {
        if LevelFilter::current() < LevelFilter::INFO {
            return Span::none();
        }
        let name = self.name();
        let (size, weight) = (self.jobs.len(), self.weight);
        let (reason, waited) = (self.reason, self.waited);
        let span =
            catch(|| info_span!(parent: None, "batch", name, size, weight, %reason, ?waited));
        let span = span.unwrap_or_else(|_| Span::none());
        if !span.is_disabled() {
            link(&span, origins);
        }
        trace(|| debug!(parent: &span, name, size, weight, %reason, ?waited, "flush"));
        span
    }

    /// Returns the time, if the hook or the metrics are to be told how long the processor
    /// takes.
    pub(crate) fn start_time(&self) -> Option<Instant> {
        let told = cfg!(feature = "metrics") || self.guard.context.on_batch.is_some();
        told.then(Instant::now)
    }

    /// Replies to the callers of this many jobs with what the processor has returned.
    /// It was called at `started`.
    pub(crate) fn finish(
        self,
        size: usize,
        started: Option<Instant>,
        returned: Result<Result<Vec<R>, P::Error>, Arc<str>>,
    ) {
        let outcome = check(returned, size, self.name());
        self.reply(size, started, outcome);
    }

    /// Fails a batch that the processor is not called with.
    pub(crate) fn fail(mut self, span: &Span, error: JobError) {
        let jobs = mem::take(&mut self.jobs);
        let size = jobs.len();
        discard(jobs, self.name());
        let started = self.start_time();
        within(span, || self.reply(size, started, Err(error)));
    }

    fn reply(self, size: usize, started: Option<Instant>, results: Result<Vec<R>, JobError>) {
        let mut replies = self.replies.take();
        if replies.is_empty() {
            // The worker has abandoned this batch.
            discard(results.into_iter().flatten(), self.name());
            return;
        }
        self.report(size, started, results.as_ref().err());
        // A waker may panic, and so may the drop of a result whose caller is gone. The
        // other callers get theirs all the same.
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
            self.replies.put(replies);
        }
    }

    /// Counts and reports the batch. Before its callers get their results, so that they
    /// find it counted.
    fn report(&self, size: usize, started: Option<Instant>, error: Option<&JobError>) {
        let context = &self.guard.context;
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
            if catch(|| log(&ErrorChain(error))).is_err() {
                trace(|| error!(name = self.name(), "batch failed, and so did showing why"));
            }
        }
        let queue = &context.queue;
        queue.count(|stats| stats.finish_batch(size, error.is_some()));
        let Some(started) = started else {
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
        #[cfg(feature = "metrics")]
        queue.record_batch(&report);
        let Some(hook) = &context.on_batch else {
            return;
        };
        if let Err(error) = catch(|| hook(&report)) {
            trace(|| error!(name = self.name(), %error, "the on_batch hook panicked"));
        }
    }
}

/// Returns the results that a processor has returned for so many jobs, or why there are
/// none. `returned` holds the message of a panic if it panicked.
pub(crate) fn check<R, E>(
    returned: Result<Result<Vec<R>, E>, Arc<str>>,
    expected: usize,
    name: Option<&str>,
) -> Result<Vec<R>, JobError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    match returned {
        Ok(Ok(results)) if results.len() == expected => Ok(results),
        Ok(Ok(results)) => {
            let actual = results.len();
            discard(results, name);
            Err(JobError::ResultCount { expected, actual })
        }
        // An error that panics when it is boxed is a panic as well.
        Ok(Err(error)) => {
            let error = catch(|| JobError::from_processor(error.into()));
            Err(error.unwrap_or_else(JobError::Panicked))
        }
        Err(message) => Err(JobError::Panicked(message)),
    }
}

/// Links the span of a batch with those of its callers, once each. They are held open
/// here: a closed span cannot be linked.
fn link(batch: &Span, origins: &[Span]) {
    let mut ids = HashSet::with_capacity(origins.len());
    let callers = origins.iter().filter(|origin| ids.insert(origin.id()));
    let callers: Vec<_> = callers.collect();
    for caller in &callers {
        trace(|| {
            batch.follows_from(*caller);
        });
    }
    // Afterwards, because this may start the batch in an exporter, whose sampler sees
    // no later links of the batch.
    for caller in callers {
        trace(|| {
            caller.follows_from(batch);
        });
    }
}

/// Makes a call inside the span. The call does not panic; the subscriber may.
pub(super) fn within<T>(span: &Span, call: impl FnOnce() -> T) -> T {
    if span.is_none() {
        return call();
    }
    let entered = catch(|| span.enter());
    let result = call();
    trace(|| drop(entered));
    result
}

/// Displays an error with its causes.
struct ErrorChain<'a>(&'a JobError);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut error: &dyn Error = self.0;
        write!(f, "{error}")?;
        while let Some(cause) = error.source() {
            write!(f, ": {cause}")?;
            error = cause;
        }
        Ok(())
    }
}
