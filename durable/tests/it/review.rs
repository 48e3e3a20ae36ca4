//! Faults that a review found, one by one.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use microbatch::BatchProcessor;
use microbatch_durable::{
    Appended, CancellationToken, Codec, DeadLetters, Depth, Drain, DrainBuilder, Drained, Durable,
    IntoVerdict, Json, Leased, MemoryLease, MemoryStore, NewJob, Refusal, Settled, Store, Verdict,
};
use tokio::time::{sleep, timeout};

async fn fill(store: &MemoryStore, jobs: std::ops::Range<u32>) {
    let front = Durable::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    for job in jobs {
        let answer = front.submit(format!("{job:03}"), job).await;
        assert_eq!(answer.unwrap(), Appended::New);
    }
}

/// Runs a drain until no job waits.
async fn drain_all<S, R, P, C>(
    store: &MemoryStore,
    builder: DrainBuilder<S, u32, R, P, C>,
) -> Drained
where
    S: Store,
    R: IntoVerdict + Send + 'static,
    P: BatchProcessor<u32, R>,
    C: Codec<u32>,
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

/// Panics where it should give an error.
struct Explosive {
    encodes: bool,
}

impl Codec<u32> for Explosive {
    const NAME: &'static str = "json";

    fn encode(&self, job: &u32) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        assert!(self.encodes || *job != 7, "no sevens");
        Json.encode(job)
    }

    fn decode(&self, payload: &[u8]) -> Result<u32, Box<dyn Error + Send + Sync>> {
        let job = Json.decode(payload)?;
        assert!(job != 7, "no sevens");
        Ok(job)
    }
}

/// A codec that panicked took the caller of `submit` with it.
#[tokio::test(start_paused = true)]
async fn a_codec_that_panics_while_it_encodes_refuses_the_job() {
    let front = Durable::<u32>::builder(MemoryStore::new())
        .codec(Explosive { encodes: false })
        .build_running(CancellationToken::new())
        .unwrap();
    let Appended::Refused(Refusal::Unencodable { reason }) = front.submit("a", 7).await.unwrap()
    else {
        panic!("it cannot be encoded");
    };
    assert_eq!(reason, "the codec panicked: no sevens");
    assert_eq!(front.submit("b", 8).await.unwrap(), Appended::New);
}

/// A codec that panicked failed its whole batch, again and again, as "the processor
/// panicked": 99 others lost up to four attempts to it.
#[tokio::test(start_paused = true)]
async fn a_codec_that_panics_while_it_decodes_kills_that_job_alone() {
    let store = MemoryStore::new();
    fill(&store, 0..100).await;
    let processor = |jobs: Vec<u32>| async move { Ok::<_, String>(vec![(); jobs.len()]) };
    let builder = Drain::builder(store.clone(), processor).codec(Explosive { encodes: true });
    let drained = drain_all(&store, builder).await;
    assert_eq!((drained.done, drained.dead, drained.retried), (99, 1, 0));
    let dead = store.list(None, 10).await.unwrap();
    assert_eq!((&*dead[0].id, dead[0].attempt), ("007", 1));
    assert_eq!(
        dead[0].reason,
        "cannot be decoded as `json`: the codec panicked: no sevens"
    );
}

/// A verdict that panicked had the whole batch processed again, although it was done.
#[tokio::test(start_paused = true)]
async fn a_verdict_that_panics_has_that_job_alone_tried_again() {
    struct Undecided(u32);
    impl IntoVerdict for Undecided {
        fn into_verdict(self, attempt: u32) -> Verdict {
            assert!(self.0 != 7 || attempt > 1, "undecided");
            Verdict::Done
        }
    }
    let store = MemoryStore::new();
    fill(&store, 0..100).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let processor = move |jobs: Vec<u32>| {
        record.lock().unwrap().extend(jobs.iter().copied());
        async move { Ok::<_, String>(jobs.into_iter().map(Undecided).collect::<Vec<_>>()) }
    };
    let drained = drain_all(&store, Drain::builder(store.clone(), processor)).await;
    assert_eq!((drained.done, drained.retried), (100, 1));
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    let twice: Vec<_> = seen.windows(2).filter(|two| two[0] == two[1]).collect();
    assert_eq!(twice, [[7, 7]]);
}

/// `Duration::MAX` overflowed: `lease` and `advance` panicked, and the drain with them.
#[tokio::test(start_paused = true)]
async fn a_store_in_memory_takes_the_longest_lease_time() {
    let store = MemoryStore::builder().lease_time(Duration::MAX).build();
    fill(&store, 0..2).await;
    let leased = store.lease(1).await.unwrap();
    store.extend(&[leased[0].lease.clone()]).await.unwrap();
    store.advance(Duration::from_secs(86_400 * 365));
    assert_eq!(store.depth().await.unwrap().leased, 1);
    store
        .settle(&[(leased[0].lease.clone(), Verdict::Done)])
        .await
        .unwrap();
    let processor = |jobs: Vec<u32>| async move { Ok::<_, String>(vec![(); jobs.len()]) };
    let drained = drain_all(&store, Drain::builder(store.clone(), processor)).await;
    assert_eq!(drained.done, 1);
}

/// What goes wrong in [`Odd`].
#[derive(Clone, Copy, PartialEq)]
enum Oddity {
    LeasePanics,
    SettlePanics,
    ExtendPanics,
    AppendLosesItsAnswer,
}

/// A store that goes wrong: with a panic in its first call, or in each append.
struct Odd {
    store: MemoryStore,
    oddity: Oddity,
    calls: AtomicUsize,
}

impl Odd {
    fn new(store: &MemoryStore, oddity: Oddity) -> Self {
        let (store, calls) = (store.clone(), AtomicUsize::new(0));
        Self {
            store,
            oddity,
            calls,
        }
    }

    fn panic_first(&self, oddity: Oddity) {
        let is_first = self.oddity == oddity && self.calls.fetch_add(1, Ordering::Relaxed) == 0;
        assert!(!is_first, "the first call panics");
    }
}

impl Store for Odd {
    type Lease = MemoryLease;
    type Error = std::io::Error;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, Self::Error> {
        let Ok(answers) = self.store.append(jobs).await;
        match self.oddity {
            Oddity::AppendLosesItsAnswer => Err(std::io::Error::other("no answer")),
            _ => Ok(answers),
        }
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<MemoryLease>>, Self::Error> {
        self.panic_first(Oddity::LeasePanics);
        let Ok(leased) = self.store.lease(max).await;
        Ok(leased)
    }

    async fn settle(
        &self,
        verdicts: &[(MemoryLease, Verdict)],
    ) -> Result<Vec<Settled>, Self::Error> {
        self.panic_first(Oddity::SettlePanics);
        let Ok(answers) = self.store.settle(verdicts).await;
        Ok(answers)
    }

    async fn extend(&self, leases: &[MemoryLease]) -> Result<Vec<Settled>, Self::Error> {
        self.panic_first(Oddity::ExtendPanics);
        let Ok(answers) = self.store.extend(leases).await;
        Ok(answers)
    }

    fn lease_time(&self) -> Option<Duration> {
        self.store.lease_time()
    }

    async fn depth(&self) -> Result<Depth, Self::Error> {
        let Ok(depth) = self.store.depth().await;
        Ok(depth)
    }
}

/// A panic in `lease` ended the drain. One in `settle` ended a task unseen: its jobs were
/// leased for as long as the process, and the drain said that all was well.
#[tokio::test(start_paused = true)]
async fn a_store_that_panics_ends_no_drain_and_keeps_no_job() {
    for oddity in [
        Oddity::LeasePanics,
        Oddity::SettlePanics,
        Oddity::ExtendPanics,
    ] {
        let builder = MemoryStore::builder();
        let store = match oddity {
            Oddity::ExtendPanics => builder.lease_time(Duration::from_secs(30)).build(),
            _ => builder.build(),
        };
        fill(&store, 0..10).await;
        let processor = |jobs: Vec<u32>| async move {
            sleep(Duration::from_secs(15)).await;
            Ok::<_, String>(vec![(); jobs.len()])
        };
        let odd = Odd::new(&store, oddity);
        let drained = drain_all(&store, Drain::builder(odd, processor)).await;
        assert_eq!((drained.done, drained.store_errors), (10, 1));
    }
}

/// An append whose answer was lost did not count, so for a second the backlog could grow
/// beyond its limit.
#[tokio::test(start_paused = true)]
async fn appends_without_an_answer_count_in_the_backlog() {
    let store = MemoryStore::new();
    let front = Durable::<u32>::builder(Odd::new(&store, Oddity::AppendLosesItsAnswer))
        .max_pending(3)
        .build_running(CancellationToken::new())
        .unwrap();
    for job in 0..10 {
        let submitted = front.submit(format!("{job}"), job);
        let _ = timeout(Duration::from_millis(10), submitted).await;
    }
    assert_eq!(store.depth().await.unwrap().pending(), 3);
}
