//! The last attempt of a job: nothing else is processed or unsettled when it is leased.

use std::sync::Arc;
use std::time::Duration;

use microbatch_durable::{
    Appended, CancellationToken, Depth, Drain, Leased, MemoryLease, MemoryStore, NewJob, Settled,
    Store, Verdict,
};
use tokio::sync::Semaphore;

/// A store that settles when it is told to.
struct Gated {
    store: MemoryStore,
    settlements: Arc<Semaphore>,
}

impl Store for Gated {
    type Lease = MemoryLease;
    type Error = <MemoryStore as Store>::Error;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, Self::Error> {
        self.store.append(jobs).await
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<MemoryLease>>, Self::Error> {
        self.store.lease(max).await
    }

    async fn settle(
        &self,
        verdicts: &[(MemoryLease, Verdict)],
    ) -> Result<Vec<Settled>, Self::Error> {
        self.settlements.acquire().await.unwrap().forget();
        self.store.settle(verdicts).await
    }

    async fn extend(&self, leases: &[MemoryLease]) -> Result<Vec<Settled>, Self::Error> {
        self.store.extend(leases).await
    }

    fn lease_time(&self) -> Option<Duration> {
        self.store.lease_time()
    }

    async fn depth(&self) -> Result<Depth, Self::Error> {
        self.store.depth().await
    }
}

/// Story: a job that was done and not yet settled was declared dead, because the next one
/// ended the process.
#[tokio::test(start_paused = true)]
async fn the_last_attempt_is_leased_once_all_is_settled() {
    let store = MemoryStore::new();
    let jobs: Vec<_> = ["\"a\"", "\"b\"", "\"c\""]
        .map(crate::work::json_job)
        .into();
    store.append(&jobs).await.unwrap();
    let settlements = Arc::new(Semaphore::new(0));
    let gated = Gated {
        store: store.clone(),
        settlements: Arc::clone(&settlements),
    };
    let stop = CancellationToken::new();
    let drain = Drain::builder(gated, |jobs: Vec<String>| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, std::io::Error>(vec![(); jobs.len()])
    })
    .max_attempts(1)
    .max_in_flight(4)
    .build()
    .unwrap();
    let draining = tokio::spawn(drain.run(stop.clone()));
    for left in (0..3).rev() {
        // Processed by now, and not settled.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let depth = store.depth().await.unwrap();
        assert_eq!((depth.ready, depth.leased), (left, 1));
        settlements.add_permits(1);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(store.depth().await.unwrap().pending(), 0);
    stop.cancel();
    assert_eq!(draining.await.unwrap().unwrap().done, 3);
}
