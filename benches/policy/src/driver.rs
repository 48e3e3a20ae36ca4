//! The crate itself, in virtual time: a real `MicroBatch` on a paused Tokio
//! clock, from `submit` to the result in the caller's hands.

use std::time::Duration;

use microbatch::{CancellationToken, MicroBatch};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::outcome::{Outcome, Service};

/// Options of the builder. Times are in ticks.
#[derive(Debug, Clone, Copy)]
pub enum Policy {
    Idle,
    Cost(u64),
    Interval(u64),
}

/// Runs a policy on the arrivals.
pub fn run(policy: Policy, arrivals: &[u64], service: Service) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(drive(policy, arrivals, service))
}

async fn drive(policy: Policy, arrivals: &[u64], service: Service) -> Outcome {
    let processor = move |jobs: Vec<()>| async move {
        if let ticks @ 1.. = service.ticks(jobs.len()) {
            sleep(Duration::from_millis(ticks)).await;
        }
        Ok::<_, String>(jobs)
    };
    let builder = MicroBatch::builder(processor)
        .max_batch_size(usize::MAX)
        .queue_capacity(usize::MAX)
        .interval(Duration::MAX)
        .max_in_flight(match service {
            Service::OneServer => 1,
            Service::Instant => 64,
        });
    let builder = match policy {
        Policy::Idle => builder.flush_when_idle(true),
        Policy::Cost(cost) => builder.flush_cost(Duration::from_millis(cost)),
        Policy::Interval(interval) => builder.interval(Duration::from_millis(interval)),
    };
    let batcher = builder
        .build_running(CancellationToken::new())
        .expect("valid options");

    let start = Instant::now();
    let (submitted, mut handles) = mpsc::unbounded_channel();
    // Results come in the order of the jobs, so one task can await them all.
    let caller = tokio::spawn(async move {
        let mut done = Vec::new();
        while let Some(handle) = handles.recv().await {
            let handle: microbatch::JobHandle<()> = handle;
            handle.await.expect("processed");
            done.push(start.elapsed().as_millis() as u64);
        }
        done
    });
    let mut now = 0;
    for arrival in arrivals {
        if *arrival > now {
            now = *arrival;
            sleep_until(start + Duration::from_millis(now)).await;
        }
        submitted
            .send(batcher.submit(()))
            .expect("the caller is there");
    }
    drop(submitted);
    let done = caller.await.expect("every handle resolved");
    Outcome::new(arrivals, &done, batcher.stats().batches)
}
