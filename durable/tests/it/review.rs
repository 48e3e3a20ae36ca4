//! Faults that a review found, one by one.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use microbatch_durable::{
    Appended, CancellationToken, Codec, DeadLetters, Drain, Durable, IntoVerdict, Json,
    MemoryStore, Refusal, Store, Verdict,
};
use tokio::time::{sleep, timeout};

use crate::support::{Hooked, Moment, NoRoom, drain_all, fill};

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
    assert_eq!((&*dead[0].id, dead[0].attempt), ("00007", 1));
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

/// A panic in `lease` ended the drain. One in `settle` ended a task unseen: its jobs were
/// leased for as long as the process, and the drain said that all was well.
#[tokio::test(start_paused = true)]
async fn a_store_that_panics_ends_no_drain_and_keeps_no_job() {
    for call in ["lease", "settle", "extend"] {
        let builder = MemoryStore::builder();
        let store = match call {
            "extend" => builder.lease_time(Duration::from_secs(30)).build(),
            _ => builder.build(),
        };
        fill(&store, 0..10).await;
        let processor = |jobs: Vec<u32>| async move {
            sleep(Duration::from_secs(15)).await;
            Ok::<_, String>(vec![(); jobs.len()])
        };
        let calls = AtomicUsize::new(0);
        let panicking = Hooked::new(&store, move |moment| {
            let of_call = match moment {
                Moment::Lease => call == "lease",
                Moment::Settle => call == "settle",
                Moment::Extend => call == "extend",
                _ => false,
            };
            let is_first = of_call && calls.fetch_add(1, Ordering::Relaxed) == 0;
            assert!(!is_first, "the first call panics");
            Ok(())
        });
        let drained = drain_all(&store, Drain::builder(panicking, processor)).await;
        assert_eq!((drained.done, drained.store_errors), (10, 1));
    }
}

/// An append whose answer was lost did not count, so for a second the backlog could grow
/// beyond its limit.
#[tokio::test(start_paused = true)]
async fn appends_without_an_answer_count_in_the_backlog() {
    let store = MemoryStore::new();
    let loses_answers = Hooked::new(&store, |moment| match moment {
        Moment::Appended => Err(NoRoom),
        _ => Ok(()),
    });
    let front = Durable::<u32>::builder(loses_answers)
        .max_pending(3)
        .build_running(CancellationToken::new())
        .unwrap();
    for job in 0..10 {
        let submitted = front.submit(format!("{job}"), job);
        let _ = timeout(Duration::from_millis(10), submitted).await;
    }
    assert_eq!(store.depth().await.unwrap().pending(), 3);
}
