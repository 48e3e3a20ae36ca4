//! What stands in for a user's own parts: the job and its answer, the weight
//! function, the processor, the hook and the storage.

use std::cell::Cell;
use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use microbatch::{BatchProcessor, BatchReport, BatchStorage, PendingJob};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::callers;
use super::panics;
use super::scenario::{self, Batch, Call, Caller, Ends, Hook, SplitMix, Storage};
use super::seen::{Asked, BatchSeen, End, Outcome, Report};
use super::world::World;

/// A job, which tells when it is dropped.
pub(crate) struct Task {
    pub(crate) id: usize,
    plan: scenario::Job,
    world: Arc<World>,
}

impl Task {
    pub(crate) fn new(id: usize, plan: scenario::Job, world: Arc<World>) -> Self {
        Self { id, plan, world }
    }

    pub(crate) fn weigh(&self) -> usize {
        let limit = self.world.limits().max_batch_weight;
        let again = self.world.with_job(self.id, |job, _| {
            job.limit = limit;
            std::mem::replace(&mut job.weighed, true)
        });
        if again {
            self.world.blame(format!("job {}: weighed twice", self.id));
        }
        if let Some(door) = self.world.door() {
            door.observe();
        }
        if self.plan.bites {
            panics::panic_as_expected(&panics::of_job(self.id));
        }
        self.plan.weight
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let again = self
            .world
            .with_job(self.id, |job, _| std::mem::replace(&mut job.dropped, true));
        if again {
            self.world.blame(format!("job {}: dropped twice", self.id));
        }
        // The crate must not drop a job while it holds a lock.
        if let Some(door) = self.world.door() {
            door.observe();
        }
    }
}

/// What the processor makes of a job.
pub(crate) struct Answer {
    pub(crate) value: u64,
    world: Arc<World>,
}

impl Answer {
    fn new(value: u64, world: &Arc<World>) -> Self {
        world.seen().answers_alive += 1;
        Self {
            value,
            world: Arc::clone(world),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.world.seen().answers_alive -= 1;
    }
}

pub(crate) fn value_of(id: usize) -> u64 {
    id as u64 * 1000 + 7
}

/// What the processor returns where it fails.
pub(crate) struct Trouble {
    batch: usize,
    panics: bool,
}

/// What that becomes.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) batch: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {} failed", self.batch)
    }
}

impl Error for Failure {}

impl From<Trouble> for Box<dyn Error + Send + Sync> {
    fn from(trouble: Trouble) -> Self {
        if trouble.panics {
            panics::panic_as_expected(&panics::of_batch(trouble.batch));
        }
        Box::new(Failure {
            batch: trouble.batch,
        })
    }
}

pub(crate) struct Processor {
    world: Arc<World>,
    _part: Arc<()>,
}

impl Processor {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        Self {
            world: Arc::clone(world),
            _part: Arc::clone(&world.parts),
        }
    }
}

impl BatchProcessor<Task, Answer> for Processor {
    type Error = Trouble;

    fn process(
        &self,
        tasks: Vec<Task>,
    ) -> impl Future<Output = Result<Vec<Answer>, Trouble>> + Send {
        let world = Arc::clone(&self.world);
        let mut work = Work::begin(&world, &tasks);
        let plan = world.scenario.batch(work.number);
        if plan.early {
            ask(&world, plan.call);
        }
        if plan.ends == Ends::PanicBeforeFuture {
            work.end = End::Panic;
            panics::panic_as_expected(&panics::of_batch(work.number));
        }
        async move {
            if !plan.early {
                ask(&world, plan.call);
            }
            ask_and_wait(&world, plan).await;
            work.end(plan.ends, tasks).await
        }
    }
}

/// A batch in the processor's hands.
struct Work {
    world: Arc<World>,
    number: usize,
    end: End,
}

impl Work {
    fn begin(world: &Arc<World>, tasks: &[Task]) -> Self {
        let began = world.now();
        let mut seen = world.seen();
        let number = seen.batches.len();
        for task in tasks {
            let job = &mut seen.jobs[task.id];
            job.batches.push(number);
            job.accepted_by(began);
        }
        seen.processing += 1;
        seen.batches.push(BatchSeen {
            jobs: tasks.iter().map(|task| task.id).collect(),
            began,
            ended: None,
            report: None,
        });
        let processing = seen.processing;
        let limits = seen.limits_around(began);
        let allowed = limits.map(|limits| limits.max_in_flight).max();
        let permits = world.semaphore.as_ref().map(|_| seen.permits_at(u64::MAX));
        if Some(processing) > allowed || permits.is_some_and(|permits| processing > permits) {
            seen.blames.push(format!("{processing} batches in flight"));
        }
        drop(seen);
        if let Some(door) = world.door() {
            door.observe();
        }
        Self {
            world: Arc::clone(world),
            number,
            end: End::Dropped,
        }
    }

    async fn end(&mut self, how: Ends, tasks: Vec<Task>) -> Result<Vec<Answer>, Trouble> {
        let mut answers: Vec<_> = tasks
            .iter()
            .map(|task| Answer::new(value_of(task.id), &self.world))
            .collect();
        match how {
            Ends::Well => self.end = End::Well,
            Ends::Error | Ends::BadError => {
                let panics = how == Ends::BadError;
                self.end = match panics {
                    true => End::Panic,
                    false => End::Error,
                };
                return Err(Trouble {
                    batch: self.number,
                    panics,
                });
            }
            Ends::Panic | Ends::PanicBeforeFuture => {
                self.end = End::Panic;
                panics::panic_as_expected(&panics::of_batch(self.number));
            }
            Ends::TooFew => drop(answers.pop()),
            Ends::TooMany => answers.push(Answer::new(0, &self.world)),
            Ends::Never => pending().await,
        }
        if answers.len() != tasks.len() {
            self.end = End::Count(answers.len());
        }
        Ok(answers)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let now = self.world.now();
        let mut seen = self.world.seen();
        seen.processing -= 1;
        seen.batches[self.number].ended = Some((now, self.end));
    }
}

/// Calls the processor's own `MicroBatch` without waiting for what comes of it.
fn ask(world: &Arc<World>, call: Call) {
    let Some(door) = world.door() else { return };
    let caller = match call {
        Call::Submit(caller) => caller,
        _ => Caller::default(),
    };
    match call {
        Call::Submit(_) => callers::submit(&door, scenario::Job::default(), caller),
        Call::TrySubmit => callers::try_submit(&door, scenario::Job::default(), caller),
        Call::Flush => drop(callers::flush(&door).now_or_never()),
        Call::Shutdown => drop(callers::shutdown(&door).now_or_never()),
        _ => {}
    }
}

/// Does the batch's work, and calls what is to be waited for.
async fn ask_and_wait(world: &Arc<World>, plan: Batch) {
    let door = world.door();
    let kept = door.clone().filter(|_| plan.call == Call::KeepClone);
    match (plan.call, door) {
        (Call::SubmitAndWait, Some(door)) => {
            let held = door.submit(scenario::Job::default());
            drop(door);
            held.await;
        }
        (Call::FlushAndWait, Some(door)) => {
            let flush = callers::flush(&door);
            drop(door);
            flush.await;
        }
        (Call::ShutdownAndWait, Some(door)) => {
            let shutdown = callers::shutdown(&door);
            drop(door);
            shutdown.await;
        }
        (_, door) => drop(door),
    }
    match plan.takes {
        0 => {}
        // Some batches only let others go first.
        1..4 => {
            for _ in 0..plan.takes {
                yield_now().await;
            }
        }
        takes => sleep(Duration::from_millis(takes)).await,
    }
    drop(kept);
}

/// The `on_batch` hook.
pub(crate) fn hook(world: &Arc<World>) -> impl Fn(&BatchReport<'_>) + Send + Sync + 'static {
    let world = Arc::clone(world);
    let part = Arc::clone(&world.parts);
    move |report| {
        let _part = &part;
        let now = world.now();
        let mut seen = world.seen();
        let report = Report {
            size: report.size,
            weight: report.weight,
            reason: report.reason,
            waited: report.waited.as_millis() as u64,
            took: report.took.as_millis() as u64,
            error: report.error.map(Outcome::from),
        };
        if report.error == Some(Outcome::NoPermit) {
            return seen.failures.push((now, report));
        }
        // It is called at once when a batch has ended, before any other can.
        let ended = seen.batches.iter().enumerate();
        let ended = ended.filter_map(|(number, batch)| Some((batch.ended?.0, number)));
        let Some((_, number)) = ended.max() else {
            seen.blames.push("a report, but no batch has ended".into());
            return;
        };
        let again = seen.batches[number].report.replace(report);
        if again.is_some() {
            seen.blames
                .push(format!("batch {number} was reported twice"));
        }
        drop(seen);
        let door = world.door();
        if let Some(door) = &door {
            door.observe();
        }
        match (world.scenario.batch(number).hook, door) {
            (Hook::Panics, _) => panics::panic_as_expected(&panics::of_hook(number)),
            (Hook::Submits, Some(door)) => {
                callers::submit(&door, scenario::Job::default(), Caller::default());
            }
            _ => {}
        }
    }
}

/// A storage with a habit.
pub(crate) struct Cupboard {
    habit: Storage,
    jobs: VecDeque<PendingJob<Task, Answer>>,
    appended: usize,
    asked: usize,
    counted: Cell<usize>,
    random: SplitMix,
    world: Arc<World>,
    _part: Arc<()>,
}

impl Cupboard {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        Self {
            habit: world.scenario.options.storage,
            jobs: VecDeque::new(),
            appended: 0,
            asked: 0,
            counted: Cell::new(0),
            random: SplitMix(0),
            world: Arc::clone(world),
            _part: Arc::clone(&world.parts),
        }
    }

    fn lose(&self, job: &PendingJob<Task, Answer>) {
        self.world.with_job(job.job().id, |job, _| job.lost = true);
    }

    fn note(&self, asked: Asked) {
        let now = self.world.now();
        self.world.seen().held.push((now, self.jobs.len(), asked));
    }

    /// The first jobs, as many as fit.
    fn fitting(&self, max_jobs: usize, max_weight: usize) -> usize {
        let mut room = max_weight;
        let jobs = self.jobs.iter().take(max_jobs);
        jobs.map_while(|job| {
            room = room.checked_sub(job.weight())?;
            Some(())
        })
        .count()
    }
}

impl BatchStorage<Task, Answer> for Cupboard {
    fn len(&self) -> usize {
        self.counted.set(self.counted.get() + 1);
        match self.habit {
            Storage::PanicsOnLen(n) if self.counted.get() == n => {
                self.world.cut_short();
                panics::panic_as_expected(&panics::of_storage("len"));
            }
            Storage::Overstates => self.jobs.len() + 1,
            Storage::Denies => 0,
            _ => self.jobs.len(),
        }
    }

    fn append(&mut self, job: PendingJob<Task, Answer>) {
        self.appended += 1;
        let nth = |n| self.appended % n == 0;
        match self.habit {
            Storage::Refuses(n) if nth(n) => return self.lose(&job),
            Storage::PanicsOnAppend(n) if nth(n) => {
                self.lose(&job);
                panics::panic_as_expected(&panics::of_storage("append"));
            }
            Storage::Forgets(n) if nth(n) => {
                if let Some(forgotten) = self.jobs.pop_front() {
                    self.lose(&forgotten);
                }
                self.jobs.push_back(job);
            }
            Storage::NewestFirst => self.jobs.push_front(job),
            _ => self.jobs.push_back(job),
        }
        self.note(Asked::No);
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<Task, Answer>> {
        self.asked += 1;
        if self.habit == Storage::Shuffled {
            for at in 1..self.jobs.len() {
                let other = usize::from(self.random.word()) % (at + 1);
                self.jobs.swap(at, other);
            }
        }
        let fitting = self.fitting(max_jobs, max_weight);
        let count = match self.habit {
            Storage::Greedy => self.jobs.len(),
            Storage::Meagre => fitting.min(1),
            Storage::Stutters if self.asked % 2 == 1 => 0,
            Storage::Withholds | Storage::Denies => 0,
            Storage::PanicsBeforeTake(n) if self.asked == n => 0,
            _ => fitting,
        };
        let taken: Vec<_> = self.jobs.drain(..count).collect();
        self.note(Asked::Yes);
        match self.habit {
            Storage::PanicsBeforeTake(n) if self.asked == n => {
                panics::panic_as_expected(&panics::of_storage("take"))
            }
            Storage::PanicsOnTake(n) if self.asked == n => {
                taken.iter().for_each(|job| self.lose(job));
                panics::panic_as_expected(&panics::of_storage("take"));
            }
            _ => taken,
        }
    }
}
