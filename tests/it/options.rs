//! Any options whatsoever: they are refused by name, or the batcher works.
//!
//! The values are decoded from bytes, which come from proptest, from a fuzzer or
//! from its corpus. Many are zero or at the other end of what there is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use microbatch::{
    BatchProcessor, BatchStorage, BuildError, CancellationToken, FlushReason, JobError,
    MemoryStorage, MicroBatch, MicroBatchBuilder,
};
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, timeout};

/// Longer intervals are not waited for, though time is virtual.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A timer rounds up to whole milliseconds, and may be one late.
const LATE: Duration = Duration::from_millis(2);

#[derive(Debug)]
struct Options {
    max_batch_size: Option<usize>,
    max_batch_weight: Option<usize>,
    interval: Option<Duration>,
    queue_capacity: Option<usize>,
    shutdown_timeout: Option<Duration>,
    max_in_flight: Option<usize>,
    flush_when_idle: Option<bool>,
    flush_cost: Option<Duration>,
    cancel_on_drop: Option<bool>,
    name: Option<String>,
    /// Set by hand.
    storage: bool,
    running: bool,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    number: usize,
    weight: usize,
    /// How long after the one before.
    after: Duration,
}

/// How the answers are brought about.
#[derive(Debug, Clone, Copy)]
enum Push {
    Nothing,
    Flush,
    Shutdown,
}

/// The jobs of each batch.
type Batches = Arc<Mutex<Vec<Vec<Job>>>>;

/// Why each batch was flushed, how many jobs it held, and how long the first had
/// waited.
type Flush = (FlushReason, usize, Duration);
type Flushes = Arc<Mutex<Vec<Flush>>>;

/// Builds a batcher, and lets it work. Says what is wrong with it.
pub(crate) fn run(bytes: &[u8]) -> Result<(), String> {
    let mut bytes = Bytes(bytes);
    let options = Options::draw(&mut bytes);
    let push = match bytes.byte() % 3 {
        0 => Push::Nothing,
        1 => Push::Flush,
        _ => Push::Shutdown,
    };
    let count = usize::from(bytes.byte() % 16);
    let jobs: Vec<_> = (0..count)
        .map(|number| Job::draw(number, &mut bytes))
        .collect();
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let works = runtime.block_on(async {
        let work = options.build_and_work(push, &jobs);
        timeout(2 * PATIENCE, work)
            .await
            .unwrap_or_else(|_| Err("hangs".into()))
    });
    works.map_err(|wrong| format!("{wrong}\n\n{options:#?}\n{push:?}\n{jobs:#?}"))
}

impl Options {
    fn draw(bytes: &mut Bytes<'_>) -> Self {
        Self {
            max_batch_size: bytes.maybe(Bytes::number),
            max_batch_weight: bytes.maybe(Bytes::number),
            interval: bytes.maybe(Bytes::duration),
            queue_capacity: bytes.maybe(Bytes::number),
            shutdown_timeout: bytes.maybe(Bytes::duration),
            max_in_flight: bytes.maybe(Bytes::number),
            flush_when_idle: bytes.maybe(Bytes::bit),
            flush_cost: bytes.maybe(Bytes::duration),
            cancel_on_drop: bytes.maybe(Bytes::bit),
            name: bytes.maybe(|bytes| String::from_utf8_lossy(&bytes.eight()).into()),
            storage: bytes.bit(),
            running: bytes.bit(),
        }
    }

    /// What is refused first.
    fn refused(&self) -> Option<BuildError> {
        let zero = Some(Duration::ZERO);
        let options = [
            ("max_batch_size", self.max_batch_size == Some(0)),
            ("interval", self.interval == zero),
            ("queue_capacity", self.queue_capacity == Some(0)),
            ("shutdown_timeout", self.shutdown_timeout == zero),
            ("max_in_flight", self.max_in_flight == Some(0)),
            ("max_batch_weight", self.max_batch_weight == Some(0)),
        ];
        let refused = options.into_iter().find(|(_, refused)| *refused);
        refused.map(|(name, _)| BuildError::Zero(name))
    }

    async fn build_and_work(&self, push: Push, jobs: &[Job]) -> Result<(), String> {
        let batches = Batches::default();
        let flushes = Flushes::default();
        let builder = self.set(MicroBatch::builder(noting(&batches)));
        let notes = Arc::clone(&flushes);
        let builder = builder.on_batch(move |report| {
            let flush = (report.reason, report.size, report.waited);
            notes.lock().expect("no panic").push(flush);
        });
        let built = match self.storage {
            true => self.build(builder.storage(MemoryStorage::new())),
            false => self.build(builder),
        };
        let batcher = match (built, self.refused()) {
            (Ok(batcher), None) => batcher,
            (Err(refused), expected) if Some(&refused) == expected.as_ref() => return Ok(()),
            (built, expected) => {
                return Err(format!("{:?}, and not {expected:?}", built.err()));
            }
        };
        self.work(&batcher, push, jobs).await?;
        self.check_batches(&batches.lock().expect("no panic"), jobs)?;
        self.check_flushes(&flushes.lock().expect("no panic"), push)?;
        let stats = batcher.stats();
        let accepted = jobs.iter().filter(|job| !self.is_too_heavy(job)).count() as u64;
        match (stats.accepted, stats.completed) == (accepted, accepted) {
            true => Ok(()),
            false => Err(format!("{accepted} jobs accepted, {stats:?}")),
        }
    }

    fn set<P: BatchProcessor<Job, usize>>(
        &self,
        mut builder: MicroBatchBuilder<Job, usize, P>,
    ) -> MicroBatchBuilder<Job, usize, P> {
        if let Some(jobs) = self.max_batch_size {
            builder = builder.max_batch_size(jobs);
        }
        if let Some(weight) = self.max_batch_weight {
            builder = builder.max_batch_weight(weight, |job| job.weight);
        }
        if let Some(interval) = self.interval {
            builder = builder.interval(interval);
        }
        if let Some(jobs) = self.queue_capacity {
            builder = builder.queue_capacity(jobs);
        }
        if let Some(timeout) = self.shutdown_timeout {
            builder = builder.shutdown_timeout(timeout);
        }
        if let Some(batches) = self.max_in_flight {
            builder = builder.max_in_flight(batches);
        }
        if let Some(idle) = self.flush_when_idle {
            builder = builder.flush_when_idle(idle);
        }
        if let Some(cost) = self.flush_cost {
            builder = builder.flush_cost(cost);
        }
        if let Some(cancel) = self.cancel_on_drop {
            builder = builder.cancel_on_drop(cancel);
        }
        if let Some(name) = &self.name {
            builder = builder.name(name);
        }
        builder
    }

    fn build<P, S>(
        &self,
        builder: MicroBatchBuilder<Job, usize, P, S>,
    ) -> Result<MicroBatch<Job, usize>, BuildError>
    where
        P: BatchProcessor<Job, usize>,
        S: BatchStorage<Job, usize>,
    {
        if self.running {
            return builder.build_running(CancellationToken::new());
        }
        let batcher = builder.build()?;
        tokio::spawn(batcher.start(CancellationToken::new()));
        Ok(batcher)
    }

    /// Submits the jobs and waits for the answers, and for the end.
    async fn work(
        &self,
        batcher: &MicroBatch<Job, usize>,
        push: Push,
        jobs: &[Job],
    ) -> Result<(), String> {
        let mut answers = Vec::new();
        for job in jobs.iter().copied() {
            sleep(job.after).await;
            let handle = batcher.submit(job);
            answers.push(tokio::spawn(async move {
                let submitted = Instant::now();
                (job, handle.await, submitted.elapsed())
            }));
        }
        settle().await;
        let interval = self.interval.unwrap_or(Duration::from_secs(1));
        let mut told = Vec::new();
        match push {
            Push::Nothing if interval < PATIENCE => told = join_all(answers.drain(..)).await,
            Push::Nothing | Push::Flush => {
                // A flush does not cover the waiters, but they are accepted then.
                for _ in jobs {
                    batcher.flush().await;
                }
                told = join_all(answers.drain(..)).await;
            }
            Push::Shutdown => {}
        }
        let stopped = Instant::now();
        if batcher.shutdown().await.is_err() || stopped.elapsed() > Duration::ZERO {
            return Err(format!("stopped within {:?}", stopped.elapsed()));
        }
        told.extend(join_all(answers).await);
        for answer in told {
            let (job, answer, took) = answer.map_err(|error| format!("a caller: {error}"))?;
            let right = match answer {
                Ok(number) => number == job.number && !self.is_too_heavy(&job),
                Err(JobError::TooHeavy { weight, limit }) => {
                    self.is_too_heavy(&job)
                        && weight == job.weight
                        && Some(limit) == self.max_batch_weight
                }
                _ => false,
            };
            let in_time = took.checked_sub(LATE).is_none_or(|took| took <= interval);
            if !right || !in_time {
                return Err(format!("{job:?} was told {answer:?} after {took:?}"));
            }
        }
        Ok(())
    }

    fn is_too_heavy(&self, job: &Job) -> bool {
        self.max_batch_weight
            .is_some_and(|limit| job.weight > limit)
    }

    /// Every job is in one batch, in order, and no batch is beyond a limit.
    fn check_batches(&self, batches: &[Vec<Job>], jobs: &[Job]) -> Result<(), String> {
        let processed = batches.iter().flatten().map(|job| job.number);
        let accepted = jobs.iter().filter(|job| !self.is_too_heavy(job));
        let right = processed.eq(accepted.map(|job| job.number))
            && batches.iter().all(|batch| {
                let weights = batch.iter().map(|job| job.weight as u128);
                let weight: u128 = weights.sum();
                batch.len() <= self.max_batch_size.unwrap_or(3)
                    && self
                        .max_batch_weight
                        .is_none_or(|limit| weight <= limit as u128)
            });
        match right {
            true => Ok(()),
            false => Err(format!("batches: {batches:?}")),
        }
    }
}

impl Options {
    /// Every batch was flushed for a reason that there was.
    fn check_flushes(&self, flushes: &[Flush], push: Push) -> Result<(), String> {
        let idle = self.flush_when_idle == Some(true) || self.flush_cost == Some(Duration::ZERO);
        let wrong = flushes.iter().find(|&&(reason, size, waited)| {
            !match reason {
                FlushReason::Size => size == self.max_batch_size.unwrap_or(3),
                FlushReason::Weight => self.max_batch_weight.is_some(),
                FlushReason::Interval => waited >= self.interval.unwrap_or(Duration::from_secs(1)),
                FlushReason::Idle => idle,
                // All of them have waited for as long as the first at most.
                FlushReason::Cost => self
                    .flush_cost
                    .is_some_and(|cost| waited.saturating_mul(size as u32) >= cost),
                FlushReason::Requested => !matches!(push, Push::Shutdown),
                FlushReason::Shutdown => matches!(push, Push::Shutdown),
                _ => false,
            }
        });
        wrong.map_or(Ok(()), |flush| Err(format!("flushed by {flush:?}")))
    }
}

/// Lets everything happen that can happen by now. The fuzz target includes this file
/// alone, so nothing of `support` can be used here.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Answers with the jobs' numbers.
fn noting(batches: &Batches) -> impl BatchProcessor<Job, usize> + use<> {
    let batches = Arc::clone(batches);
    move |jobs: Vec<Job>| {
        let numbers = jobs.iter().map(|job| job.number).collect();
        batches.lock().expect("no panic").push(jobs);
        async move { Ok::<Vec<usize>, String>(numbers) }
    }
}

impl Job {
    fn draw(number: usize, bytes: &mut Bytes<'_>) -> Self {
        Self {
            number,
            weight: bytes.number(),
            after: Duration::from_millis(bytes.byte().saturating_sub(128).into()),
        }
    }
}

/// Takes values from bytes, and the plainest once they are used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *byte
    }

    fn bit(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn eight(&mut self) -> [u8; 8] {
        std::array::from_fn(|_| self.byte())
    }

    fn maybe<T>(&mut self, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bit().then(|| draw(self))
    }

    fn number(&mut self) -> usize {
        match self.byte() % 16 {
            0 => usize::MAX,
            1 => usize::MAX - usize::from(self.byte()),
            2 => u64::from_le_bytes(self.eight()) as usize,
            3 => 0,
            _ => usize::from(self.byte() % 8),
        }
    }

    fn duration(&mut self) -> Duration {
        match self.byte() % 16 {
            0 => Duration::MAX,
            1 => Duration::MAX - Duration::from_nanos(u64::from_le_bytes(self.eight())),
            2 => Duration::from_secs(u64::from_le_bytes(self.eight())),
            3 => Duration::from_nanos(u64::from_le_bytes(self.eight())),
            4 => Duration::ZERO,
            5 => Duration::from_nanos(self.byte().into()),
            6 => Duration::from_secs(self.byte().into()),
            _ => Duration::from_millis(self.byte().into()),
        }
    }
}
