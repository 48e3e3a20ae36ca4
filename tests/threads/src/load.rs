//! What is asked of the batcher, by callers of every kind, and what its
//! processor makes of it. Each side keeps its own count.

use std::future::Future;
use std::ops::AddAssign;
use std::panic::{panic_any, set_hook, take_hook};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use microbatch::{
    BatchProcessor, CancellationToken, JobError, JobHandle, MicroBatch, TrySubmitError,
};
use tokio::task::yield_now;

const ON_PURPOSE: &str = "on purpose";

pub struct Job {
    number: u32,
    /// A caller waits for its result.
    awaited: bool,
}

impl Job {
    fn awaited(number: u32) -> Self {
        Self {
            number,
            awaited: true,
        }
    }

    fn dropped(number: u32) -> Self {
        Self {
            number,
            awaited: false,
        }
    }
}

/// Scatters the numbers, so that no pattern of theirs meets one of the tasks'.
fn scattered(number: u32) -> u64 {
    (u64::from(number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// What a job must get back.
fn result_of(number: u32) -> u64 {
    scattered(number).rotate_left(17)
}

/// What becomes of a batch, because of one of its jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    Error,
    Panic,
    PanicBeforeFuture,
    TooFew,
    TooMany,
}

impl Fate {
    fn of(jobs: &[Job]) -> Self {
        let fates = jobs
            .iter()
            .map(|job| match (scattered(job.number) >> 32) % 2_000 {
                0 => Self::Error,
                1 => Self::Panic,
                2 => Self::PanicBeforeFuture,
                3 => Self::TooFew,
                4 => Self::TooMany,
                _ => Self::Well,
            });
        fates
            .into_iter()
            .find(|fate| *fate != Self::Well)
            .unwrap_or(Self::Well)
    }
}

/// How many jobs came to which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub completed: u64,
    pub failed: u64,
    pub panicked: u64,
    pub miscounted: u64,
    /// Of the results, wrapping.
    pub sum: u64,
}

impl Outcomes {
    pub fn unsuccessful(&self) -> u64 {
        self.failed + self.panicked + self.miscounted
    }

    pub fn all(&self) -> u64 {
        self.completed + self.unsuccessful()
    }
}

impl AddAssign for Outcomes {
    fn add_assign(&mut self, other: Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.panicked += other.panicked;
        self.miscounted += other.miscounted;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

#[derive(Default)]
struct Counters {
    completed: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    miscounted: AtomicU64,
    sum: AtomicU64,
}

impl Counters {
    fn note(&self, number: u32, fate: Fate) {
        let counter = match fate {
            Fate::Well => {
                self.sum.fetch_add(result_of(number), Relaxed);
                &self.completed
            }
            Fate::Error => &self.failed,
            Fate::Panic | Fate::PanicBeforeFuture => &self.panicked,
            Fate::TooFew | Fate::TooMany => &self.miscounted,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn get(&self) -> Outcomes {
        Outcomes {
            completed: self.completed.load(Relaxed),
            failed: self.failed.load(Relaxed),
            panicked: self.panicked.load(Relaxed),
            miscounted: self.miscounted.load(Relaxed),
            sum: self.sum.load(Relaxed),
        }
    }
}

/// What the processor has been given.
pub struct Ledger {
    /// One bit a job.
    given: Vec<AtomicU64>,
    again: AtomicU64,
    awaited: Counters,
    dropped: Counters,
    reported: AtomicU64,
}

impl Ledger {
    pub fn new(jobs: u32) -> Self {
        let words = jobs.div_ceil(64);
        Self {
            given: (0..words).map(|_| AtomicU64::new(0)).collect(),
            again: AtomicU64::new(0),
            awaited: Counters::default(),
            dropped: Counters::default(),
            reported: AtomicU64::new(0),
        }
    }

    /// Lets the same numbers come once more.
    pub fn wipe(&self) {
        self.given.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Jobs that were given a second time.
    pub fn again(&self) -> u64 {
        self.again.load(Relaxed)
    }

    pub fn awaited(&self) -> Outcomes {
        self.awaited.get()
    }

    pub fn dropped(&self) -> Outcomes {
        self.dropped.get()
    }

    /// Jobs of the batches that the hook was told of.
    pub fn reported(&self) -> u64 {
        self.reported.load(Relaxed)
    }

    fn note(&self, job: &Job, fate: Fate) {
        let bit = 1 << (job.number % 64);
        let before = self.given[job.number as usize / 64].fetch_or(bit, Relaxed);
        self.again.fetch_add(u64::from(before & bit != 0), Relaxed);
        let counters = match job.awaited {
            true => &self.awaited,
            false => &self.dropped,
        };
        counters.note(job.number, fate);
    }
}

struct Processor(Arc<Ledger>);

impl BatchProcessor<Job, u64> for Processor {
    type Error = &'static str;

    fn process(
        &self,
        jobs: Vec<Job>,
    ) -> impl Future<Output = Result<Vec<u64>, &'static str>> + Send {
        let fate = Fate::of(&jobs);
        jobs.iter().for_each(|job| self.0.note(job, fate));
        if fate == Fate::PanicBeforeFuture {
            panic_any(ON_PURPOSE);
        }
        async move {
            yield_now().await;
            let mut results: Vec<_> = jobs.iter().map(|job| result_of(job.number)).collect();
            match fate {
                Fate::Error => return Err("an error"),
                Fate::Panic => panic_any(ON_PURPOSE),
                Fate::TooFew => drop(results.pop()),
                Fate::TooMany => results.push(0),
                Fate::Well | Fate::PanicBeforeFuture => {}
            }
            Ok(results)
        }
    }
}

pub fn silence_panics_on_purpose() {
    let default = take_hook();
    set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref() != Some(&ON_PURPOSE) {
            default(panic);
        }
    }));
}

/// Starts a batcher that is often full, under all of whose limits jobs come.
pub fn start(ledger: &Arc<Ledger>) -> MicroBatch<Job, u64> {
    let reports = Arc::clone(ledger);
    MicroBatch::builder(Processor(Arc::clone(ledger)))
        .max_batch_size(64)
        .queue_capacity(200)
        .max_in_flight(4)
        .interval(Duration::from_millis(1))
        .cancel_on_drop(true)
        .on_batch(move |report| {
            reports.reported.fetch_add(report.size as u64, Relaxed);
        })
        .build_running(CancellationToken::new())
        .expect("valid options")
}

/// What callers have come to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub awaited: Outcomes,
    /// Accepted, and dropped then.
    pub left: u64,
    /// Dropped at once, accepted or not.
    pub dropped: u64,
    /// Results of another job's, and errors for which there was no reason.
    pub wrong: u64,
    pub flushes: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.awaited += other.awaited;
        self.left += other.left;
        self.dropped += other.dropped;
        self.wrong += other.wrong;
        self.flushes += other.flushes;
    }
}

impl Tally {
    pub fn jobs(&self) -> u64 {
        self.awaited.all() + self.left + self.dropped + self.wrong
    }

    fn note(&mut self, number: u32, result: Result<u64, JobError>) {
        match result {
            Ok(result) if result == result_of(number) => {
                self.awaited.completed += 1;
                self.awaited.sum = self.awaited.sum.wrapping_add(result);
            }
            Err(JobError::Failed(_)) => self.awaited.failed += 1,
            Err(JobError::Panicked(_)) => self.awaited.panicked += 1,
            Err(JobError::ResultCount { .. }) => self.awaited.miscounted += 1,
            Ok(_) | Err(_) => self.wrong += 1,
        }
    }
}

/// Submits the jobs one after the other, in many ways, and says of each that it
/// is done.
pub async fn call(
    batcher: MicroBatch<Job, u64>,
    mut numbers: impl Iterator<Item = u32>,
    done: impl Fn(u64),
) -> Tally {
    let mut tally = Tally::default();
    while let Some(number) = numbers.next() {
        let before = tally.jobs();
        match scattered(number) >> 60 {
            0 => match batcher.reserve().await {
                Ok(permit) => tally.note(number, permit.submit(Job::awaited(number)).await),
                Err(_) => tally.wrong += 1,
            },
            1 => tally.note(number, insist(&batcher, number).await),
            2 => match batcher.submit(Job::dropped(number)).accepted().await {
                Ok(()) => tally.left += 1,
                Err(_) => tally.wrong += 1,
            },
            3 => {
                drop(batcher.submit(Job::dropped(number)));
                tally.dropped += 1;
                // Who never waits lets others run, too.
                yield_now().await;
            }
            4 => {
                let more: Vec<_> = numbers.by_ref().take(2).collect();
                let numbers = [number].into_iter().chain(more);
                let results = batcher.submit_all(numbers.clone().map(Job::awaited)).await;
                for (number, result) in numbers.zip(results) {
                    tally.note(number, result);
                }
            }
            _ => tally.note(number, batcher.submit(Job::awaited(number)).await),
        }
        if (scattered(number) >> 40) % 5_000 == 0 {
            batcher.flush().await;
            tally.flushes += 1;
        }
        done(tally.jobs() - before);
    }
    tally
}

/// Tries until there is room.
async fn insist(batcher: &MicroBatch<Job, u64>, number: u32) -> Result<u64, JobError> {
    let mut job = Job::awaited(number);
    let handle: JobHandle<u64> = loop {
        job = match batcher.try_submit(job) {
            Ok(handle) => break handle,
            Err(TrySubmitError::Full(job)) => job,
            Err(_) => return Err(JobError::Closed),
        };
        yield_now().await;
    };
    handle.await
}
