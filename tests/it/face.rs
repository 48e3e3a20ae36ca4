//! The names and signatures that users' programs are compiled against. What
//! matters here is that it compiles.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use microbatch::{
    BatchProcessor, BatchReport, BatchStorage, BuildError, CancellationToken, Closed, FlushReason,
    JobError, JobHandle, MemoryStorage, MicroBatch, MicroBatchBuilder, PendingJob, Permit,
    ShutdownTimeout, StartError, Stats, TrySubmitError,
};

use crate::support::{Cause, Gate};

type Sendable = Cell<u32>;

fn is_send<T: Send>(value: T) -> T {
    value
}

fn is_task<T: Send + 'static>(value: T) -> T {
    value
}

#[test]
fn auto_traits_hold_though_jobs_and_results_are_only_send() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    fn unpin<T: Unpin>() {}
    fn cloned<T: Clone>() {}
    shared::<MicroBatch<Sendable, Sendable>>();
    cloned::<MicroBatch<Sendable, Sendable>>();
    shared::<JobHandle<Sendable>>();
    unpin::<JobHandle<Sendable>>();
    sent::<Permit<'static, Sendable, Sendable>>();
    sent::<PendingJob<Sendable, Sendable>>();
    sent::<MemoryStorage<Sendable, Sendable>>();
    shared::<Stats>();
    shared::<FlushReason>();
}

#[test]
fn errors_are_errors_to_all_who_pass_them_on() {
    fn error<T: Error + Send + Sync + 'static>() {}
    fn cloned<T: Clone>() {}
    error::<JobError>();
    cloned::<JobError>();
    error::<TrySubmitError<u32>>();
    error::<StartError>();
    cloned::<StartError>();
    error::<ShutdownTimeout>();
    cloned::<ShutdownTimeout>();
    error::<Closed>();
    cloned::<Closed>();
    error::<BuildError>();
    let _ = anyhow::Error::from(JobError::Abandoned);
}

#[tokio::test(start_paused = true)]
async fn start_shutdown_and_flush_return_tasks() {
    let batcher = MicroBatch::new(Gate::open());
    let start = is_task(batcher.start(CancellationToken::new()));
    let flush = is_task(batcher.flush());
    let shutdown = is_task(batcher.shutdown());
    // None of them borrows the batcher.
    drop(batcher);
    let start = tokio::spawn(start);
    let (): () = flush.await;
    let stopped: Result<(), ShutdownTimeout> = shutdown.await;
    let started: Result<(), StartError> = start.await.expect("no panic");
    assert_eq!((stopped, started), (Ok(()), Ok(())));
}

#[tokio::test(start_paused = true)]
async fn every_method_has_its_signature() -> Result<(), Box<dyn Error>> {
    let cancel: tokio_util::sync::CancellationToken = CancellationToken::new();
    let batcher: MicroBatch<u32, u32> = MicroBatch::new_running(cancel.clone(), Gate::open());
    let handle: JobHandle<u32> = batcher.submit(1);
    let tried: Result<JobHandle<u32>, TrySubmitError<u32>> = batcher.try_submit(2);
    let permit: Result<Permit<'_, u32, u32>, Closed> = is_send(batcher.reserve()).await;
    let mut late: JobHandle<u32> = permit?.submit(3);
    let accepted: Result<(), JobError> = is_send(late.accepted()).await;
    accepted?;
    let finished: bool = late.is_finished();
    assert!(!finished);
    let all: Vec<Result<u32, JobError>> = is_send(batcher.submit_all(vec![4, 5])).await;
    assert_eq!(all.len(), 2);
    let result: Result<u32, JobError> = handle.await;
    assert_eq!((result?, tried?.await?, late.await?), (1, 2, 3));
    let stats: Stats = batcher.stats();
    assert_eq!(stats.accepted, 5);
    assert!(batcher.is_running() && !batcher.is_closed());
    let second: Result<(), StartError> = batcher.start(CancellationToken::new()).await;
    assert_eq!(second, Err(StartError::AlreadyStarted));
    let wait: fn(JobHandle<u32>) -> Result<u32, JobError> = JobHandle::blocking_wait;
    let refused = std::thread::spawn({
        batcher.shutdown().await?;
        let refused = batcher.submit(6);
        move || wait(refused)
    });
    assert!(refused.join().expect("no panic").is_err());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn every_option_has_its_name_and_type() -> Result<(), BuildError> {
    let storage: MemoryStorage<u32, u32> = MemoryStorage::new();
    let builder = MicroBatch::builder(Gate::open())
        .max_batch_size(3_usize)
        .interval(Duration::from_secs(1))
        .queue_capacity(100_usize)
        .shutdown_timeout(Duration::from_secs(5))
        .max_in_flight(1_usize)
        .max_batch_weight(10_usize, |job: &u32| *job as usize)
        .flush_when_idle(false)
        .cancel_on_drop(false)
        .storage(storage)
        .name("str")
        .name(String::from("string"))
        .on_batch(|report: &BatchReport<'_>| {
            let BatchReport {
                size,
                weight,
                reason,
                waited,
                took,
                error,
                ..
            } = *report;
            let _: (usize, usize, FlushReason) = (size, weight, reason);
            let _: (Duration, Duration, Option<&JobError>) = (waited, took, error);
        });
    let idle: Result<MicroBatch<u32, u32>, BuildError> = builder.build();
    assert!(!idle?.is_running());
    let running: Result<MicroBatch<u32, u32>, BuildError> =
        MicroBatch::builder(Gate::open()).build_running(CancellationToken::new());
    assert!(running?.is_running());
    Ok(())
}

#[test]
fn every_variant_has_its_name() {
    fn of_job(error: &JobError) -> u8 {
        match error {
            JobError::Closed => 0,
            JobError::TooHeavy { weight, limit } => u8::from(weight < limit),
            JobError::Failed(cause) => {
                let _: &Arc<dyn Error + Send + Sync> = cause;
                2
            }
            JobError::Panicked(message) => {
                let _: &Arc<str> = message;
                3
            }
            JobError::ResultCount { expected, actual } => u8::from(expected < actual),
            JobError::Abandoned => 5,
            _ => 6,
        }
    }
    fn of_refusal(refusal: TrySubmitError<u32>) -> u32 {
        match refusal {
            TrySubmitError::Full(job)
            | TrySubmitError::Closed(job)
            | TrySubmitError::TooHeavy(job) => job,
        }
    }
    fn of_start(error: StartError) -> usize {
        match error {
            StartError::AlreadyStarted => 0,
            StartError::ShutdownTimeout(ShutdownTimeout { abandoned }) => abandoned,
        }
    }
    fn of_reason(reason: FlushReason) -> u8 {
        match reason {
            FlushReason::Size => 0,
            FlushReason::Weight => 1,
            FlushReason::Interval => 2,
            FlushReason::Idle => 3,
            FlushReason::Requested => 4,
            FlushReason::Shutdown => 5,
            _ => 6,
        }
    }
    assert_eq!(of_job(&JobError::Abandoned), 5);
    assert_eq!(of_refusal(TrySubmitError::Full(7)), 7);
    let timeout = ShutdownTimeout { abandoned: 7 };
    assert_eq!(of_start(StartError::ShutdownTimeout(timeout)), 7);
    assert_eq!(of_reason(FlushReason::Shutdown), 5);
}

/// Compiles where the error of a closure is a processor's error.
async fn fails_with<E>(error: impl Fn() -> E + Send + Sync + 'static) -> String
where
    E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    let batcher = MicroBatch::new_running(CancellationToken::new(), move |_: Vec<u32>| {
        let error = error();
        async move { Err::<Vec<u32>, E>(error) }
    });
    match batcher.submit(1).await {
        Err(JobError::Failed(cause)) => cause.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_may_fail_with_any_kind_of_error() {
    assert_eq!(fails_with(|| anyhow::anyhow!("any")).await, "any");
    assert_eq!(fails_with(|| String::from("string")).await, "string");
    assert_eq!(fails_with(|| "str").await, "str");
    assert_eq!(fails_with(|| Cause(3)).await, "cause 3");
    assert_eq!(fails_with(|| std::io::Error::other("io")).await, "io");
    assert_eq!(
        fails_with(|| Box::<dyn Error + Send + Sync>::from("boxed")).await,
        "boxed"
    );
    let never = MicroBatch::new_running(CancellationToken::new(), |jobs: Vec<u32>| async move {
        Ok::<Vec<u32>, Infallible>(jobs)
    });
    assert!(never.submit(1).await.is_ok());
}

/// A processor with a name, a state and a borrow of it.
struct Named {
    offset: u32,
}

impl BatchProcessor<u32, Result<u32, String>> for Named {
    type Error = anyhow::Error;

    async fn process(&self, jobs: Vec<u32>) -> Result<Vec<Result<u32, String>>, Self::Error> {
        let offset = &self.offset;
        tokio::task::yield_now().await;
        let sums = jobs.into_iter().map(|job| {
            job.checked_add(*offset)
                .ok_or_else(|| String::from("too much"))
        });
        Ok(sums.collect())
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_may_be_a_processor_whose_jobs_fail_one_by_one() {
    let batcher = MicroBatch::new_running(CancellationToken::new(), Named { offset: 1 });
    let (fine, flawed) = tokio::join!(batcher.submit(1), batcher.submit(u32::MAX));
    assert_eq!(fine.expect("processed"), Ok(2));
    assert!(flawed.expect("processed").is_err());
}

/// The least a storage has to do.
struct Least<J, R>(Vec<PendingJob<J, R>>);

impl<J: Send + 'static, R: Send + 'static> BatchStorage<J, R> for Least<J, R> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: PendingJob<J, R>) {
        let (_, _): (&J, usize) = (job.job(), job.weight());
        self.0.push(job);
    }

    fn take(&mut self, max_jobs: usize, _max_weight: usize) -> Vec<PendingJob<J, R>> {
        self.0.drain(..max_jobs.min(self.0.len())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_has_three_methods_to_write() {
    let builder = MicroBatch::builder(Gate::open()).storage(Least(Vec::new()));
    let batcher = builder
        .build_running(CancellationToken::new())
        .expect("valid");
    assert_eq!(batcher.submit(1).await.expect("succeeds"), 1);
}

#[tokio::test(start_paused = true)]
async fn everything_is_debug() {
    fn shown(value: &dyn Debug) -> bool {
        !format!("{value:?}").is_empty()
    }
    let builder: MicroBatchBuilder<u32, u32, Gate> = MicroBatch::builder(Gate::open());
    assert!(shown(&builder));
    let batcher = builder.queue_capacity(1).build().expect("valid");
    assert!(shown(&batcher) && shown(&batcher.stats()));
    assert!(shown(&batcher.reserve().await.expect("room")));
    assert!(shown(&batcher.submit(1)));
    assert!(shown(&MemoryStorage::<u32, u32>::default()));
    assert!(shown(&batcher.submit_stream(stream::empty(), 1)));
    assert!(shown(&batcher.submit_stream_unordered(stream::empty(), 1)));
}
