//! Everybody's common ground: the doors to the `MicroBatch`, the tasks, and the
//! record of what is seen.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use microbatch::{CancellationToken, JobError, MicroBatch, TrySubmitError};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinError, JoinHandle};
use tokio::time::Instant;

use super::callers::Held;
use super::doubles::{Answer, Task};
use super::panics;
use super::scenario::{self, Ending, Scenario, Storage};
use super::seen::{
    Admission, FlushSeen, Handle, JobSeen, Limits, Moment, Outcome, Seen, ShutdownSeen, Way,
};

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) cancel: CancellationToken,
    /// Cancelled when all is over.
    pub(crate) curtain: CancellationToken,
    /// The permits that batches need, if they need any.
    pub(crate) semaphore: Option<Arc<Semaphore>>,
    /// One clone for each part that is handed to the builder.
    pub(crate) parts: Arc<()>,
    /// The clones that the driver holds.
    pub(crate) doors: Mutex<Vec<Door>>,
    /// Handles that outlive the runtime.
    pub(crate) kept: Mutex<Vec<Held>>,
    pub(crate) loop_task: Mutex<Option<AbortHandle>>,
    tasks: Mutex<Vec<(JoinHandle<()>, Holds)>>,
    seen: Mutex<Seen>,
    tally: Mutex<Tally>,
    epoch: OnceLock<Instant>,
    ms: AtomicU64,
    /// The runtime is gone, and its clock with it.
    outside: AtomicBool,
}

/// Whether a task holds a `MicroBatch`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Door,
    Nothing,
}

#[derive(Default)]
struct Tally {
    ticks: u64,
    doors: usize,
    /// Reservations asked for and not known to be over.
    reserving: usize,
    /// Permits held for certain.
    permits: usize,
}

impl World {
    pub(crate) fn new(scenario: &Scenario) -> Arc<Self> {
        Arc::new(Self {
            scenario: scenario.clone(),
            cancel: CancellationToken::new(),
            curtain: CancellationToken::new(),
            semaphore: scenario
                .options
                .permits
                .map(|permits| Arc::new(Semaphore::new(permits))),
            parts: Arc::new(()),
            doors: Mutex::default(),
            kept: Mutex::default(),
            loop_task: Mutex::default(),
            tasks: Mutex::default(),
            seen: Mutex::new(Seen {
                limits: vec![(Moment::default(), Limits::from(&scenario.options))],
                permits: vec![(
                    Moment::default(),
                    isize::try_from(scenario.options.permits.unwrap_or(0)).unwrap_or(isize::MAX),
                )],
                ..Seen::default()
            }),
            tally: Mutex::default(),
            epoch: OnceLock::new(),
            ms: AtomicU64::new(0),
            outside: AtomicBool::new(false),
        })
    }

    /// Never held while anything of the crate's is called.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while it is held")
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no panic while it is held")
    }

    pub(crate) fn now(&self) -> Moment {
        if !self.outside.load(Ordering::Relaxed) {
            let now = Instant::now();
            let epoch = *self.epoch.get_or_init(|| now);
            let ms = now.duration_since(epoch).as_millis() as u64;
            self.ms.store(ms, Ordering::Relaxed);
        }
        let mut tally = self.tally();
        tally.ticks += 1;
        Moment {
            tick: tally.ticks,
            ms: self.ms.load(Ordering::Relaxed),
        }
    }

    /// From here on no time passes.
    pub(crate) fn leave_the_runtime(&self) {
        self.outside.store(true, Ordering::Relaxed);
        let now = self.now();
        let mut seen = self.seen();
        let all_is_over = self.scenario.ending != Ending::DropRuntime;
        if seen.loop_.started && seen.loop_.ended.is_none() && !all_is_over {
            seen.loop_.cut_short.get_or_insert(now);
        }
    }

    pub(crate) fn blame(&self, what: impl Into<String>) {
        self.seen().blames.push(what.into());
    }

    // The doors.

    pub(crate) fn open(self: &Arc<Self>, micro_batch: MicroBatch<Task, Answer>) {
        self.tally().doors += 1;
        let door = Door {
            micro_batch,
            world: Arc::clone(self),
        };
        self.doors().push(door);
    }

    pub(crate) fn doors(&self) -> MutexGuard<'_, Vec<Door>> {
        self.doors.lock().expect("no panic while it is held")
    }

    /// A clone of what the driver holds, if it still holds any.
    pub(crate) fn door(&self) -> Option<Door> {
        self.doors().first().cloned()
    }

    /// Drops the driver's clones, none of them under the lock.
    pub(crate) fn drop_doors(&self) {
        let doors = std::mem::take(&mut *self.doors());
        drop(doors);
    }

    pub(crate) fn drop_all(&self) {
        self.drop_doors();
        let kept = std::mem::take(&mut *self.kept.lock().expect("no panic"));
        drop(kept);
    }

    // The tasks.

    pub(crate) fn spawn(
        &self,
        holds: Holds,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let task = tokio::spawn(task);
        let abort = task.abort_handle();
        self.tasks.lock().expect("no panic").push((task, holds));
        abort
    }

    pub(crate) fn abort_one(&self, number: usize) {
        let tasks = self.tasks.lock().expect("no panic");
        let alive = tasks.iter().filter(|(task, _)| !task.is_finished());
        let alive: Vec<_> = alive.collect();
        if let Some((task, _)) = alive.get(number % alive.len().max(1)) {
            task.abort();
        }
    }

    pub(crate) fn abort_holders_of_doors(&self) {
        let tasks = self.tasks.lock().expect("no panic");
        for (task, holds) in tasks.iter() {
            if *holds == Holds::Door {
                task.abort();
            }
        }
    }

    /// Waits for all tasks that there are, and those that they start.
    pub(crate) async fn join_tasks(&self) {
        loop {
            let task = self.tasks.lock().expect("no panic").pop();
            let Some((task, _)) = task else { return };
            let error = task.await.err().filter(JoinError::is_panic);
            if let Some(error) = error {
                self.blame(format!("a caller panicked: {error}"));
            }
        }
    }

    // The jobs.

    pub(crate) fn make(self: &Arc<Self>, plan: scenario::Job, way: Way) -> Task {
        let mut seen = self.seen();
        let id = seen.jobs.len();
        seen.jobs.push(JobSeen {
            plan,
            way,
            admission: Admission::Outside,
            entered: None,
            accepted: None,
            handle: Handle::Held,
            batches: Vec::new(),
            lost: false,
            weighed: false,
            limit: None,
            dropped: false,
        });
        drop(seen);
        Task::new(id, plan, Arc::clone(self))
    }

    pub(crate) fn with_job<T>(&self, id: usize, note: impl FnOnce(&mut JobSeen, Moment) -> T) -> T {
        let now = self.now();
        note(&mut self.seen().jobs[id], now)
    }

    pub(crate) fn resolved(&self, id: usize, result: &Result<Answer, JobError>) {
        let outcome = Outcome::from(result);
        let panic_of_the_weigher = self.panic_of_the_weigher(id);
        self.with_job(id, |job, now| {
            match &outcome {
                Outcome::Closed | Outcome::TooHeavy { .. } if job.accepted.is_none() => {
                    job.admission = Admission::Refused;
                }
                Outcome::Panicked(message) if Some(message) == panic_of_the_weigher.as_ref() => {
                    job.admission = Admission::Refused;
                }
                _ => job.accepted_by(now),
            }
            job.handle = Handle::Resolved(now, outcome);
        });
        if let Some(door) = self.door() {
            door.observe();
        }
    }

    /// What the weigher says of a job whose weighing panics.
    pub(crate) fn panic_of_the_weigher(&self, id: usize) -> Option<String> {
        let weighed = self.scenario.options.max_batch_weight.is_some();
        let bites = self.seen().jobs[id].plan.bites;
        (weighed && bites).then(|| panics::of_job(id))
    }

    /// The settings in force.
    pub(crate) fn limits(&self) -> Limits {
        let seen = self.seen();
        seen.limits.last().expect("there are some at first").1
    }

    // Reservations.

    pub(crate) fn reserving(&self, change: impl FnOnce(&mut usize)) {
        change(&mut self.tally().reserving);
    }

    pub(crate) fn permitted(&self) -> usize {
        self.tally().permits
    }

    pub(crate) fn permits(&self, change: impl FnOnce(&mut usize)) {
        change(&mut self.tally().permits);
    }
}

/// A `MicroBatch`, and the knowledge of how many there are.
pub(crate) struct Door {
    pub(crate) micro_batch: MicroBatch<Task, Answer>,
    pub(crate) world: Arc<World>,
}

impl Clone for Door {
    fn clone(&self) -> Self {
        self.world.tally().doors += 1;
        Self {
            micro_batch: self.micro_batch.clone(),
            world: Arc::clone(&self.world),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut tally = self.world.tally();
        tally.doors -= 1;
        let last = tally.doors == 0;
        drop(tally);
        if last {
            self.world.closes();
        }
    }
}

impl World {
    /// Notes what closes the queue at once.
    pub(crate) fn closes(&self) {
        let now = self.now();
        self.seen().closed.get_or_insert(now);
    }

    /// Notes that the loop will not get to its end.
    pub(crate) fn cut_short(&self) {
        let now = self.now();
        self.seen().loop_.cut_short.get_or_insert(now);
    }

    pub(crate) fn asks_to_flush(&self) -> usize {
        let asked = self.now();
        let mut seen = self.seen();
        seen.flushes.push(FlushSeen {
            asked,
            answered: None,
        });
        seen.flushes.len() - 1
    }

    pub(crate) fn asks_to_shut_down(&self) -> usize {
        self.closes();
        let asked = self.now();
        let mut seen = self.seen();
        seen.shutdowns.push(ShutdownSeen {
            asked,
            answered: None,
        });
        seen.shutdowns.len() - 1
    }
}

impl Door {
    /// Submits a job.
    pub(crate) fn submit(&self, plan: scenario::Job) -> Held {
        let task = self.world.make(plan, Way::Submit);
        let id = task.id;
        let before = self.micro_batch.stats().accepted;
        let handle = self.micro_batch.submit(task);
        self.submitted(id, before, handle.is_finished());
        Held::new(&self.world, id, handle)
    }

    pub(crate) fn try_submit(&self, plan: scenario::Job) -> Option<Held> {
        let task = self.world.make(plan, Way::TrySubmit);
        let id = task.id;
        let before = self.micro_batch.stats().accepted;
        let refused = match self.micro_batch.try_submit(task) {
            Ok(handle) => {
                self.submitted(id, before, handle.is_finished());
                if !handle.is_finished() && self.micro_batch.stats().accepted != before + 1 {
                    self.world
                        .blame(format!("job {id}: tried, neither accepted nor refused"));
                }
                return Some(Held::new(&self.world, id, handle));
            }
            Err(refused) => refused,
        };
        self.world
            .with_job(id, |job, _| job.admission = Admission::Refused);
        let right = match &refused {
            TrySubmitError::Full(_) => !self.micro_batch.is_closed() && self.may_be_full(),
            TrySubmitError::Closed(_) => self.micro_batch.is_closed(),
            TrySubmitError::TooHeavy(_) => self.is_too_heavy(plan),
        };
        if !right || self.micro_batch.stats().accepted != before {
            self.world
                .blame(format!("job {id}: refused as {refused:?}"));
        }
        if refused.into_job().id != id {
            self.world
                .blame(format!("job {id}: another job was given back"));
        }
        None
    }

    /// Notes what became of a job that has just been submitted.
    pub(crate) fn submitted(&self, id: usize, before: u64, refused: bool) {
        let accepted = self.micro_batch.stats().accepted - before;
        let full = self.may_be_full();
        self.world
            .with_job(id, |job, now| match (accepted, refused) {
                (1, false) => job.accepted_by(now),
                (0, true) => job.admission = Admission::Refused,
                // A waiter from now on, polled or not.
                (0, false) => {
                    job.entered = Some(now);
                    job.admission = Admission::Waiting;
                }
                _ => {}
            });
        match (accepted, refused) {
            (0, false) if !full => self
                .world
                .blame(format!("job {id}: waits, but there is room")),
            (0, _) | (1, false) => {}
            _ => self.world.blame(format!(
                "job {id}: accepted {accepted} times, refused: {refused}"
            )),
        }
    }

    pub(crate) fn is_too_heavy(&self, plan: scenario::Job) -> bool {
        let limit = self.world.limits().max_batch_weight;
        limit.is_some_and(|limit| plan.weight > limit) && !plan.bites
    }

    /// Whether there may be no room in the queue. Who has just been granted a
    /// reservation may not know yet.
    fn may_be_full(&self) -> bool {
        let queued = self.micro_batch.stats().queued;
        let reserving = self.world.tally().reserving;
        queued + reserving >= self.world.scenario.options.queue_capacity
    }

    /// Checks what must be true at any time.
    pub(crate) fn observe(&self) {
        let world = &self.world;
        let options = &world.scenario.options;
        let stats = self.micro_batch.stats();
        let held = stats.queued + stats.pending + stats.processing;
        let done = stats.completed + stats.failed + stats.withdrawn + stats.abandoned;
        let permits = world.tally().permits;
        let seen = world.seen();
        // Lower limits leave what there is.
        let max_batch_size = seen.max_of_limits(|limits| limits.max_batch_size);
        let max_in_flight = seen.max_of_limits(|limits| limits.max_in_flight);
        drop(seen);
        let backlog = match options.storage {
            Storage::Default => max_batch_size,
            _ => max_batch_size.max(options.queue_capacity),
        };
        let closed = self.micro_batch.is_closed();
        let wrong = [
            (stats.accepted != done + held as u64, "do not add up"),
            (
                stats.queued + permits > options.queue_capacity && !closed,
                "beyond the capacity",
            ),
            (stats.pending > backlog, "beyond a full batch"),
            (stats.in_flight > max_in_flight, "beyond max_in_flight"),
            (
                stats.processing > stats.in_flight * max_batch_size,
                "beyond max_batch_size",
            ),
            (
                stats.waiting > 0 && !self.may_be_full(),
                "wait although there is room",
            ),
            (stats.waiting > 0 && closed, "wait although all is closed"),
        ];
        for (_, what) in wrong.into_iter().filter(|(wrong, _)| *wrong) {
            world.blame(format!("{what}: {stats:?}, {permits} permits"));
        }
        let closed_from = world.seen().closed_from();
        match (closed, closed_from) {
            (true, None) => world.blame("closed for no reason"),
            (false, Some(_)) if world.seen().closed.is_some() => world.blame("not closed"),
            _ => {}
        }
    }
}
