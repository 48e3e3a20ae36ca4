//! What several modules use.

use std::time::Duration;

use microbatch::BatchProcessor;
use microbatch_durable::{
    Appended, CancellationToken, Codec, Depth, DrainBuilder, Drained, Durable, IntoVerdict, Leased,
    MemoryLease, MemoryStore, NewJob, Settled, Store, Verdict,
};
use tokio::time::{sleep, timeout};

pub(crate) fn job(id: &str) -> NewJob {
    NewJob {
        id: id.into(),
        codec: "json".into(),
        payload: id.to_owned().into(),
    }
}

/// Appends numbers under ids of five digits.
pub(crate) async fn fill(store: &MemoryStore, jobs: impl IntoIterator<Item = u32>) {
    let front = Durable::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    let jobs = jobs.into_iter().map(|job| (format!("{job:05}"), job));
    for answer in front.submit_all(jobs).await {
        assert_eq!(answer.unwrap(), Appended::New);
    }
}

/// Runs a drain until the store has nothing but dead letters.
pub(crate) async fn drain_all<S, J, R, P, C>(
    store: &MemoryStore,
    builder: DrainBuilder<S, J, R, P, C>,
) -> Drained
where
    S: Store,
    J: Send + 'static,
    R: IntoVerdict + Send + 'static,
    P: BatchProcessor<J, R>,
    C: Codec<J>,
{
    let cancel = CancellationToken::new();
    let drain = tokio::spawn(builder.build().unwrap().run(cancel.clone()));
    let empty = async {
        while store.depth().await.unwrap().pending() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(100_000), empty)
        .await
        .expect("the store becomes empty");
    cancel.cancel();
    drain.await.unwrap().unwrap()
}

/// A store in memory whose calls fail, panic or are watched, as its hook does.
pub(crate) struct Hooked {
    store: MemoryStore,
    hook: Box<Hook>,
}

type Hook = dyn Fn(Moment<'_>) -> Result<(), NoRoom> + Send + Sync;

/// Before a call is done, or after it.
pub(crate) enum Moment<'a> {
    Appended,
    Lease,
    Leased(&'a [Leased<MemoryLease>]),
    Settle,
    Settled,
    Extend,
}

#[derive(Debug, thiserror::Error)]
#[error("no room")]
pub(crate) struct NoRoom;

impl Hooked {
    pub(crate) fn new(
        store: &MemoryStore,
        hook: impl Fn(Moment<'_>) -> Result<(), NoRoom> + Send + Sync + 'static,
    ) -> Self {
        Self {
            store: store.clone(),
            hook: Box::new(hook),
        }
    }
}

impl Store for Hooked {
    type Lease = MemoryLease;
    type Error = NoRoom;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, NoRoom> {
        let Ok(answers) = self.store.append(jobs).await;
        (self.hook)(Moment::Appended).map(|()| answers)
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<MemoryLease>>, NoRoom> {
        (self.hook)(Moment::Lease)?;
        let Ok(leased) = self.store.lease(max).await;
        (self.hook)(Moment::Leased(&leased)).map(|()| leased)
    }

    async fn settle(&self, verdicts: &[(MemoryLease, Verdict)]) -> Result<Vec<Settled>, NoRoom> {
        (self.hook)(Moment::Settle)?;
        let Ok(answers) = self.store.settle(verdicts).await;
        (self.hook)(Moment::Settled).map(|()| answers)
    }

    async fn extend(&self, leases: &[MemoryLease]) -> Result<Vec<Settled>, NoRoom> {
        (self.hook)(Moment::Extend)?;
        let Ok(answers) = self.store.extend(leases).await;
        Ok(answers)
    }

    fn lease_time(&self) -> Option<Duration> {
        self.store.lease_time()
    }

    async fn depth(&self) -> Result<Depth, NoRoom> {
        let Ok(depth) = self.store.depth().await;
        Ok(depth)
    }
}
