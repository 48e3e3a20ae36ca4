//! A processor's future of 256 KiB overflowed a stack of 2 MiB, which is what
//! Tokio's threads have, once decorators had moved it a few times.

use std::time::Duration;

use backon::ConstantBuilder;
use microbatch::{BatchProcessor, BatchProcessorExt};

use super::batcher;
use crate::support::{large, on_a_small_stack};

/// Fails job 13 alone, and takes 256 KiB for it.
async fn large_items(mut jobs: Vec<u32>) -> Result<Vec<Result<u32, String>>, String> {
    let unlucky = |job: u32| match job {
        13 => Err("unlucky".to_owned()),
        job => Ok(job),
    };
    let results = jobs.iter().copied().map(unlucky).collect();
    jobs.retain(|job| *job != 13);
    large(jobs).await?;
    Ok(results)
}

fn once_more() -> ConstantBuilder {
    ConstantBuilder::default().with_max_times(1)
}

/// Has the processor process a batch with job 13 and one without, on a thread
/// with Tokio's stack.
fn check<R: Send + 'static>(processor: impl BatchProcessor<u32, R>) {
    on_a_small_stack(|| async {
        let batcher = batcher(4, processor);
        batcher.submit_all([1, 2, 13, 4]).await;
        for result in batcher.submit_all([1, 2, 3, 4]).await {
            assert!(result.is_ok());
        }
    });
}

#[test]
fn a_large_future_fits_under_every_decorator() {
    let second = Duration::from_secs(1);
    check(large);
    check(large.timeout(second));
    check(large.retry(once_more()));
    check(large_items.retry_items(once_more()));
    check(large.bisect());
    check(large.bisect().retry_items(once_more()));
    check(large.coalesce());
}

#[test]
fn a_large_future_fits_under_nested_decorators() {
    let second = Duration::from_secs(1);
    let inner = large.timeout(second).retry(once_more()).coalesce();
    check(inner.bisect());
    let inner = large.bisect().timeout(second).retry(once_more());
    check(inner.timeout(second));
    let inner = large_items.timeout(second).retry(once_more());
    check(inner.retry_items(once_more()).timeout(second).bisect());
}

/// What a decorator adds is small, and what it wraps is on the heap.
#[test]
fn the_future_of_a_decorator_is_small() {
    fn size<R>(processor: impl BatchProcessor<u32, R>) -> usize {
        size_of_val(&processor.process(vec![1]))
    }
    assert!(size(large) > 256 << 10);
    let second = Duration::from_secs(1);
    assert!(size(large.timeout(second)) < 1024);
    assert!(size(large.retry(once_more())) < 1024);
    assert!(size(large_items.retry_items(once_more())) < 1024);
    assert!(size(large.bisect()) < 1024);
    assert!(size(large.coalesce()) < 1024);
}
