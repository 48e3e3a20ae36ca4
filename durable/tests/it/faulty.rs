//! What uses a store holds its promises while the store fails by seed: jobs are submitted,
//! drained, retried and settled over answers that are late, missing or lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::ConstantBuilder;
use microbatch::BatchProcessor;
use microbatch_durable::{
    CancellationToken, DeadLetters, Drain, Drained, Durable, Faulty, FaultyError, MemoryStore,
    RedbStore, Settled, Store, Verdict, conformance,
};
use tokio::time::{sleep, timeout};

use crate::support::{Hooked, Moment, NoRoom, drain_all, fill, job};

fn quiet(store: MemoryStore) -> Faulty<MemoryStore> {
    Faulty::new(store, 0)
        .fail_rate(0.0)
        .loss_rate(0.0)
        .delay_rate(0.0, Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_is_the_store_itself() {
    let stores = Mutex::new(BTreeMap::<String, MemoryStore>::new());
    conformance::run(async |name: &str| {
        let mut stores = stores.lock().unwrap();
        let store = stores.entry(name.to_owned()).or_default();
        store.restart();
        quiet(store.clone())
    })
    .await;
    assert_eq!(quiet(MemoryStore::new()).faults(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_does_nothing() {
    let store = Faulty::new(MemoryStore::new(), 1).fail_rate(1.0);
    for _ in 0..20 {
        let error = store.append(&[job("a")]).await.unwrap_err();
        assert_eq!(error, FaultyError::Injected);
    }
    assert_eq!(store.faults(), 20);
    assert_eq!(store.get_ref().depth().await.unwrap().pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_loses_its_answer_is_done() {
    let store = Faulty::new(MemoryStore::new(), 1)
        .fail_rate(0.0)
        .loss_rate(1.0);
    store.append(&[job("a"), job("b")]).await.unwrap_err();
    let leased = store.get_ref().lease(9).await.unwrap();
    assert_eq!(leased.len(), 2);
    let lease = leased[0].lease.clone();
    let verdict = Verdict::Dead {
        reason: "no".to_owned(),
    };
    store.settle(&[(lease, verdict)]).await.unwrap_err();
    assert_eq!(store.get_ref().depth().await.unwrap().dead, 1);
    store.revive(&["a".into()]).await.unwrap_err();
    assert_eq!(store.get_ref().depth().await.unwrap().dead, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_of_lease_is_an_attempt() {
    let time = Duration::from_secs(3);
    for store in [
        MemoryStore::new(),
        MemoryStore::builder().lease_time(time).build(),
    ] {
        store.append(&[job("a")]).await.unwrap();
        let lossy = Faulty::new(store.clone(), 1).fail_rate(0.0).loss_rate(1.0);
        for attempt in 1..4 {
            lossy.lease(1).await.unwrap_err();
            let leased = store.lease(1).await.unwrap();
            assert_eq!(leased[0].attempt.get(), 2 * attempt);
            let again = Verdict::Retry {
                after: Duration::ZERO,
                reason: String::new(),
            };
            let answers = store.settle(&[(leased[0].lease.clone(), again)]).await;
            assert_eq!(answers.unwrap(), [Settled::Held]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_draws_the_same_faults() {
    let faults = async |seed| {
        let store = Faulty::new(MemoryStore::new(), seed);
        let started = tokio::time::Instant::now();
        let mut outcomes = Vec::new();
        for _ in 0..200 {
            outcomes.push((store.depth().await.is_ok(), started.elapsed()));
        }
        outcomes
    };
    assert_eq!(faults(7).await, faults(7).await);
    assert_ne!(faults(7).await, faults(8).await);
    let failed = faults(7).await.iter().filter(|(ok, _)| !ok).count();
    assert!((20..=60).contains(&failed), "a fifth of 200: {failed}");
}

/// How a job, or its whole batch, comes to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It fails on each attempt.
    Fails,
    /// Its first attempt fails.
    FailsOnce,
    /// It is said to be dead.
    Dead,
    /// Its batch panics, on each attempt.
    Panics,
    /// Its first batch fails as a whole.
    FailsBatchOnce,
    /// Its first batch panics.
    PanicsOnce,
}

impl Fate {
    /// By seed and number, so that each caller and each attempt agree.
    fn of(seed: u64, number: u32) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ (u64::from(number) << 32));
        match rng.u8(0..40) {
            0 => Self::Fails,
            1..=3 => Self::FailsOnce,
            4 => Self::Dead,
            5 => Self::Panics,
            6..=7 => Self::FailsBatchOnce,
            8 => Self::PanicsOnce,
            _ => Self::Done,
        }
    }
}

/// How often each job was given to the processor.
type Ledger = Arc<Mutex<BTreeMap<u32, u32>>>;

/// Fails as the fates say; a job that gets through is done.
fn processor(seed: u64, ledger: Ledger) -> impl BatchProcessor<u32, Verdict, Error = String> {
    move |jobs: Vec<u32>| {
        let ledger = Arc::clone(&ledger);
        async move {
            let mut fates = Vec::new();
            for number in jobs {
                let mut ledger = ledger.lock().unwrap();
                let times = ledger.entry(number).or_default();
                *times += 1;
                fates.push((Fate::of(seed, number), *times == 1));
            }
            sleep(Duration::from_millis(fates.len() as u64)).await;
            let has = |fate| fates.contains(&fate);
            if has((Fate::Panics, true)) || has((Fate::Panics, false)) {
                panic!("a job of this batch panics");
            }
            if has((Fate::PanicsOnce, true)) {
                panic!("a job of this batch panics once");
            }
            if has((Fate::FailsBatchOnce, true)) {
                return Err("the batch fails".to_owned());
            }
            let verdict = |(fate, first)| match (fate, first) {
                (Fate::Fails, _) | (Fate::FailsOnce, true) => Verdict::Retry {
                    after: Duration::from_millis(3),
                    reason: "it fails".to_owned(),
                },
                (Fate::Dead, _) => Verdict::Dead {
                    reason: "it was said to be dead".to_owned(),
                },
                _ => Verdict::Done,
            };
            Ok(fates.into_iter().map(verdict).collect())
        }
    }
}

const CALLERS: u32 = 10;
const JOBS_EACH: u32 = 10;
const MAX_ATTEMPTS: u32 = 12;

/// Submits by many callers, drains, stops, and compares what is left with what was
/// promised. The store is looked at without its faults.
/// Returns how many calls failed by the seed, and how many of them were the drain's.
async fn round<S>(store: Faulty<S>, seed: u64) -> [u64; 2]
where
    S: DeadLetters,
{
    let ledger = Ledger::default();
    let cancel = CancellationToken::new();
    let drain = Drain::builder(store.clone(), processor(seed, Arc::clone(&ledger)))
        .max_batch_size(8)
        .max_in_flight(1 + (seed % 3) as usize)
        .max_attempts(MAX_ATTEMPTS)
        .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(2)))
        .build()
        .unwrap();
    let drain = tokio::spawn(drain.run(cancel.clone()));
    let durable = Durable::<u32>::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let durable = durable.clone();
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for n in 0..JOBS_EACH {
                    // Neighbours submit the same job, and each does so until it is told.
                    let number = (caller / 2) * JOBS_EACH + n;
                    let answer = loop {
                        match durable.submit(id(number), number).await {
                            Ok(answer) => break answer,
                            Err(_) => sleep(Duration::from_millis(1)).await,
                        }
                    };
                    assert!(answer.is_accepted());
                    accepted.push(number);
                }
                accepted
            })
        })
        .collect();
    let mut accepted = Vec::new();
    for caller in callers {
        accepted.extend(caller.await.unwrap());
    }
    let pending = async || store.get_ref().depth().await.unwrap().pending();
    while pending().await > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    cancel.cancel();
    let drained = timeout(Duration::from_secs(60), drain)
        .await
        .expect("the drain ends when it is cancelled")
        .unwrap()
        .expect("the store takes back what was leased");
    durable.shutdown().await.unwrap();

    let depth = store.get_ref().depth().await.unwrap();
    let dead = store.get_ref().list(None, 999).await.unwrap();
    assert_eq!((depth.pending(), depth.oldest), (0, None));
    assert_eq!(depth.dead, dead.len() as u64);
    let reasons: BTreeMap<&str, &str> =
        dead.iter().map(|dead| (&*dead.id, &*dead.reason)).collect();
    let ledger = ledger.lock().unwrap();
    for number in accepted {
        let reason = reasons.get(&*id(number)).copied();
        let times = ledger.get(&number).copied().unwrap_or_default();
        match (Fate::of(seed, number), reason) {
            // Only by lost answers, each of which counts.
            (_, Some(reason)) if reason.contains("never settled") => {
                assert!(times < MAX_ATTEMPTS, "{number} was processed {times} times");
                continue;
            }
            (Fate::Dead, Some(reason)) => assert!(reason.contains("said to be"), "{reason}"),
            (Fate::Fails, Some(reason)) => assert!(reason.contains("it fails"), "{reason}"),
            (Fate::Panics, Some(reason)) => assert!(reason.contains("panic"), "{reason}"),
            (Fate::Dead | Fate::Fails | Fate::Panics, None) => panic!("{number} is not dead"),
            (_, Some(reason)) => panic!("{number} is dead: {reason}"),
            (_, None) => {}
        }
        assert!(times >= 1, "{number} was accepted and never processed");
    }
    [store.faults(), drained.store_errors]
}

fn id(number: u32) -> String {
    format!("job-{number}")
}

/// Names the seed if a round fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed is {}", self.0);
        }
    }
}

/// The seeds of a test: so many, or the one that `FAULTY_SEED` names.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let one = std::env::var("FAULTY_SEED").ok();
    let one: Option<u64> = one.map(|seed| seed.parse().expect("`FAULTY_SEED` is a number"));
    one.map_or(0..count, |seed| seed..seed + 1)
}

/// Panics of the processor are part of the rounds; their messages are not worth a page.
fn mute_processor_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload().downcast_ref::<&str>();
            if message.is_none_or(|message| !message.starts_with("a job of this batch panics")) {
                others(panic);
            }
        }));
    });
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn a_drain_over_memory_that_fails() {
    mute_processor_panics();
    let mut faults = [0; 2];
    for seed in seeds(300) {
        let _named = Seed(seed);
        // The jitter of pauses comes from here.
        fastrand::seed(seed);
        let of_round = paused().block_on(async {
            let builder = MemoryStore::builder();
            let store = match seed % 2 {
                0 => builder.build(),
                _ => builder.lease_time(Duration::from_millis(200)).build(),
            };
            round(Faulty::new(store, seed), seed).await
        });
        faults = [faults[0] + of_round[0], faults[1] + of_round[1]];
    }
    assert!(faults[0] > faults[1] && faults[1] > 0, "{faults:?}");
}

#[tokio::test]
async fn a_drain_over_a_file_that_fails() {
    mute_processor_panics();
    for seed in seeds(6) {
        let _named = Seed(seed);
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(folder.path().join("jobs.redb"))
            .await
            .unwrap();
        round(Faulty::new(store.clone(), seed), seed).await;
        store.close().await;
    }
}

/// A store the first calls of which fail: an extension that is not done, or a settlement
/// whose answer is lost.
fn fails_first(store: &MemoryStore, extension: bool, settlement: bool) -> Hooked {
    let (extension, settlement) = (AtomicBool::new(extension), AtomicBool::new(settlement));
    Hooked::new(store, move |moment| {
        let fails = match moment {
            Moment::Extend => extension.swap(false, Ordering::Relaxed),
            Moment::Settled => settlement.swap(false, Ordering::Relaxed),
            _ => false,
        };
        if fails { Err(NoRoom) } else { Ok(()) }
    })
}

/// Drains one job whose processing is `process`.
async fn drain_one<F>(
    store: &MemoryStore,
    hooked: Hooked,
    process: impl Fn() -> F + Send + Sync + 'static,
) -> Drained
where
    F: Future<Output = ()> + Send + 'static,
{
    fill(store, [1]).await;
    let processor = move |jobs: Vec<u32>| {
        let processed = process();
        async move {
            processed.await;
            Ok::<_, String>(vec![(); jobs.len()])
        }
    };
    drain_all(store, Drain::builder(hooked, processor)).await
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_failed_is_repeated_while_the_lease_holds() {
    let store = MemoryStore::builder()
        .lease_time(Duration::from_secs(30))
        .build();
    let hooked = fails_first(&store, true, false);
    let drained = drain_one(&store, hooked, || sleep(Duration::from_secs(200))).await;
    assert_eq!((drained.done, drained.lost), (1, 0));
    assert_eq!((drained.batches, drained.store_errors), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_answer_was_lost_is_neither_done_nor_lost() {
    let store = MemoryStore::new();
    let hooked = fails_first(&store, false, true);
    let drained = drain_one(&store, hooked, async || ()).await;
    assert_eq!((drained.done, drained.lost, drained.unknown), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_done_on_a_lost_lease_is_not_counted_as_done() {
    let store = MemoryStore::new();
    let first = AtomicBool::new(true);
    let restarted = store.clone();
    let process = move || {
        if first.swap(false, Ordering::Relaxed) {
            restarted.restart();
        }
        std::future::ready(())
    };
    let hooked = fails_first(&store, false, false);
    let drained = drain_one(&store, hooked, process).await;
    assert_eq!((drained.done, drained.lost, drained.batches), (1, 1, 2));
}
