//! The smallest useful program: three callers, one call for all of them, and
//! for each its own result.

use std::time::Duration;

use microbatch::{CancellationToken, MicroBatch};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Imagine one statement with many rows, which takes as long as with one.
    let lengths = MicroBatch::builder(|words: Vec<&'static str>| async move {
        println!("one call for {words:?}");
        Ok::<_, String>(words.iter().map(|word| word.len()).collect())
    })
    .max_batch_size(100)
    .interval(Duration::from_millis(20))
    .build_running(CancellationToken::new())?;

    let (a, b, c) = tokio::try_join!(
        lengths.submit("apple"),
        lengths.submit("fig"),
        lengths.submit("banana"),
    )?;
    assert_eq!((a, b, c), (5, 3, 6));
    assert_eq!(lengths.stats().batches, 1);

    lengths.shutdown().await?; // whatever was accepted is processed first
    Ok(())
}
