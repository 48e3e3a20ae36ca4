//! Doubles: gates that the test opens, and logs of what went through.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use microbatch::{
    BatchProcessor, BatchReport, BatchStorage, CancellationToken, FlushReason, JobError, JobHandle,
    MicroBatch, MicroBatchBuilder, PendingJob, Stats,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

/// Seconds, the unit of most tests: virtual time costs nothing, and the timer's
/// granularity of a millisecond disappears.
pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Beyond every deadline of a test.
pub(crate) const AGES: Duration = secs(10 * 365 * 24 * 3600);

/// Lets everything happen that can happen by now: the paused clock moves on,
/// by this millisecond, only when nothing else can run.
pub(crate) async fn settle() {
    sleep(millis(1)).await;
}

/// Lets everything happen that can happen by now, on a clock that stands still.
pub(crate) async fn settle_now() {
    for _ in 0..200 {
        yield_now().await;
    }
}

/// Awaits what must come, and fails where it never does.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(AGES, future).await.expect("resolves some day")
}

/// Polls once, with a waker that wakes nothing.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// A runtime without a timer.
pub(crate) fn bare_runtime() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

/// Runs the test on a thread with the stack that Tokio gives to its own, and
/// fails where it panics.
pub(crate) fn on_a_small_stack<F: Future>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async { drop(test().await) });
    };
    let thread = thread::Builder::new().stack_size(2 << 20).spawn(run);
    thread.expect("a thread").join().expect("no panic");
}

/// A waker that counts how often it is woken.
#[derive(Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task that lives as long as its wakers, with all that it owns.
struct Owner<T>(Mutex<T>);

impl<T: Send> Wake for Owner<T> {
    fn wake(self: Arc<Self>) {}
}

/// Returns the only waker of a task that owns this.
pub(crate) fn owning<T: Send + 'static>(value: T) -> Waker {
    Waker::from(Arc::new(Owner(Mutex::new(value))))
}

/// Panics when dropped, if it is the one; never while a panic is under way.
#[derive(Debug)]
pub(crate) struct Bomb(pub(crate) u32);

/// The number of the one.
pub(crate) const LIVE: u32 = 13;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(self.0 != LIVE || thread::panicking(), "the bomb went off");
    }
}

/// A future that has its results at once, and panics when it is dropped.
pub(crate) struct Explosive(pub(crate) Option<Vec<u32>>);

impl Future for Explosive {
    type Output = Result<Vec<u32>, String>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(self.0.take().expect("polled once")))
    }
}

impl Drop for Explosive {
    fn drop(&mut self) {
        assert!(thread::panicking(), "drop of the future");
    }
}

/// The message of a panic in the processor, or in code that it runs.
pub(crate) fn panic_message<R: std::fmt::Debug>(answer: Result<R, JobError>) -> String {
    match answer {
        Err(JobError::Panicked(message)) => message.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Locks whatever has happened to other holders.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Builds and starts, with a token that is never cancelled.
pub(crate) fn run<J, R, P, S>(builder: MicroBatchBuilder<J, R, P, S>) -> MicroBatch<J, R>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
    S: BatchStorage<J, R>,
{
    let started = builder.build_running(CancellationToken::new());
    started.expect("the options are valid")
}

/// Builds without starting.
pub(crate) fn idle<J, R, P, S>(builder: MicroBatchBuilder<J, R, P, S>) -> MicroBatch<J, R>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
    S: BatchStorage<J, R>,
{
    builder.build().expect("the options are valid")
}

/// Starts in a task, with a token that is never cancelled.
pub(crate) fn start<J: Send + 'static, R: Send + 'static>(batcher: &MicroBatch<J, R>) {
    drop(tokio::spawn(batcher.start(CancellationToken::new())));
}

/// Submits every job, without waiting for anything.
pub(crate) fn submit<J: Send + 'static, R: Send + 'static>(
    batcher: &MicroBatch<J, R>,
    jobs: impl IntoIterator<Item = J>,
) -> Vec<JobHandle<R>> {
    jobs.into_iter().map(|job| batcher.submit(job)).collect()
}

/// Awaits every handle.
pub(crate) async fn answers<R>(handles: Vec<JobHandle<R>>) -> Vec<Result<R, JobError>> {
    let mut answers = Vec::new();
    for handle in handles {
        answers.push(soon(handle).await);
    }
    answers
}

/// Awaits every handle, all of which succeed.
pub(crate) async fn results<R>(handles: Vec<JobHandle<R>>) -> Vec<R> {
    let answers = answers(handles).await.into_iter();
    answers.map(|answer| answer.expect("succeeds")).collect()
}

/// Fails unless the counters agree with one another.
pub(crate) fn assert_balanced(stats: Stats) {
    let now = stats.queued + stats.pending + stats.processing;
    let done = stats.completed + stats.failed + stats.withdrawn + stats.abandoned;
    assert_eq!(stats.accepted, done + now as u64, "{stats:?}");
}

/// When a batch started, and its jobs.
type Entry = (Duration, Vec<u32>);

/// A processor that logs its batches, holds each until the test lets it pass,
/// and returns the jobs as their results.
#[derive(Clone)]
pub(crate) struct Gate {
    passes: Arc<Semaphore>,
    log: Arc<Mutex<Vec<Entry>>>,
    inside: Arc<AtomicUsize>,
    most_inside: Arc<AtomicUsize>,
    made: Instant,
}

impl Gate {
    /// Holds every batch until [`pass`](Self::pass).
    pub(crate) fn closed() -> Self {
        Self {
            passes: Arc::new(Semaphore::new(0)),
            log: Arc::default(),
            inside: Arc::default(),
            most_inside: Arc::default(),
            made: Instant::now(),
        }
    }

    /// Holds nothing.
    pub(crate) fn open() -> Self {
        let gate = Self::closed();
        gate.pass(Semaphore::MAX_PERMITS);
        gate
    }

    /// Lets that many batches pass.
    pub(crate) fn pass(&self, batches: usize) {
        self.passes.add_permits(batches);
    }

    /// The batches so far, in the order in which they started.
    pub(crate) fn batches(&self) -> Vec<Vec<u32>> {
        let log = lock(&self.log);
        log.iter().map(|(_, jobs)| jobs.clone()).collect()
    }

    /// When they started, counted from the making of the gate.
    pub(crate) fn times(&self) -> Vec<Duration> {
        lock(&self.log).iter().map(|(at, _)| *at).collect()
    }

    /// How many futures of the processor exist.
    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    /// The most that have existed at once.
    pub(crate) fn most_inside(&self) -> usize {
        self.most_inside.load(Ordering::SeqCst)
    }
}

impl BatchProcessor<u32, u32> for Gate {
    type Error = Infallible;

    async fn process(&self, jobs: Vec<u32>) -> Result<Vec<u32>, Infallible> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_inside.fetch_max(inside, Ordering::SeqCst);
        let _leaves = Leaves(&self.inside);
        lock(&self.log).push((self.made.elapsed(), jobs.clone()));
        let pass = self.passes.acquire().await;
        pass.expect("the gate stays").forget();
        Ok(jobs)
    }
}

/// A builder around the gate, with `cancel_on_drop`.
pub(crate) fn cancelling(
    gate: &Gate,
) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone()).cancel_on_drop(true)
}

/// Counts down when dropped.
struct Leaves<'a>(&'a AtomicUsize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A job that decides what happens to its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing but its own result.
    Answer(u32),
    /// The batch fails with a [`Cause`].
    Fail(u32),
    /// The future panics.
    Panic,
    /// The processor panics before there is a future.
    PanicEarly,
    /// The batch has one result too few.
    Short,
    /// The batch has one result too many.
    Long,
    /// The batch never ends.
    Hang,
}

/// A processor's own error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cause(pub(crate) u32);

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cause {}", self.0)
    }
}

impl std::error::Error for Cause {}

/// The processor of fated jobs: the first that is not an answer decides.
pub(crate) fn decide(
    jobs: Vec<Fate>,
) -> impl Future<Output = Result<Vec<u32>, Cause>> + Send + 'static {
    let mut fates = jobs.iter().copied();
    let fate = fates.find(|fate| !matches!(fate, Fate::Answer(_)));
    assert!(fate != Some(Fate::PanicEarly), "panicked early");
    async move {
        let answers = jobs.iter().map(|fate| match fate {
            Fate::Answer(answer) => *answer,
            _ => u32::MAX,
        });
        let mut answers: Vec<u32> = answers.collect();
        match fate {
            Some(Fate::Fail(cause)) => return Err(Cause(cause)),
            Some(Fate::Panic) => panic!("panicked on {} jobs", jobs.len()),
            Some(Fate::Short) => answers.truncate(jobs.len() - 1),
            Some(Fate::Long) => answers.push(u32::MAX),
            Some(Fate::Hang) => std::future::pending().await,
            _ => {}
        }
        Ok(answers)
    }
}

/// A processor that returns the jobs.
pub(crate) async fn echo(jobs: Vec<u64>) -> Result<Vec<u64>, String> {
    Ok(jobs)
}

/// A micro-batcher of [`echo`] that is not started, so nothing leaves its queue.
pub(crate) fn idle_echo(queue_capacity: usize) -> MicroBatch<u64, u64> {
    idle(MicroBatch::builder(echo).queue_capacity(queue_capacity))
}

type Echo = Pin<Box<dyn Future<Output = Result<Vec<u64>, String>> + Send>>;

/// An [`echo`] that lets each batch pass when a permit is added.
pub(crate) fn gated_echo(
    gate: &Arc<Semaphore>,
) -> impl Fn(Vec<u64>) -> Echo + Send + Sync + 'static + use<> {
    let gate = Arc::clone(gate);
    move |jobs| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            gate.acquire().await.expect("open").forget();
            Ok(jobs)
        })
    }
}

/// A processor whose future takes 256 KiB; it fails batches with job 13.
pub(crate) async fn large(jobs: Vec<u32>) -> Result<Vec<u32>, String> {
    let buffer = [jobs.len() as u8; 256 << 10];
    yield_now().await;
    assert!(buffer.iter().all(|byte| *byte == jobs.len() as u8));
    match jobs.contains(&13) {
        true => Err("unlucky".to_owned()),
        false => Ok(jobs),
    }
}

/// A processor of single jobs that returns them, every third in a later poll than
/// the others.
pub(crate) async fn uneven(jobs: Vec<u32>) -> Result<Vec<u32>, String> {
    if jobs[0] % 3 == 0 {
        yield_now().await;
    }
    Ok(jobs)
}

/// Batches of one, several of them in flight.
pub(crate) fn one_by_one<J, R, P, S>(
    builder: MicroBatchBuilder<J, R, P, S>,
) -> MicroBatchBuilder<J, R, P, S>
where
    J: Send + 'static,
    R: Send + 'static,
    P: BatchProcessor<J, R>,
    S: BatchStorage<J, R>,
{
    builder
        .max_batch_size(1)
        .max_in_flight(8)
        .queue_capacity(10_000)
}

/// The jobs in the order in which their batches started.
#[derive(Clone, Default)]
pub(crate) struct StartLog(Arc<Mutex<Vec<u32>>>);

impl StartLog {
    /// Notes a batch that starts.
    pub(crate) fn note(&self, jobs: &[u32]) {
        lock(&self.0).extend(jobs);
    }

    /// Fails unless this many jobs were noted, in the order of their numbers.
    pub(crate) fn assert_in_order(&self, jobs: u32) {
        let log = lock(&self.0);
        let swaps = log.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert_eq!((swaps, log.len()), (0, jobs as usize));
        assert!(log.iter().copied().eq(0..jobs), "{log:?}");
    }

    /// Has the processor, which writes this log, process many batches.
    pub(crate) async fn check<R: Send + 'static>(self, processor: impl BatchProcessor<u32, R>) {
        const BATCHES: u32 = 20_000;
        let batcher = run(MicroBatch::builder(processor)
            .max_batch_size(1)
            .max_in_flight(8));
        let results = batcher.submit_all(0..BATCHES).await;
        assert!(results.iter().all(Result::is_ok));
        self.assert_in_order(BATCHES);
    }
}

/// How many of the jobs, from the first, are within the limits of a batch.
pub(crate) fn fitting<'a, J: 'a, R: 'a>(
    jobs: impl Iterator<Item = &'a PendingJob<J, R>>,
    max_jobs: usize,
    max_weight: usize,
) -> usize {
    let mut room = max_weight;
    let fits = jobs.take(max_jobs).map_while(|job| {
        room = room.checked_sub(job.weight())?;
        Some(())
    });
    fits.count()
}

/// A storage that gives the newest job first, and refuses jobs beyond a limit.
pub(crate) struct Stack<J> {
    jobs: Vec<PendingJob<J, J>>,
    most: usize,
}

impl<J> Stack<J> {
    pub(crate) fn of_at_most(most: usize) -> Self {
        Self {
            jobs: Vec::new(),
            most,
        }
    }
}

impl<J: Send + 'static> BatchStorage<J, J> for Stack<J> {
    fn len(&self) -> usize {
        self.jobs.len()
    }

    fn append(&mut self, job: PendingJob<J, J>) {
        if self.jobs.len() < self.most {
            self.jobs.push(job);
        }
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, J>> {
        let fits = fitting(self.jobs.iter().rev(), max_jobs, max_weight);
        let kept = self.jobs.len() - fits;
        self.jobs.drain(kept..).rev().collect()
    }
}

/// What the `on_batch` hook has seen.
#[derive(Clone, Default)]
pub(crate) struct Reports(Arc<Mutex<Vec<Report>>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) size: usize,
    pub(crate) weight: usize,
    pub(crate) reason: FlushReason,
    pub(crate) waited: Duration,
    pub(crate) took: Duration,
    pub(crate) error: Option<String>,
}

impl Reports {
    pub(crate) fn hook(&self) -> impl Fn(&BatchReport<'_>) + Send + Sync + 'static {
        let reports = Arc::clone(&self.0);
        move |report| {
            lock(&reports).push(Report {
                size: report.size,
                weight: report.weight,
                reason: report.reason,
                waited: report.waited,
                took: report.took,
                error: report.error.map(ToString::to_string),
            });
        }
    }

    pub(crate) fn all(&self) -> Vec<Report> {
        lock(&self.0).clone()
    }

    pub(crate) fn reasons(&self) -> Vec<FlushReason> {
        lock(&self.0).iter().map(|report| report.reason).collect()
    }

    pub(crate) fn waits(&self) -> Vec<Duration> {
        lock(&self.0).iter().map(|report| report.waited).collect()
    }

    pub(crate) fn weights(&self) -> Vec<usize> {
        lock(&self.0).iter().map(|report| report.weight).collect()
    }
}

/// Counts the polls of a future, and fails where there is no end to them.
pub(crate) struct Counted<F> {
    future: Pin<Box<F>>,
    polls: Polls,
}

#[derive(Clone, Default)]
pub(crate) struct Polls(Arc<AtomicUsize>);

impl Polls {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl<F: Future> Counted<F> {
    pub(crate) fn new(future: F) -> (Self, Polls) {
        let polls = Polls::default();
        let counted = Self {
            future: Box::pin(future),
            polls: polls.clone(),
        };
        (counted, polls)
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polls = self.polls.0.fetch_add(1, Ordering::SeqCst);
        assert!(polls < 1_000, "polled without end");
        self.future.as_mut().poll(cx)
    }
}
