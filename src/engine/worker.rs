//! The loop that owns the pending jobs.
//!
//! Each turn it receives what has happened from the queue, asks the [`Schedule`]
//! whether a batch is due, and waits for the next event. All decisions are synchronous
//! and all state belongs to the loop, so there is nothing to race with.
//!
//! # Invariants
//!
//! - A job is always in exactly one of: the queue, the inbox, the storage, a batch.
//!   Each of them replies to it when dropped, and all are dropped with the worker,
//!   however it ends.
//! - The loop awaits nothing but the `select!`: neither the processor nor a hook.

use std::collections::VecDeque;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Wake, Waker};
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore};
use tokio::task::coop;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, warn};

use super::batch::{Batch, BatchContext, BatchReplies, InFlightGuard};
use super::in_flight::InFlight;
use super::panics::{discard, trace};
use super::peak::is_excess;
use super::pending_jobs::PendingJobs;
use super::permits::{HeldPermits, Permits};
use super::queue::{Inbox, Queue, Received, Seen};
use super::schedule::{Policy, Schedule};
use super::task_pool::TaskPool;
use super::timer::Timer;
use crate::error::{JobError, ShutdownTimeout};
use crate::job::PendingJob;
use crate::processor::BatchProcessor;
use crate::report::FlushReason;
use crate::storage::BatchStorage;

/// How long a stop that ran out of time waits for the batches it has aborted. They end
/// at once unless they block their thread.
const ABORT_GRACE: Duration = Duration::from_millis(100);

pub(crate) struct Worker<J, R, P, S: BatchStorage<J, R>> {
    context: Arc<BatchContext<J, R, P>>,
    permits: Permits,
    pending: PendingJobs<J, R, S>,
    /// Jobs left in the queue.
    queued: usize,
    /// The highest number of jobs that were queued recently.
    queued_peak: usize,
    inbox: Inbox<J, R>,
    /// A buffer for the inbox to use again.
    spare: VecDeque<PendingJob<J, R>>,
    in_flight: InFlight<R>,
    pool: TaskPool<J, R, P>,
    /// Last, so that the end is announced after every job has its reply.
    _end: EndGuard<J, R>,
}

/// Its drop announces the end of the worker.
struct EndGuard<J, R>(Arc<Queue<J, R>>);

impl<J, R> Drop for EndGuard<J, R> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Wakes the worker by way of the queue. The queue tells it to poll the cancellation
/// token, so that the worker need not poll it every turn.
struct CancelWaker<J, R>(Arc<Queue<J, R>>);

impl<J: Send, R: Send> Wake for CancelWaker<J, R> {
    fn wake(self: Arc<Self>) {
        self.0.wake_for_cancel();
    }
}

impl<J, R, P, S> Worker<J, R, P, S>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
    S: BatchStorage<J, R>,
{
    pub(crate) fn new(
        context: BatchContext<J, R, P>,
        policy: Policy,
        permits: Vec<Arc<Semaphore>>,
        storage: S,
    ) -> Self {
        let context = Arc::new(context);
        let queue = &context.queue;
        Self {
            permits: Permits::new(permits),
            pending: PendingJobs::new(Arc::clone(queue), policy, storage),
            queued: 0,
            queued_peak: 0,
            inbox: Inbox::default(),
            spare: VecDeque::new(),
            in_flight: InFlight::default(),
            pool: TaskPool::new(Arc::clone(&context)),
            _end: EndGuard(Arc::clone(queue)),
            context,
        }
    }

    fn queue(&self) -> &Queue<J, R> {
        &self.context.queue
    }

    fn schedule(&self) -> &Schedule {
        &self.pending.schedule
    }

    /// Runs until stopped and drained.
    pub(crate) async fn run(mut self, cancel: CancellationToken) -> Result<(), ShutdownTimeout> {
        let mut cancelled = pin!(cancel.cancelled_owned());
        let cancel_waker = Waker::from(Arc::new(CancelWaker(Arc::clone(&self.context.queue))));
        let mut timer = pin!(Timer::default());
        self.queue().wake_for_cancel();
        loop {
            // A worker that always has a batch to cut lets other tasks run, too.
            coop::consume_budget().await;
            let now = Instant::now();
            if self.receive(now) {
                let mut cx = task::Context::from_waker(&cancel_waker);
                if cancelled.as_mut().poll(&mut cx).is_ready() {
                    self.queue().close();
                    self.receive(now);
                }
            }
            if self.schedule().is_overdue(now) && !self.is_drained() {
                return Err(self.time_out().await);
            }
            if self.flush_if_due(now) {
                continue;
            }
            self.reply_to_flushes();
            if self.is_drained() {
                self.pool.join().await;
                trace(|| debug!(name = self.name(), "stopped"));
                return Ok(());
            }
            let (queue, schedule, seen) = (&self.context.queue, self.schedule(), self.seen());
            let waits_for_permit = self.permits.is_waiting();
            let deadline = match waits_for_permit {
                true => schedule.stop_deadline(),
                false => schedule.deadline(),
            };
            timer.as_mut().set(deadline, now);
            let changed = queue.changed(seen, schedule.wants(), schedule.stride());
            tokio::select! {
                biased;
                () = changed => {}
                () = self.permits.changed(), if waits_for_permit => {}
                () = timer.as_mut().elapsed() => {}
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.schedule().is_drained() && self.queued == 0
    }

    fn seen(&self) -> Seen {
        Seen {
            closed: self.schedule().is_stopping(),
            flushing: self.schedule().is_flushing(),
        }
    }

    /// Receives what has happened, and takes jobs up. Returns whether to poll the
    /// cancellation token.
    fn receive(&mut self, now: Instant) -> bool {
        if self.queue().cancels_on_drop() {
            self.pending.remove_withdrawn();
        }
        if self.inbox.jobs.capacity() == 0 {
            mem::swap(&mut self.inbox.jobs, &mut self.spare);
        }
        let limit = self.schedule().take_limit();
        let flushing = self.schedule().is_flushing();
        let queue = &self.context.queue;
        let received: Received = queue.receive(now, limit, flushing, &mut self.inbox);
        while let Some(number) = self.inbox.finished_batches.pop() {
            self.retire(number);
        }
        self.queued = received.queued;
        self.queued_peak = received.peak;
        self.pending.schedule.left_queue(received.flush_passed);
        if let Some(ahead) = received.flush_ahead {
            self.pending.schedule.request_flush(ahead);
        }
        if received.control_changed {
            let control = self.queue().control();
            self.pending.schedule.reconfigure(control.settings);
            self.pending.schedule.set_paused(control.paused);
        }
        if received.taken > 0 {
            self.pending.add(&mut self.inbox, received.weight, now);
        }
        if received.closed && !self.schedule().is_stopping() {
            trace(|| debug!(name = self.name(), "stopping"));
            self.pending.schedule.stop(now);
            // A stop takes up more jobs than a flush did, and needs no cancellation.
            self.receive(now);
            return false;
        }
        received.cancel_woken
    }

    /// Flushes a batch if one is due and has its permits. Returns whether there may be
    /// another one at once.
    fn flush_if_due(&mut self, now: Instant) -> bool {
        let Some(reason) = self.schedule().due(now) else {
            self.permits.release();
            return false;
        };
        let Some(permits) = self.permits.take() else {
            return false;
        };
        self.flush(reason, permits, now);
        self.queued > 0 || self.schedule().due(now).is_some()
    }

    /// Cuts a batch and hands it to the task pool.
    fn flush(
        &mut self,
        mut reason: FlushReason,
        permits: Result<HeldPermits, AcquireError>,
        now: Instant,
    ) {
        let waited = self.schedule().waited(now);
        let heavy = self.schedule().is_full_by_weight();
        let taken = self.pending.cut();
        if taken.is_empty() {
            self.pending.stall_or_abandon(now);
            return;
        }
        let max_batch_size = self.schedule().policy().settings.max_batch_size;
        if reason == FlushReason::Size && heavy && taken.len() < max_batch_size {
            reason = FlushReason::Weight;
        }
        match permits {
            Ok(permits) => {
                let (batch, span) = self.batch(taken, reason, waited, permits);
                let (in_flight, peak) = (self.in_flight.len(), self.in_flight.peak());
                self.pool.run(batch, span, in_flight, peak);
            }
            Err(closed) => {
                let (batch, span) = self.batch(taken, reason, waited, Vec::new());
                batch.fail(&span, JobError::Failed(Arc::new(closed)));
            }
        }
    }

    /// Makes a batch, which is in flight from here on.
    fn batch(
        &mut self,
        mut taken: Vec<PendingJob<J, R>>,
        reason: FlushReason,
        waited: Duration,
        permits: HeldPermits,
    ) -> (Batch<J, R, P>, Span) {
        let size = taken.len();
        // Before the batch can end, which counts it down again.
        self.queue().count(|stats| stats.start_batch(size));
        let owed = self.in_flight.spare();
        let mut replies = owed.take();
        let mut jobs = Vec::with_capacity(size);
        let mut weight = 0;
        let mut origins = Vec::new();
        replies.extend(taken.drain(..).map(|job| {
            weight += job.weight();
            let (job, reply, extra) = job.into_parts();
            if let Some(mut extra) = extra {
                origins.extend(extra.take_span());
            }
            jobs.push(job);
            reply
        }));
        // The buffers go round: inbox, queue, storage, batch.
        if !is_excess(taken.capacity(), self.queued_peak.max(size)) {
            self.spare = taken.into();
        }
        owed.put(replies);
        let batch = Batch {
            jobs,
            replies: Arc::clone(&owed),
            weight,
            reason,
            waited,
            guard: InFlightGuard {
                context: Arc::clone(&self.context),
                number: self.in_flight.next(),
                _permits: permits,
            },
        };
        let span = batch.span(&origins);
        discard(origins, None);
        self.in_flight.push(owed);
        self.pending.schedule.batch_started();
        (batch, span)
    }

    /// Removes a batch that has ended.
    fn retire(&mut self, number: u64) {
        let Some(replies) = self.in_flight.remove(number) else {
            return;
        };
        self.pending.schedule.batch_finished();
        let abandoned = self.abandon_batch(&replies);
        if abandoned > 0 {
            let name = self.name();
            trace(|| warn!(name, abandoned, "a batch ended without results"));
        }
    }

    fn reply_to_flushes(&mut self) {
        if self.pending.schedule.end_flush() {
            let replies = mem::take(&mut self.inbox.flush_replies);
            self.in_flight.wait(replies);
        }
        self.in_flight.reply_to_flushes();
    }

    /// Abandons what a stop has not drained in time.
    async fn time_out(&mut self) -> ShutdownTimeout {
        let timed_out = ShutdownTimeout {
            abandoned: self.abandon_all(),
        };
        self.queue().set_timeout(timed_out);
        let name = self.name();
        trace(|| warn!(name, abandoned = timed_out.abandoned, "stop timed out"));
        let aborted = async {
            while self.in_flight.len() > 0 {
                self.queue().changed(self.seen(), None, 1).await;
                self.receive(Instant::now());
            }
            self.pool.join().await;
        };
        // A batch that blocks its thread ends in its own time.
        let _ = timeout(ABORT_GRACE, aborted).await;
        timed_out
    }
}

impl<J, R, P, S: BatchStorage<J, R>> Worker<J, R, P, S> {
    fn name(&self) -> Option<&str> {
        self.context.name()
    }

    /// Drops the replies that a batch still owes, which abandons its jobs. Returns how
    /// many.
    fn abandon_batch(&self, replies: &BatchReplies<R>) -> usize {
        let owed = replies.take_owed();
        if !owed.is_empty() {
            let queue = &self.context.queue;
            queue.count(|stats| stats.abandon_batch(owed.len()));
        }
        owed.len()
    }

    /// Abandons every job that has no reply, and returns how many.
    fn abandon_all(&mut self) -> usize {
        self.pool.abort();
        let mut abandoned = self.context.queue.abandon_queued();
        for replies in self.in_flight.iter() {
            abandoned += self.abandon_batch(replies);
        }
        abandoned += self.pending.abandon_all();
        discard(mem::take(&mut self.inbox.jobs), self.context.name());
        abandoned
    }
}

impl<J, R, P, S: BatchStorage<J, R>> Drop for Worker<J, R, P, S> {
    fn drop(&mut self) {
        let abandoned = self.abandon_all();
        if abandoned > 0 {
            let name = self.name();
            trace(|| warn!(name, abandoned, "dropped before it had drained"));
        }
    }
}
