//! Processors with large futures, on the stacks that threads have by default and
//! in a build that optimizes nothing.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Duration;

use microbatch::{BatchProcessor, BatchProcessorExt, MicroBatch};
use tokio::runtime::Builder;

use crate::support::{millis, run, soon, submit};

/// Holds 256 KiB across an await.
struct Large;

impl BatchProcessor<u32, u32> for Large {
    type Error = Infallible;

    async fn process(&self, jobs: Vec<u32>) -> Result<Vec<u32>, Infallible> {
        let buffer = [7_u8; 256 * 1024];
        tokio::task::yield_now().await;
        let buffer = black_box(&buffer);
        Ok(jobs
            .into_iter()
            .map(|job| job + u32::from(buffer[9]))
            .collect())
    }
}

async fn processes<R: Send + 'static>(processor: impl BatchProcessor<u32, R>) {
    let batcher = run(MicroBatch::builder(processor)
        .max_in_flight(2)
        .interval(millis(1)));
    for _ in 0..3 {
        for handle in submit(&batcher, 0..10) {
            soon(handle).await.expect("succeeds");
        }
    }
    soon(batcher.shutdown()).await.expect("drains");
}

/// A future that was moved from one stack frame to the next several times did not
/// fit on a worker's stack of 2 MiB.
#[test]
fn a_large_future_fits_on_a_default_stack() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let on_a_worker = async { tokio::spawn(processes(Large)).await.expect("no panic") };
    runtime.block_on(on_a_worker);

    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(processes(Large));
}

/// Each decorator is one more that could move it.
#[test]
fn a_large_future_fits_through_the_decorators() {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(processes(Large.timeout(Duration::from_secs(60))));
    runtime.block_on(processes(Large.bisect()));
    runtime.block_on(processes(Large.coalesce()));
}
