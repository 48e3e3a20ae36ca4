//! The steps of a job's way, one by one, quick enough to run on every change:
//!
//! ```sh
//! cargo bench --bench core
//! ```
//!
//! Compare within one run, or with `--save-baseline` and `--baseline`; the
//! comparison with peers is in `benches/peers`.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use microbatch::{CancellationToken, MicroBatch};
use tokio::runtime::{Builder, Runtime};

const JOBS: u64 = 100;

async fn add_one(mut jobs: Vec<u64>) -> Result<Vec<u64>, std::convert::Infallible> {
    jobs.iter_mut().for_each(|job| *job += 1);
    Ok(jobs)
}

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime")
}

/// Batches of `JOBS`, which only size and `flush` cut.
fn running(runtime: &Runtime, queue_capacity: usize) -> MicroBatch<u64, u64> {
    let _inside = runtime.enter();
    MicroBatch::builder(add_one)
        .max_batch_size(100)
        .interval(Duration::MAX)
        .queue_capacity(queue_capacity)
        .build_running(CancellationToken::new())
        .expect("valid options")
}

fn idle() -> MicroBatch<u64, u64> {
    let batcher = MicroBatch::builder(add_one).queue_capacity(100).build();
    batcher.expect("valid options")
}

/// Accepting a job; no worker receives it.
fn submit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("submit");
    group.throughput(Throughput::Elements(JOBS));
    group.bench_function("accepted", |bencher| {
        bencher.iter_batched(
            idle,
            |batcher| {
                let handles: Vec<_> = (0..JOBS).map(|job| batcher.submit(job)).collect();
                (batcher, handles)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("refused, queue full", |bencher| {
        let batcher = idle();
        let _held: Vec<_> = (0..JOBS).map(|job| batcher.submit(job)).collect();
        bencher.iter(|| {
            (0..JOBS)
                .filter(|job| batcher.try_submit(*job).is_err())
                .count()
        });
    });
    group.finish();
}

/// A lone job there and back, cut by `flush`.
fn flush(criterion: &mut Criterion) {
    let runtime = runtime();
    let batcher = running(&runtime, 100);
    criterion.bench_function("flush/one job", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let handle = batcher.submit(1);
            batcher.flush().await;
            handle.await
        });
    });
}

/// A full batch there and back, with room for all of it and with room for a
/// tenth.
fn resolve(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("resolve");
    group.throughput(Throughput::Elements(JOBS));
    for (name, queue_capacity) in [("full batch", 100), ("full batch, queue of ten", 10)] {
        let batcher = running(&runtime, queue_capacity);
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(|| async {
                let results = batcher.submit_all(0..JOBS).await;
                assert!(results.iter().all(Result::is_ok));
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = core;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = submit, flush, resolve
}
criterion_main!(core);
