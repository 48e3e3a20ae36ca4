//! The loop that owns the pending jobs.
//!
//! Each turn it looks at the intake, decides by [`Pending`] whether a batch is
//! due, and then waits for the one thing that comes first. All decisions are
//! synchronous and all state is its own, so there is nothing to race with.
//!
//! # Invariants
//!
//! - A job is always in exactly one of: the queue, the inbox, the storage, a
//!   batch. Each of them answers it when dropped, and all of them are dropped
//!   with the worker, however it ends.
//! - The loop awaits nothing but the `select!`: no processor, no hook.

use std::collections::VecDeque;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Wake, Waker};
use std::time::Duration;

use tokio::task::coop;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::batch::{Batch, Context, Replies, Slot};
use crate::crew::Crew;
use crate::error::ShutdownTimeout;
use crate::intake::{Intake, Known};
use crate::job::{Departures, PendingJob, Reply, send_all, total_weight};
use crate::panics::{Shielded, discard, guard, trace};
use crate::pending::{Pending, Policy};
use crate::processor::BatchProcessor;
use crate::recent::{Recent, is_excess};
use crate::report::FlushReason;
use crate::storage::{BatchStorage, fitting};
use crate::timer::Timer;

/// How long a stop that ran out of time waits for the batches it has aborted to
/// be gone. They go at once unless they block their thread.
const ABORT_GRACE: Duration = Duration::from_millis(100);

pub(crate) struct Worker<J, R, P, S: BatchStorage<J, R>> {
    context: Arc<Context<J, R, P>>,
    policy: Policy,
    pending: Pending,
    /// Jobs left in the queue at the last look.
    queued: usize,
    /// The most jobs that were queued lately.
    most: usize,
    inbox: VecDeque<PendingJob<J, R>>,
    /// A buffer to be used again.
    empty: VecDeque<PendingJob<J, R>>,
    /// When the jobs of the inbox were accepted; a buffer.
    arrivals: Vec<(Instant, usize)>,
    storage: Shielded<S>,
    /// What has left the storage, where jobs are watched one by one.
    departures: Arc<Departures>,
    /// Jobs in the storage that their callers have given up.
    given_up: usize,
    /// What is owed for each batch in flight, with its number, oldest first.
    running: VecDeque<(u64, Arc<Replies<R>>)>,
    /// How many there were lately.
    in_flight: Recent,
    /// What batches were owed for that have ended, to be used again.
    spare: Vec<Arc<Replies<R>>>,
    crew: Crew<J, R, P>,
    /// Number of the next batch.
    next: u64,
    /// Who waits for the flush that is going on.
    flushing: Vec<Reply<()>>,
    /// Who waits for all batches below that number to end.
    settling: VecDeque<(u64, Vec<Reply<()>>)>,
    finished: Vec<u64>,
    /// Last, so that the end is told after everything is answered.
    _ended: Ended<J, R>,
}

/// Tells everybody that the loop has ended.
struct Ended<J, R>(Arc<Intake<J, R>>);

impl<J, R> Drop for Ended<J, R> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Wakes the loop to see about the cancellation. So it need not ask the token
/// whenever it is woken for another reason, which is always but once.
struct Nudge<J, R>(Arc<Intake<J, R>>);

impl<J: Send, R: Send> Wake for Nudge<J, R> {
    fn wake(self: Arc<Self>) {
        self.0.nudge();
    }
}

impl<J, R, P, S> Worker<J, R, P, S>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
    S: BatchStorage<J, R>,
{
    pub(crate) fn new(context: Context<J, R, P>, policy: Policy, storage: S) -> Self {
        let context = Arc::new(context);
        let crew = Crew::new(Arc::clone(&context));
        Self {
            _ended: Ended(Arc::clone(&context.intake)),
            context,
            pending: Pending::new(policy.clone(), Instant::now()),
            policy,
            queued: 0,
            most: 0,
            inbox: VecDeque::new(),
            empty: VecDeque::new(),
            arrivals: Vec::new(),
            storage: Shielded::new(storage),
            departures: Arc::default(),
            given_up: 0,
            running: VecDeque::new(),
            in_flight: Recent::default(),
            spare: Vec::new(),
            crew,
            next: 0,
            flushing: Vec::new(),
            settling: VecDeque::new(),
            finished: Vec::new(),
        }
    }

    /// Runs until stopped and drained.
    pub(crate) async fn run(mut self, cancel: CancellationToken) -> Result<(), ShutdownTimeout> {
        let mut cancelled = pin!(cancel.cancelled_owned());
        let nudge = Waker::from(Arc::new(Nudge(Arc::clone(&self.context.intake))));
        let mut timer = pin!(Timer::default());
        self.context.intake.nudge();
        loop {
            // A loop that always has a batch to cut lets others run, too.
            coop::consume_budget().await;
            let now = Instant::now();
            if self.look(now) {
                let cancelled = cancelled.as_mut();
                if cancelled
                    .poll(&mut task::Context::from_waker(&nudge))
                    .is_ready()
                {
                    self.context.intake.close();
                    self.look(now);
                }
            }
            if self.pending.is_overdue(now) && !self.is_drained() {
                return Err(self.time_out().await);
            }
            if let Some(reason) = self.pending.due(now) {
                self.flush(reason, now);
                if self.queued > 0 || self.pending.due(now).is_some() {
                    continue;
                }
            }
            self.settle();
            if self.is_drained() {
                self.crew.dismiss().await;
                trace(|| debug!(name = self.name(), "stopped"));
                return Ok(());
            }
            timer.as_mut().set(self.pending.deadline(), now);
            tokio::select! {
                biased;
                () = self.context.intake.changed(
                    self.known(),
                    self.pending.wants(),
                    self.pending.stride(),
                ) => {}
                () = timer.as_mut().elapsed() => {}
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.pending.is_drained() && self.queued == 0
    }

    /// Hears what has happened and takes jobs up. Returns whether to see about
    /// the cancellation.
    fn look(&mut self, now: Instant) -> bool {
        if self.context.intake.cancels_on_drop() {
            self.leave_out();
        }
        if self.inbox.capacity() == 0 {
            mem::swap(&mut self.inbox, &mut self.empty);
        }
        let news = self.context.intake.look(
            now,
            self.pending.room(),
            (!self.pending.is_flushing()).then_some(&mut self.flushing),
            &mut self.inbox,
            &mut self.arrivals,
            &mut self.finished,
        );
        while let Some(number) = self.finished.pop() {
            self.retire(number);
        }
        self.queued = news.queued;
        self.most = news.most;
        self.pending.took(news.passed);
        if let Some(ahead) = news.flush {
            self.pending.flush(ahead);
        }
        if news.taken > 0 {
            self.arrive(now);
            self.pending.weigh(news.weight);
            self.store();
        }
        if news.closed && !self.pending.is_stopping() {
            trace(|| debug!(name = self.name(), "stopping"));
            self.pending.stop(now);
            // A stop takes more jobs up than a flush did, and no longer asks
            // for the cancellation.
            self.look(now);
            return false;
        }
        news.nudged
    }

    /// Counts the jobs in the inbox as pending.
    fn arrive(&mut self, now: Instant) {
        let watches = self.watches();
        let mut jobs = self.inbox.iter_mut();
        for (accepted, count) in self.arrivals.drain(..) {
            // A thread outside the runtime may have another clock.
            let accepted = self.pending.arrive(count, accepted.min(now));
            if watches {
                for job in jobs.by_ref().take(count) {
                    job.watch(&self.departures, accepted);
                }
            }
        }
    }

    /// Whether jobs are counted one by one as they leave the storage.
    fn watches(&self) -> bool {
        self.policy.chooses || self.context.intake.cancels_on_drop()
    }

    /// Puts the jobs that were taken up into the storage.
    fn store(&mut self) {
        self.guarded(|worker| worker.storage.get_mut().append_all(&mut worker.inbox));
        // What a panic has left.
        while let Some(job) = self.inbox.pop_front() {
            self.guarded(|worker| worker.storage.get_mut().append(job));
        }
        let refused = self.see_off();
        self.lose(refused);
    }

    /// Hears which jobs were given up, and clears the storage of them once they
    /// are the greater part of what it holds. A storage sees this as all being
    /// taken, and those that are wanted being appended again in the order in
    /// which they were accepted.
    fn leave_out(&mut self) {
        let departed = self.context.intake.departed();
        self.given_up += departed.len();
        for place in departed {
            if let Some(accepted) = place.accepted() {
                self.pending.leave_one(place.weight as u128, accepted);
            }
        }
        if self.given_up == 0 || self.given_up < self.pending.len() {
            return;
        }
        let held = self.guarded(|worker| worker.storage.get_mut().take(usize::MAX, usize::MAX));
        let (given_up, mut wanted): (Vec<_>, Vec<_>) = held
            .unwrap_or_default()
            .into_iter()
            .partition(PendingJob::is_given_up);
        self.given_up = self.given_up.saturating_sub(given_up.len());
        if self.policy.chooses {
            wanted.sort_by_key(PendingJob::accepted);
        }
        for job in wanted {
            self.guarded(|worker| worker.storage.get_mut().append(job));
        }
        discard(given_up, self.name());
        let left = self.see_off();
        self.lose(left);
    }

    /// Calls the storage, of whose panics the loop must not die.
    fn guarded<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let result = guard(|| call(self));
        result
            .inspect_err(|error| {
                trace(|| error!(name = self.name(), %error, "the storage panicked"));
            })
            .ok()
    }

    /// Hears which jobs have left the storage, and returns how many.
    fn see_off(&mut self) -> usize {
        if !self.watches() {
            return 0;
        }
        let departures = self.departures.take();
        for (weight, accepted) in &departures {
            self.pending.leave_one(*weight as u128, *accepted);
        }
        departures.len()
    }

    /// Counts pending jobs that the storage has dropped.
    fn lose(&self, jobs: usize) {
        if jobs > 0 {
            self.context.intake.count(|stats| {
                stats.pending = stats.pending.saturating_sub(jobs);
                stats.abandoned += jobs as u64;
            });
            self.tell_of_lost(jobs);
        }
    }

    fn tell_of_lost(&self, jobs: usize) {
        if jobs > 0 {
            trace(|| {
                warn!(
                    name = self.name(),
                    abandoned = jobs,
                    "the storage lost jobs"
                )
            });
        }
    }

    /// Cuts a batch and hands it to the processor.
    fn flush(&mut self, mut reason: FlushReason, now: Instant) {
        let waited = self.pending.waited(now);
        let heavy = self.pending.is_full_by_weight();
        let taken = self.cut();
        if taken.is_empty() {
            // Its callers may have given up what there was at the last moment.
            if !self.hears_of_departures() {
                self.give_up_or_stall(now);
            }
            return;
        }
        if reason == FlushReason::Size && heavy && taken.len() < self.policy.max_batch_size {
            reason = FlushReason::Weight;
        }
        self.launch(taken, reason, waited);
    }

    /// Whether jobs were given up that are still counted as pending.
    fn hears_of_departures(&self) -> bool {
        self.context.intake.cancels_on_drop() && self.context.intake.has_departed()
    }

    /// Leaves a storage alone for a while that gave nothing though it has been
    /// given jobs; or gives those up, if it says that it holds none.
    fn give_up_or_stall(&mut self, now: Instant) {
        let held = self.guarded(|worker| worker.storage.len());
        if held == Some(0) {
            self.pending.forget();
            self.given_up = 0;
            let lost = self.context.intake.lose_all();
            self.tell_of_lost(lost);
        } else {
            self.pending.stall(now);
        }
    }

    /// Takes a batch's worth out of the storage.
    fn cut(&mut self) -> Vec<PendingJob<J, R>> {
        let (max_jobs, max_weight) = (self.policy.max_batch_size, self.policy.max_batch_weight);
        if !self.watches() {
            let taken = self.take(max_jobs, max_weight);
            let weight = match self.pending.weight() {
                0 => 0,
                _ => total_weight(&taken),
            };
            self.pending.leave(taken.len(), weight);
            return taken;
        }
        let mut batch = Vec::new();
        let (mut jobs, mut weight) = (max_jobs, max_weight);
        loop {
            let mut taken = self.take(jobs, weight);
            // A storage of the user's is not trusted to keep the limits.
            let fits = fitting(taken.iter().take(jobs), weight);
            for excess in taken.split_off(fits) {
                self.guarded(|worker| worker.storage.get_mut().append(excess));
            }
            let (wanted, given_up): (Vec<_>, Vec<_>) = taken
                .into_iter()
                .map(|mut job| (job.claim(), job))
                .partition(|(claimed, _)| *claimed);
            let mut taken: Vec<_> = wanted.into_iter().map(|(_, job)| job).collect();
            jobs -= taken.len();
            weight -= taken.iter().map(PendingJob::weight).sum::<usize>();
            batch.append(&mut taken);
            self.given_up = self.given_up.saturating_sub(given_up.len());
            // What was given up makes room for others.
            let more = !given_up.is_empty() && jobs > 0;
            discard(given_up.into_iter().map(|(_, job)| job), self.name());
            if !more {
                break;
            }
        }
        let left = self.see_off();
        self.lose(left.saturating_sub(batch.len()));
        batch
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>> {
        self.guarded(|worker| worker.storage.get_mut().take(max_jobs, max_weight))
            .unwrap_or_default()
    }

    /// Hands a batch to the crew.
    fn launch(&mut self, mut taken: Vec<PendingJob<J, R>>, reason: FlushReason, waited: Duration) {
        let size = taken.len();
        // Before the batch starts, which counts itself down again.
        self.context.intake.count(|stats| {
            stats.pending = stats.pending.saturating_sub(size);
            stats.processing += size;
            stats.in_flight += 1;
            stats.batches += 1;
        });
        let owed = self.spare.pop().unwrap_or_default();
        let mut replies = owed.take();
        let mut jobs = Vec::with_capacity(size);
        let mut weight = 0;
        let mut origins = Vec::new();
        replies.extend(taken.drain(..).map(|job| {
            weight += job.weight();
            let (job, reply, extra) = job.into_parts();
            if let Some(mut extra) = extra {
                origins.extend(extra.span.take());
            }
            jobs.push(job);
            reply
        }));
        // The buffers go round: inbox, queue, storage, batch.
        if !is_excess(taken.capacity(), self.most.max(size)) {
            self.empty = taken.into();
        }
        owed.put(replies);
        let batch = Batch {
            jobs,
            owed: Arc::clone(&owed),
            weight,
            reason,
            waited,
            slot: Slot {
                context: Arc::clone(&self.context),
                number: self.next,
            },
        };
        let span = batch.span(&origins);
        discard(origins, None);
        self.running.push_back((self.next, owed));
        self.in_flight.note(self.running.len());
        let lately = self.in_flight.most();
        self.crew.assign(batch, span, self.running.len(), lately);
        self.next += 1;
        self.pending.started();
    }

    /// A batch has ended.
    fn retire(&mut self, number: u64) {
        let found = self.running.binary_search_by_key(&number, |batch| batch.0);
        let Some((_, owed)) = found.ok().and_then(|at| self.running.remove(at)) else {
            return;
        };
        self.pending.finished();
        let lost = self.give_up(&owed);
        if lost > 0 {
            trace(|| {
                warn!(
                    name = self.name(),
                    abandoned = lost,
                    "a batch ended without results"
                )
            });
        }
        self.spare.push(owed);
        self.spare.truncate(self.in_flight.most());
        self.in_flight.trim(&mut self.running);
    }

    /// Answers those whose flush is done.
    fn settle(&mut self) {
        if self.pending.flushed() {
            let done = mem::take(&mut self.flushing);
            self.settling.push_back((self.next, done));
        }
        let oldest = self.running.front().map_or(self.next, |batch| batch.0);
        while self.settling.front().is_some_and(|(end, _)| *end <= oldest) {
            let (_, done) = self.settling.pop_front().unwrap_or_default();
            send_all(done.into_iter().map(|reply| (reply, Ok(()))));
        }
    }

    /// Gives up what a stop has not drained in time.
    async fn time_out(&mut self) -> ShutdownTimeout {
        let timed_out = ShutdownTimeout {
            abandoned: self.abandon(),
        };
        self.context.intake.time_out(timed_out);
        trace(|| {
            warn!(
                name = self.name(),
                abandoned = timed_out.abandoned,
                "stop timed out"
            );
        });
        let gone = async {
            while !self.running.is_empty() {
                self.context.intake.changed(self.known(), None, 1).await;
                self.look(Instant::now());
            }
            self.crew.dismiss().await;
        };
        // A batch that blocks its thread ends in its own time.
        let _ = timeout(ABORT_GRACE, gone).await;
        timed_out
    }

    fn known(&self) -> Known {
        Known {
            closed: self.pending.is_stopping(),
            flushing: self.pending.is_flushing(),
        }
    }
}

impl<J, R, P, S: BatchStorage<J, R>> Worker<J, R, P, S> {
    fn name(&self) -> Option<&str> {
        self.context.name()
    }

    /// Drops what is still owed for a batch, which answers it, and returns for
    /// how many jobs.
    fn give_up(&self, owed: &Replies<R>) -> usize {
        let lost = owed.take_owed();
        if !lost.is_empty() {
            self.context.intake.count(|stats| stats.lose(lost.len()));
        }
        lost.len()
    }

    /// Answers every job that is left, as far as it is not answered by being
    /// dropped, and returns how many are left.
    fn abandon(&mut self) -> usize {
        self.crew.abort();
        let mut abandoned = self.context.intake.abandon();
        for (_, owed) in &self.running {
            abandoned += self.give_up(owed);
        }
        abandoned += self.context.intake.lose_all();
        let held = guard(|| self.storage.get_mut().take(usize::MAX, usize::MAX));
        discard(held.into_iter().flatten(), self.name());
        discard(mem::take(&mut self.inbox), self.name());
        // They are counted.
        self.departures.take();
        self.given_up = 0;
        abandoned
    }
}

impl<J, R, P, S: BatchStorage<J, R>> Drop for Worker<J, R, P, S> {
    fn drop(&mut self) {
        let abandoned = self.abandon();
        if abandoned > 0 {
            trace(|| {
                warn!(
                    name = self.name(),
                    abandoned, "dropped before it had drained"
                )
            });
        }
    }
}
