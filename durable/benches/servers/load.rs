//! What is done to any store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use microbatch_durable::{CancellationToken, Codec, Drain, Durable, NewJob, Store};
use tokio::sync::mpsc;
use tokio::time::sleep;

pub(crate) use crate::raw::{PAYLOAD, Raw};
use crate::{Error, progress};

/// An id that ascends.
pub(crate) fn next_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:016}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Jobs a second, and jobs in an append, of so many callers who await each its own job.
pub(crate) async fn call<S: Store + Clone>(
    store: &S,
    callers: u64,
    time: Duration,
) -> Result<(f64, f64), Error> {
    let front = Durable::<Vec<u8>>::builder(store.clone())
        .codec(Raw)
        .build_running(CancellationToken::new())?;
    let started = Instant::now();
    let caller = |_| {
        let front = front.clone();
        tokio::spawn(async move {
            while started.elapsed() < time {
                front.submit(next_id(), vec![7; PAYLOAD]).await?;
            }
            Ok::<_, microbatch::JobError>(())
        })
    };
    let callers: Vec<_> = (0..callers).map(caller).collect();
    for caller in callers {
        caller.await??;
    }
    let stats = front.stats();
    let rate = stats.completed as f64 / started.elapsed().as_secs_f64();
    front.shutdown().await?;
    Ok((rate, stats.completed as f64 / stats.batches as f64))
}

pub(crate) async fn fill<S: Store>(store: &S, jobs: u64) -> Result<(), Error> {
    for start in (0..jobs).step_by(1000) {
        let batch: Vec<_> = (start..jobs.min(start + 1000))
            .map(|_| NewJob {
                id: next_id().into(),
                codec: Raw::NAME.into(),
                payload: vec![7; PAYLOAD].into(),
            })
            .collect();
        store.append(&batch).await?;
        progress(&format!(
            "appended {} of {jobs}",
            start + batch.len() as u64
        ));
    }
    progress("");
    Ok(())
}

/// Jobs a second of a drain of jobs that do nothing.
pub(crate) async fn drain<S: Store + Clone>(
    store: &S,
    jobs: u64,
    max_batch_size: usize,
) -> Result<f64, Error> {
    fill(store, jobs).await?;
    let cancel = CancellationToken::new();
    let (stop, left) = (cancel.clone(), AtomicU64::new(jobs));
    let processor = |jobs: Vec<Vec<u8>>| async move { Ok::<_, Error>(vec![(); jobs.len()]) };
    let drain = Drain::builder(store.clone(), processor)
        .codec(Raw)
        .max_batch_size(max_batch_size)
        .on_batch(move |batch| {
            let done = (batch.done + batch.unknown) as u64;
            let left = left.fetch_sub(done, Ordering::Relaxed) - done;
            if left.is_multiple_of(500) {
                progress(&format!("drain: {left} left"));
            }
            if left == 0 {
                stop.cancel();
            }
        })
        .build()?;
    let started = Instant::now();
    let drained = drain.run(cancel).await?;
    let took = started.elapsed().as_secs_f64();
    progress("");
    if drained.done + drained.unknown != jobs {
        return Err(format!("{jobs} jobs, and {drained:?}").into());
    }
    Ok(jobs as f64 / took)
}

/// How long jobs wait in an idle queue, from their acceptance until the processor has them,
/// and from their submission: sorted.
pub(crate) async fn wait<S: Store + Clone>(
    store: &S,
    jobs: usize,
) -> Result<(Vec<Duration>, Vec<Duration>), Error> {
    let (begun, mut begins) = mpsc::unbounded_channel();
    let processor = move |jobs: Vec<Vec<u8>>| {
        let _ = begun.send(Instant::now());
        async move { Ok::<_, Error>(vec![(); jobs.len()]) }
    };
    let stop = CancellationToken::new();
    let drain = Drain::builder(store.clone(), processor)
        .codec(Raw)
        .build()?;
    let draining = tokio::spawn(drain.run(stop.clone()));
    let front = Durable::<Vec<u8>>::builder(store.clone())
        .codec(Raw)
        .build_running(CancellationToken::new())?;
    let (mut from_accepted, mut from_submitted) = (Vec::new(), Vec::new());
    for n in 0..jobs {
        progress(&format!("an idle queue: {n} of {jobs}"));
        sleep(Duration::from_millis(fastrand::u64(50..150))).await;
        let submitted = Instant::now();
        front.submit(next_id(), vec![7; PAYLOAD]).await?;
        let accepted = Instant::now();
        let begun = begins.recv().await.ok_or("the drain has ended")?;
        from_accepted.push(begun.saturating_duration_since(accepted));
        from_submitted.push(begun - submitted);
    }
    progress("");
    stop.cancel();
    draining.await??;
    front.shutdown().await?;
    from_accepted.sort();
    from_submitted.sort();
    Ok((from_accepted, from_submitted))
}

/// A steady load for a time: how many jobs a second were processed in it.
pub(crate) async fn steady<S: Store + Clone>(
    store: &S,
    rate: u64,
    time: Duration,
) -> Result<f64, Error> {
    const TICKS: u64 = 20;
    let processed = Arc::new(AtomicU64::new(0));
    let processor = {
        let processed = Arc::clone(&processed);
        move |jobs: Vec<Vec<u8>>| {
            processed.fetch_add(jobs.len() as u64, Ordering::Relaxed);
            async move { Ok::<_, Error>(vec![(); jobs.len()]) }
        }
    };
    let stop = CancellationToken::new();
    let drain = Drain::builder(store.clone(), processor)
        .codec(Raw)
        .build()?;
    let draining = tokio::spawn(drain.run(stop.clone()));
    let front = Durable::<Vec<u8>>::builder(store.clone())
        .codec(Raw)
        .build_running(CancellationToken::new())?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / TICKS as u32);
    let started = Instant::now();
    while started.elapsed() < time {
        ticks.tick().await;
        let jobs = (0..rate / TICKS).map(|_| (next_id(), vec![7; PAYLOAD]));
        for answer in front.submit_all(jobs).await {
            answer?;
        }
        let processed = processed.load(Ordering::Relaxed);
        let seconds = started.elapsed().as_secs();
        progress(&format!("{seconds} s of {time:?}: {processed} processed"));
    }
    let processed = processed.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    progress("");
    front.shutdown().await?;
    while store.depth().await?.pending() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    draining.await??;
    Ok(processed)
}
