//! A pipeline: lines are read only as fast as batches of them can be written,
//! and what was written comes out in order.
//!
//! ```sh
//! cargo run --example stream
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use microbatch::{CancellationToken, JobError, MicroBatch};

const LINES: usize = 5_000;
const CONCURRENCY: usize = 500;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The sink: one slow write for many lines. A line may fail by itself.
    let writes = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&writes);
    let sink = MicroBatch::builder(move |lines: Vec<String>| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok::<_, std::io::Error>(lines.iter().map(|line| line.parse::<usize>()).collect())
        }
    })
    .max_batch_size(100)
    .max_in_flight(2)
    .flush_when_idle(true)
    .build_running(CancellationToken::new())?;

    // The source: a file or a consumer in earnest. It counts what is read.
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let lines = stream::iter(0..LINES).map(move |line| {
        counter.fetch_add(1, Ordering::Relaxed);
        match line % 1000 {
            999 => format!("broken line {line}"),
            _ => line.to_string(),
        }
    });

    let mut results = sink.submit_stream(lines, CONCURRENCY).enumerate();
    let (mut good, mut bad, mut most) = (0, 0, 0);
    while let Some((line, result)) = results.next().await {
        // The outer error is the batch's, the inner one the line's.
        match result? {
            Ok(number) if number == line => good += 1,
            Err(_) if line % 1000 == 999 => bad += 1,
            other => panic!("line {line}: {other:?}"),
        }
        most = most.max(read.load(Ordering::Relaxed) - line);
    }
    let writes = writes.load(Ordering::Relaxed);
    println!("{good} lines written, {bad} broken, {writes} writes, {most} read ahead at most");
    assert_eq!((good, bad), (LINES - 5, 5));
    assert!(most <= CONCURRENCY + 1 && writes < LINES / 10);

    // Whatever comes first, until the first error: here that of a closed sink.
    let numbers = stream::iter(0..LINES).map(|line| line.to_string());
    let results = sink.submit_stream_unordered(numbers, CONCURRENCY);
    sink.shutdown().await?;
    let stopped = results.try_for_each(|_| async { Ok(()) }).await;
    assert!(matches!(stopped, Err(JobError::Closed)));
    Ok(())
}
