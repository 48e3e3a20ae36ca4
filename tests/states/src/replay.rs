//! Random walks through the states, with the crate itself alongside in virtual
//! time. It must do at every step what the states say: start the same batches
//! for the same reasons, answer the same handles, wake and end when they do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use microbatch::{
    BatchReport, BatchStorage, CancellationToken, JobHandle, MicroBatch, PendingJob, StartError,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;
use tokio::time::advance;

use crate::setup::Setup;
use crate::state::{Action, Cut, Job, Phase, Prank, State};

/// How often tasks must be let run for all of them to be done.
const ROUNDS: usize = 8;

const PATIENCE: usize = 3;

/// Takes so many walks, and returns how many steps these were, or how one of
/// them went wrong.
pub fn walks(setup: &Setup, count: u64) -> Result<usize, String> {
    let mut steps = 0;
    for seed in 0..count {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| error.to_string())?;
        let mut taken = Vec::new();
        runtime
            .block_on(walk(setup, seed, &mut taken))
            .map_err(|wrong| format!("walk {seed}: {wrong} after {taken:#?}"))?;
        steps += taken.len();
    }
    Ok(steps)
}

async fn walk(setup: &Setup, seed: u64, taken: &mut Vec<Action>) -> Result<(), String> {
    let mut dice = Dice(seed);
    let mut state = State::new(setup);
    let mut real = Real::new(setup)?;
    let mut cuts = Vec::new();
    let mut actions = Vec::new();
    loop {
        actions.clear();
        state.actions(setup, &mut actions);
        if actions.is_empty() {
            return Ok(());
        }
        let mut action = *dice.pick(&actions);
        for _ in 0..PATIENCE {
            // Stops are seldom, or most walks would be over soon.
            let ends = matches!(
                action,
                Action::Cancel | Action::Shutdown | Action::CloseSemaphore
            );
            if ends {
                action = *dice.pick(&actions);
            }
        }
        taken.push(action);
        real.act(setup, &state, action).await?;
        match action {
            // What is one poll of the real worker is several steps.
            Action::Step(mut prank) => {
                while matches!(state.phase, Phase::Turn | Phase::Poll) {
                    state.step(setup, &mut prank, &mut |cut| cuts.push(cut));
                }
            }
            _ => state.act(setup, action, &mut |cut| cuts.push(cut)),
        }
        real.compare(setup, &state, &cuts).await?;
    }
}

struct Dice(u64);

impl Dice {
    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        &choices[(word % choices.len() as u64) as usize]
    }
}

/// What the processor, the hook and the storage share with the walk.
#[derive(Default)]
struct Stage {
    started: Vec<Vec<u8>>,
    /// For each batch that was started, what lets it end.
    gates: Vec<Option<oneshot::Sender<()>>>,
    reports: Vec<Report>,
    prank: Option<Prank>,
}

/// Size, reason and how long the first job waited.
type Report = (usize, String, Duration);

type Shared = Arc<Mutex<Stage>>;

fn lock(stage: &Shared) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

struct WokenFlag(AtomicBool);

impl Wake for WokenFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Task<T> = Pin<Box<dyn Future<Output = T>>>;

struct Real {
    batcher: MicroBatch<Job, u8>,
    stage: Shared,
    cancel: CancellationToken,
    permits: Option<Arc<Semaphore>>,
    run: Task<Result<(), StartError>>,
    ended: Option<Result<(), StartError>>,
    woken: Arc<WokenFlag>,
    handles: Vec<Option<JobHandle<u8>>>,
    flushes: Vec<Option<Task<()>>>,
    shutdown: Option<Task<()>>,
}

impl Real {
    fn new(setup: &Setup) -> Result<Self, String> {
        let policy = &setup.policy;
        let stage = Shared::default();
        let (processed, reported) = (Arc::clone(&stage), Arc::clone(&stage));
        let process = move |jobs: Vec<Job>| {
            let (open, gate) = oneshot::channel();
            let mut stage = lock(&processed);
            let ids: Vec<u8> = jobs.iter().map(|job| job.id).collect();
            stage.started.push(ids.clone());
            stage.gates.push(Some(open));
            async move {
                let _ = gate.await;
                Ok::<_, Infallible>(ids)
            }
        };
        let report = move |report: &BatchReport<'_>| {
            let reason = report.reason.to_string();
            let report = (report.size, reason, report.waited);
            lock(&reported).reports.push(report);
        };
        let mut builder = MicroBatch::builder(process)
            .max_batch_size(policy.settings.max_batch_size)
            .max_in_flight(policy.settings.max_in_flight)
            .interval(policy.settings.interval)
            .shutdown_timeout(policy.shutdown_timeout)
            .queue_capacity(setup.capacity)
            .cancel_on_drop(setup.cancel_on_drop)
            .flush_when_idle(policy.settings.flush_when_idle)
            .on_batch(report);
        if let Some(cost) = policy.settings.flush_cost {
            builder = builder.flush_cost(cost);
        }
        let permits = setup
            .permits
            .map(|count| Arc::new(Semaphore::new(count.into())));
        if let Some(permits) = &permits {
            builder = builder.permits(Arc::clone(permits));
        }
        if setup.weighs() {
            builder =
                builder.max_batch_weight(policy.settings.max_batch_weight, |job| job.weight.into());
        }
        let batcher = if policy.custom_storage {
            let jobs = Vec::new();
            let stage = Arc::clone(&stage);
            builder.storage(Trickster { jobs, stage }).build()
        } else {
            builder.build()
        };
        let batcher = batcher.map_err(|error| error.to_string())?;
        let cancel = CancellationToken::new();
        Ok(Self {
            run: Box::pin(batcher.start(cancel.clone())),
            batcher,
            stage,
            cancel,
            permits,
            ended: None,
            woken: Arc::new(WokenFlag(AtomicBool::new(true))),
            handles: Vec::new(),
            flushes: Vec::new(),
            shutdown: None,
        })
    }

    async fn act(&mut self, setup: &Setup, state: &State, action: Action) -> Result<(), String> {
        match action {
            Action::Submit { weight } => {
                let id = state.submitted;
                let handle = self.batcher.submit(Job { id, weight });
                self.handles.push(Some(handle));
            }
            Action::DropHandle { id } => self.handles[usize::from(id)] = None,
            Action::Flush => {
                let mut flush: Task<()> = Box::pin(self.batcher.flush());
                let answered = poll_once(flush.as_mut()).is_ready();
                self.flushes.push(Some(flush).filter(|_| !answered));
            }
            Action::Cancel => self.cancel.cancel(),
            Action::Shutdown => {
                let shutdown = self.batcher.shutdown();
                let mut shutdown: Task<()> = Box::pin(async {
                    let _ = shutdown.await;
                });
                let _ = poll_once(shutdown.as_mut());
                self.shutdown = Some(shutdown);
            }
            Action::Advance { to } => {
                advance(Duration::from_millis((to - state.now).into())).await;
            }
            Action::Finish { batch } => {
                let jobs = state.processing().find(|running| running.number == batch);
                let jobs = jobs.map(|batch| &batch.jobs);
                let mut stage = lock(&self.stage);
                let at = stage.started.iter().position(|ids| Some(ids) == jobs);
                let gate = at.and_then(|at| stage.gates[at].take());
                gate.and_then(|gate| gate.send(()).ok())
                    .ok_or("the processor does not have the batch")?;
            }
            Action::Reconfigure { choice } => {
                let settings = setup.choices[usize::from(choice)];
                let changed = self.batcher.reconfigure(|it| {
                    it.max_batch_size = settings.max_batch_size;
                    it.max_batch_weight = settings.max_batch_weight;
                    it.interval = settings.interval;
                    it.max_in_flight = settings.max_in_flight;
                    it.flush_when_idle = settings.flush_when_idle;
                    it.flush_cost = settings.flush_cost;
                });
                changed.map_err(|error| error.to_string())?;
            }
            Action::Pause => self.batcher.pause(),
            Action::Resume => self.batcher.resume(),
            Action::GrantPermit => self.permits.iter().for_each(|it| it.add_permits(1)),
            Action::TakePermit => {
                if let Some(permits) = &self.permits {
                    permits
                        .try_acquire()
                        .map_err(|error| error.to_string())?
                        .forget();
                }
            }
            Action::CloseSemaphore => self.permits.iter().for_each(|it| it.close()),
            Action::Step(prank) => {
                lock(&self.stage).prank = prank;
                self.poll();
                lock(&self.stage).prank = None;
            }
        }
        for _ in 0..ROUNDS {
            yield_now().await;
        }
        Ok(())
    }

    /// Polls the worker until it parks. It may wake itself once, by closing the queue;
    /// one that spins is left awake.
    fn poll(&mut self) {
        let waker = Waker::from(Arc::clone(&self.woken));
        for _ in 0..2 {
            if self.ended.is_some() || !self.woken.0.swap(false, Ordering::Relaxed) {
                return;
            }
            let polled = self.run.as_mut().poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(ended) = polled {
                self.ended = Some(ended);
            }
        }
    }

    async fn compare(&mut self, setup: &Setup, state: &State, cuts: &[Cut]) -> Result<(), String> {
        if let Phase::Ended { .. } = state.phase {
            // It waits for the tasks of its batches.
            for _ in 0..ROUNDS {
                if self.ended.is_none() {
                    self.poll();
                    yield_now().await;
                }
            }
        }
        let ended = self.ended.as_ref().map(|ended| match ended {
            Err(StartError::ShutdownTimeout(timeout)) => Some(timeout.abandoned),
            _ => None,
        });
        let should = match state.phase {
            Phase::Ended { abandoned } => Some(abandoned),
            _ => None,
        };
        agree("how it ended", &ended, &should)?;
        if should.is_none() {
            let woken = self.woken.0.load(Ordering::Relaxed);
            agree("it was woken", &woken, &(state.phase != Phase::Asleep))?;
        }
        let stage = lock(&self.stage);
        let should = cuts.iter().filter(|cut| !cut.failed);
        let should: Vec<_> = should.map(|cut| cut.jobs.clone()).collect();
        agree("batches", &stage.started, &should)?;
        let told = cuts
            .iter()
            .map(|cut| (cut.jobs.len(), cut.reason.to_string(), cut.waited));
        let told: Vec<Report> = told.collect();
        if let Some(other) = stage.reports.iter().find(|report| !told.contains(report)) {
            return Err(format!("{other:?} is none of {told:?}"));
        }
        drop(stage);
        if let Some(permits) = &self.permits {
            let available = usize::from(state.semaphore.available);
            agree("permits", &permits.available_permits(), &available)?;
        }
        let paused = self.batcher.is_paused();
        agree("paused", &paused, &state.control.paused)?;
        let interval = self.batcher.settings().interval;
        agree("interval", &interval, &state.settings(setup).interval)?;
        for (id, handle) in self.handles.iter().enumerate() {
            if let Some(handle) = handle {
                let should = state.answered & (1 << id) != 0;
                agree(&format!("handle {id}"), &handle.is_finished(), &should)?;
            }
        }
        for (flush, call) in self.flushes.iter_mut().zip(&state.flush_calls) {
            flush.take_if(|flush| poll_once(flush.as_mut()).is_ready());
            agree("flush", &flush.is_none(), &call.answered)?;
        }
        Ok(())
    }
}

fn agree<T: std::fmt::Debug + PartialEq>(what: &str, is: &T, should: &T) -> Result<(), String> {
    if is == should {
        return Ok(());
    }
    Err(format!("{what}: {is:?} instead of {should:?}"))
}

fn poll_once<T>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A storage that plays the pranks it is told to.
struct Trickster {
    jobs: Vec<PendingJob<Job, u8>>,
    stage: Shared,
}

impl BatchStorage<Job, u8> for Trickster {
    fn len(&self) -> usize {
        self.jobs.len()
    }

    fn append(&mut self, job: PendingJob<Job, u8>) {
        self.jobs.push(job);
    }

    fn append_all(&mut self, jobs: &mut VecDeque<PendingJob<Job, u8>>) {
        self.jobs.extend(jobs.drain(..));
        let refuses = |prank: &mut Prank| *prank == Prank::Refuse;
        if lock(&self.stage).prank.take_if(refuses).is_some() {
            self.jobs.pop();
        }
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<Job, u8>> {
        let played = if max_jobs == usize::MAX {
            // The end of it.
            None
        } else {
            let plays = |prank: &mut Prank| *prank != Prank::Refuse;
            lock(&self.stage).prank.take_if(plays)
        };
        match played {
            None | Some(Prank::Refuse) => self.fitting(max_jobs, max_weight),
            Some(Prank::Evict) => {
                self.jobs.drain(..1);
                self.fitting(max_jobs, max_weight)
            }
            Some(Prank::Clear) => {
                self.jobs.clear();
                Vec::new()
            }
            Some(Prank::Leak) => {
                self.jobs.drain(..).for_each(mem::forget);
                Vec::new()
            }
            Some(Prank::GiveNothing) => Vec::new(),
            Some(Prank::GiveOne) => self.jobs.drain(..1).collect(),
            Some(Prank::GiveLast) => self.jobs.pop().into_iter().collect(),
            Some(Prank::GiveAll) => mem::take(&mut self.jobs),
        }
    }
}

impl Trickster {
    fn fitting(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<Job, u8>> {
        let mut room = max_weight;
        let first = self.jobs.iter().take(max_jobs);
        let fits = first.map_while(|job| {
            room = room.checked_sub(job.weight())?;
            Some(())
        });
        let fits = fits.count();
        self.jobs.drain(..fits).collect()
    }
}
