//! The most urgent job first: a storage of one's own decides what goes into
//! the next batch.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use microbatch::{BatchStorage, CancellationToken, MicroBatch, PendingJob};

struct Task {
    priority: u8,
    name: &'static str,
}

/// Sorted by priority, highest first, and by age among equals.
struct ByPriority<R> {
    tasks: BTreeMap<(Reverse<u8>, u64), PendingJob<Task, R>>,
    next: u64,
}

impl<R: Send + 'static> BatchStorage<Task, R> for ByPriority<R> {
    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn append(&mut self, job: PendingJob<Task, R>) {
        let rank = (Reverse(job.job().priority), self.next);
        self.tasks.insert(rank, job);
        self.next += 1;
    }

    // Tasks have no weight here, so only their number is limited.
    fn take(&mut self, max_jobs: usize, _max_weight: usize) -> Vec<PendingJob<Task, R>> {
        let urgent = std::iter::from_fn(|| self.tasks.pop_first());
        urgent.take(max_jobs).map(|(_, job)| job).collect()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (log, mut batches) = tokio::sync::mpsc::unbounded_channel();
    let tasks = MicroBatch::builder(move |tasks: Vec<Task>| {
        let names: Vec<_> = tasks.iter().map(|task| task.name).collect();
        let logged = log.send(names.clone());
        async move { logged.map(|()| names) }
    })
    .max_batch_size(2)
    .storage(ByPriority {
        tasks: BTreeMap::new(),
        next: 0,
    })
    .build()?;

    // Submitted before the start, so that there is something to choose from.
    let submitted = [(1, "tidy"), (9, "alarm"), (5, "mail"), (9, "fire")];
    let handles = submitted.map(|(priority, name)| tasks.submit(Task { priority, name }));
    tokio::spawn(tasks.start(CancellationToken::new()));
    for ((_, name), handle) in submitted.into_iter().zip(handles) {
        assert_eq!(handle.await?, name);
    }

    for expected in [["alarm", "fire"], ["mail", "tidy"]] {
        let batch = batches.recv().await.unwrap_or_default();
        println!("{batch:?}");
        assert_eq!(batch, expected);
    }
    Ok(())
}
