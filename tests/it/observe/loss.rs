//! Jobs that are lost are told of once, with how many they were and by the name
//! of their micro-batcher.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use microbatch::{BatchProcessor, CancellationToken, MicroBatch, MicroBatchBuilder};
use microbatch::{BatchStorage, PendingJob};
use tokio::runtime::Builder;
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::support::{Gate, answers, idle, lock, run, secs, settle, soon, submit};

/// The fields of the warnings and errors on this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<BTreeMap<&'static str, String>>>>);

struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let own = event.metadata().target().starts_with("microbatch");
        if own && *event.metadata().level() <= Level::WARN {
            let mut fields = Fields(BTreeMap::new());
            event.record(&mut fields);
            lock(&self.0).push(fields.0);
        }
    }
}

impl Warnings {
    fn start() -> (Self, DefaultGuard) {
        let warnings = Self::default();
        (warnings.clone(), super::subscribe(warnings))
    }

    fn assert_one(&self, abandoned: u64) {
        let warnings = lock(&self.0);
        let told: Vec<_> = warnings
            .iter()
            .map(|fields| (fields["abandoned"].parse(), fields["name"].as_str()))
            .collect();
        assert_eq!(told, [(Ok(abandoned), "rows")], "{warnings:?}");
    }
}

fn rows(gate: &Gate) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone())
        .name("rows")
        .max_in_flight(4)
}

/// Batches, the pending, the queue and the loop are dropped one by one and in any
/// order when a runtime goes.
#[test]
fn a_dropped_runtime_is_one_warning() {
    for jobs in [1, 3, 12, 14, 50, 500] {
        let (warnings, _guard) = Warnings::start();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (batcher, handles) = runtime.block_on(async {
            let gate = Gate::closed();
            let batcher = run(rows(&gate));
            let handles = submit(&batcher, 0..jobs);
            settle().await;
            (batcher, handles)
        });
        let accepted = batcher.stats().accepted;
        drop(runtime);
        warnings.assert_one(accepted);
        assert_eq!(batcher.stats().abandoned, accepted);
        drop(handles);
    }
}

/// A `start` that is dropped, polled or not.
#[tokio::test(start_paused = true)]
async fn a_dropped_start_is_one_warning() {
    for polled in [false, true] {
        let (warnings, _guard) = Warnings::start();
        let gate = Gate::closed();
        let batcher = idle(rows(&gate));
        let handles = submit(&batcher, 0..50);
        let mut start = Box::pin(batcher.start(CancellationToken::new()));
        if polled {
            let _ = tokio::time::timeout(secs(1), &mut start).await;
        }
        drop(start);
        let abandoned = answers(handles).await;
        assert!(abandoned.iter().all(Result::is_err));
        settle().await;
        warnings.assert_one(50);
        assert_eq!(batcher.stats().abandoned, 50);
    }
}

/// One that was never started, and is dropped or shut down.
#[tokio::test(start_paused = true)]
async fn one_that_was_never_started_is_one_warning() {
    for shut_down in [false, true] {
        let (warnings, _guard) = Warnings::start();
        let gate = Gate::closed();
        let batcher = idle(rows(&gate));
        let handles = submit(&batcher, 0..500);
        if shut_down {
            soon(batcher.shutdown()).await.expect("nothing runs");
        }
        drop(batcher);
        assert!(answers(handles).await.iter().all(Result::is_err));
        warnings.assert_one(100);
    }
}

/// A stop out of time, with jobs in every place.
#[tokio::test(start_paused = true)]
async fn a_stop_out_of_time_is_one_warning() {
    let (warnings, _guard) = Warnings::start();
    let gate = Gate::closed();
    let batcher = run(rows(&gate));
    let handles = submit(&batcher, 0..500);
    settle().await;
    let accepted = batcher.stats().accepted;
    let stopped = soon(batcher.shutdown()).await.expect_err("out of time");
    assert_eq!(stopped.abandoned as u64, accepted);
    drop(batcher);
    drop(handles);
    settle().await;
    warnings.assert_one(accepted);
}

/// Keeps so many, and drops the others.
struct Small(Vec<PendingJob<u32, u32>>, usize);

impl BatchStorage<u32, u32> for Small {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, job: PendingJob<u32, u32>) {
        if self.0.len() < self.1 {
            self.0.push(job);
        }
    }

    fn take(&mut self, max_jobs: usize, _max_weight: usize) -> Vec<PendingJob<u32, u32>> {
        let count = self.0.len().min(max_jobs);
        self.0.drain(..count).collect()
    }
}

/// What a storage drops of one burst is told of in one go.
#[tokio::test(start_paused = true)]
async fn a_storage_that_drops_jobs_is_one_warning() {
    let (warnings, _guard) = Warnings::start();
    let gate = Gate::open();
    let batcher = run(rows(&gate).storage(Small(Vec::new(), 10)));
    let answers = answers(submit(&batcher, 0..100)).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 10);
    warnings.assert_one(90);
}

/// Jobs that were withdrawn are not lost.
#[tokio::test(start_paused = true)]
async fn withdrawn_jobs_are_no_warning() {
    let (warnings, _guard) = Warnings::start();
    let gate = Gate::closed();
    let batcher = run(rows(&gate).cancel_on_drop(true));
    let handles = submit(&batcher, 0..500);
    settle().await;
    let processing = batcher.stats().processing;
    drop(handles);
    assert!(soon(batcher.shutdown()).await.is_err());
    drop(batcher);
    settle().await;
    warnings.assert_one(processing as u64);
}
