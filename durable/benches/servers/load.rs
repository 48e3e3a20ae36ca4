//! What is done to any store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use microbatch_durable::{
    CancellationToken, Codec, Drain, DrainError, Drained, Durable, NewJob, Store,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

pub(crate) use crate::raw::{PAYLOAD, Raw};
use crate::{Error, callers, progress};

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
    let front = front(store)?;
    let started = Instant::now();
    let (jobs, appends) = callers::call(&front, callers, next_id, time).await?;
    let rate = jobs as f64 / started.elapsed().as_secs_f64();
    front.shutdown().await?;
    Ok((rate, jobs as f64 / appends as f64))
}

fn front<S: Store + Clone>(store: &S) -> Result<Durable<Vec<u8>>, Error> {
    let builder = Durable::builder(store.clone()).codec(Raw);
    Ok(builder.build_running(CancellationToken::new())?)
}

/// A front and a drain on one store, whose processor tells of each batch.
struct BothHalves {
    front: Durable<Vec<u8>>,
    stop: CancellationToken,
    draining: JoinHandle<Result<Drained, DrainError>>,
}

impl BothHalves {
    fn start<S: Store + Clone>(
        store: &S,
        begins: impl Fn(usize) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let processor = move |jobs: Vec<Vec<u8>>| {
            begins(jobs.len());
            async move { Ok::<_, Error>(vec![(); jobs.len()]) }
        };
        let drain = Drain::builder(store.clone(), processor)
            .codec(Raw)
            .build()?;
        let stop = CancellationToken::new();
        Ok(Self {
            front: front(store)?,
            draining: tokio::spawn(drain.run(stop.clone())),
            stop,
        })
    }

    /// Ends both once nothing is left to do.
    async fn end<S: Store>(self, store: &S) -> Result<(), Error> {
        self.front.shutdown().await?;
        while store.depth().await?.pending() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
        self.stop.cancel();
        self.draining.await??;
        Ok(())
    }
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
    let halves = BothHalves::start(store, move |_| {
        let _ = begun.send(Instant::now());
    })?;
    let (mut from_accepted, mut from_submitted) = (Vec::new(), Vec::new());
    for n in 0..jobs {
        progress(&format!("an idle queue: {n} of {jobs}"));
        sleep(Duration::from_millis(fastrand::u64(50..150))).await;
        let submitted = Instant::now();
        halves.front.submit(next_id(), vec![7; PAYLOAD]).await?;
        let accepted = Instant::now();
        let begun = begins.recv().await.ok_or("the drain has ended")?;
        from_accepted.push(begun.saturating_duration_since(accepted));
        from_submitted.push(begun - submitted);
    }
    progress("");
    halves.end(store).await?;
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
    let counted = Arc::clone(&processed);
    let halves = BothHalves::start(store, move |jobs| {
        counted.fetch_add(jobs as u64, Ordering::Relaxed);
    })?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / TICKS as u32);
    let started = Instant::now();
    while started.elapsed() < time {
        ticks.tick().await;
        let jobs = (0..rate / TICKS).map(|_| (next_id(), vec![7; PAYLOAD]));
        for answer in halves.front.submit_all(jobs).await {
            answer?;
        }
        let processed = processed.load(Ordering::Relaxed);
        let seconds = started.elapsed().as_secs();
        progress(&format!("{seconds} s of {time:?}: {processed} processed"));
    }
    let processed = processed.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    progress("");
    halves.end(store).await?;
    Ok(processed)
}
