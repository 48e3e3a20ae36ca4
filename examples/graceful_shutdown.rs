//! Ctrl-C drains: nothing new is accepted, and every job that was accepted
//! still gets its result. A second Ctrl-C gives up. Without any, it stops by
//! itself after a second, or after as many as its argument says.

use std::error::Error;
use std::process::exit;
use std::time::Duration;

use microbatch::{CancellationToken, JobError, MicroBatch};
use tokio::signal::ctrl_c;
use tokio::task::JoinSet;
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args().nth(1).unwrap_or("1".into());
    let Ok(seconds) = seconds.parse() else {
        eprintln!("error: expected a number of seconds, found {seconds:?}");
        exit(1);
    };
    let squares = MicroBatch::builder(|numbers: Vec<u64>| async move {
        sleep(Duration::from_millis(300)).await; // a slow backend
        Ok::<_, String>(numbers.iter().map(|number| number * number).collect())
    })
    .max_batch_size(16)
    .build()?;
    let cancel = CancellationToken::new();
    let mut run = tokio::spawn(squares.start(cancel.clone()));

    let mut callers = JoinSet::new();
    for number in 0..40 {
        callers.spawn(call(squares.clone(), number));
    }
    tokio::select! {
        interrupted = ctrl_c() => interrupted?,
        () = sleep(Duration::from_secs(seconds)) => {}
    }

    cancel.cancel();
    println!("stopping; Ctrl-C gives up at once");
    tokio::select! {
        stopped = &mut run => stopped??,
        interrupted = ctrl_c() => {
            interrupted?;
            run.abort(); // what is left resolves as `JobError::Abandoned`
            let _ = run.await;
            eprintln!("gave up: {:?}", squares.stats());
            exit(1);
        }
    }

    let answered = callers.join_all().await.into_iter();
    let answered = answered.sum::<Result<u64, JobError>>()?;
    let stats = squares.stats();
    println!("{} accepted, {answered} answered", stats.accepted);
    assert!(answered > 0, "nobody was answered");
    assert_eq!(stats.accepted, answered, "an accepted job got no result");
    Ok(())
}

/// Submits one job after the other until no more are accepted, and returns how
/// many were answered.
async fn call(squares: MicroBatch<u64, u64>, number: u64) -> Result<u64, JobError> {
    let mut answered = 0;
    loop {
        match squares.submit(number).await {
            Ok(square) => assert_eq!(square, number * number),
            Err(JobError::Closed) => return Ok(answered),
            Err(error) => return Err(error),
        }
        answered += 1;
    }
}
