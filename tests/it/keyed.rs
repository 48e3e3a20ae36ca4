//! Batches that hold one key each.

mod bombs;
mod flush;
mod keys;
mod live;
mod order;
mod overall;
mod turns;

pub(crate) use keys::{Fuse, Key, Place};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use microbatch::{
    BuildError, CancellationToken, JobError, Keyed, KeyedBuilder, KeyedProcessor, ShutdownTimeout,
    TrySubmitError,
};
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use crate::support::settle_now;

const SECOND: Duration = Duration::from_secs(1);

/// Processes for a second of virtual time, and notes what was processed when.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    batches: Vec<(&'static str, Vec<u32>)>,
    running: HashMap<&'static str, usize>,
    most_of_a_key: usize,
    most_overall: usize,
}

impl Log {
    fn batches(&self) -> Vec<(&'static str, Vec<u32>)> {
        self.0.lock().unwrap().batches.clone()
    }

    fn jobs_of(&self, key: &str) -> Vec<u32> {
        let of_key = |(of, jobs)| if of == key { jobs } else { vec![] };
        self.batches().into_iter().flat_map(of_key).collect()
    }
}

impl KeyedProcessor<&'static str, u32, u32> for Log {
    type Error = String;

    async fn process(&self, key: &'static str, jobs: Vec<u32>) -> Result<Vec<u32>, String> {
        {
            let mut log = self.0.lock().unwrap();
            *log.running.entry(key).or_default() += 1;
            log.most_of_a_key = log.most_of_a_key.max(log.running[key]);
            log.most_overall = log.most_overall.max(log.running.values().sum());
            log.batches.push((key, jobs.clone()));
        }
        sleep(SECOND).await;
        *self.0.lock().unwrap().running.get_mut(key).unwrap() -= 1;
        Ok(jobs)
    }
}

fn logged(log: &Log) -> KeyedBuilder<&'static str, u32, u32, Log> {
    Keyed::builder(log.clone())
}

fn echo<K, J>() -> KeyedBuilder<K, J, J, impl KeyedProcessor<K, J, J>>
where
    K: Clone + Eq + std::hash::Hash + Send + Sync + 'static,
    J: Send + 'static,
{
    Keyed::builder(|_key, jobs: Vec<J>| async move { Ok::<_, String>(jobs) })
}

fn running<K, J, R, P>(builder: KeyedBuilder<K, J, R, P>) -> Keyed<K, J, R>
where
    K: Clone + Eq + std::hash::Hash + Send + Sync + 'static,
    J: Send + 'static,
    R: Send + 'static,
    P: KeyedProcessor<K, J, R>,
{
    builder.build_running(CancellationToken::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_jobs_of_one_key() {
    let log = Log::default();
    let keyed = running(logged(&log));
    let keys = ["a", "b", "a", "c", "b", "a", "b"];
    let handles: Vec<_> = keys
        .iter()
        .zip(0..)
        .map(|(key, n)| keyed.submit(key, n))
        .collect();
    for (handle, n) in handles.into_iter().zip(0..) {
        assert_eq!(handle.await.unwrap(), n);
    }
    let mut batches = log.batches();
    batches.sort();
    let expected = [("a", vec![0, 2, 5]), ("b", vec![1, 4, 6]), ("c", vec![3])];
    assert_eq!(batches, expected);
}

#[tokio::test(start_paused = true)]
async fn each_key_has_an_interval_of_its_own() {
    let keyed = Keyed::new_running(CancellationToken::new(), |_, jobs: Vec<u8>| async move {
        Ok::<_, String>(jobs)
    });
    let start = Instant::now();
    let first = keyed.submit("a", 1);
    sleep(SECOND / 2).await;
    let second = keyed.submit("b", 2);
    first.await.unwrap();
    assert_eq!(start.elapsed(), SECOND);
    second.await.unwrap();
    assert_eq!(start.elapsed(), SECOND * 3 / 2);
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_key_are_processed_in_order_and_its_batches_one_by_one() {
    let log = Log::default();
    let keyed = running(logged(&log));
    let handles: Vec<_> = (0..40)
        .flat_map(|n| ["a", "b"].map(|key| keyed.submit(key, n)))
        .collect();
    join_all(handles).await;
    // And again, after both keys have fallen idle.
    assert_eq!(keyed.live_keys(), 0);
    for n in 40..43 {
        keyed.submit("a", n).await.unwrap();
    }
    assert_eq!(log.jobs_of("a"), (0..43).collect::<Vec<_>>());
    assert_eq!(log.jobs_of("b"), (0..40).collect::<Vec<_>>());
    assert_eq!(log.0.lock().unwrap().most_of_a_key, 1);
}

/// Keys come and go all the time here, and each one must still have a single
/// micro-batcher at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_that_comes_and_goes_never_has_two_batches_at_once() {
    let busy: Arc<[AtomicBool; 3]> = Arc::default();
    let builder = Keyed::builder(move |key: usize, jobs: Vec<u64>| {
        let busy = Arc::clone(&busy);
        async move {
            assert!(!busy[key].swap(true, Ordering::SeqCst), "two at once");
            yield_now().await;
            assert!(busy[key].swap(false, Ordering::SeqCst));
            Ok::<_, String>(jobs)
        }
    });
    let keyed = running(builder.options(|options| options.flush_when_idle(true)));
    let callers = (0..16).map(|caller| {
        let keyed = keyed.clone();
        tokio::spawn(async move {
            for n in 0..500 {
                let job = caller * 1000 + n;
                let result = keyed.submit((job % 3) as usize, job).await;
                assert_eq!(result.unwrap(), job);
            }
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    keyed.shutdown().await.unwrap();
    assert_eq!(keyed.live_keys(), 0);
}

#[tokio::test(start_paused = true)]
async fn limits_of_batches_in_flight_hold_and_are_used() {
    let keys: Vec<&'static str> = (b'a'..=b'z')
        .map(|c| &*String::leak((c as char).to_string()))
        .collect();
    for (overall, per_key) in [(1, 1), (4, 1), (26, 1), (5, 2), (100, 3), (usize::MAX, 3)] {
        let log = Log::default();
        let keyed = running(
            logged(&log)
                .max_in_flight_overall(overall)
                .options(move |options| options.max_batch_size(2).max_in_flight(per_key)),
        );
        let jobs = keys.iter().flat_map(|key| (0..12).map(move |n| (key, n)));
        join_all(jobs.map(|(key, n)| keyed.submit(key, n))).await;
        let log = log.0.lock().unwrap();
        assert_eq!(log.most_of_a_key, per_key, "{overall} {per_key}");
        assert_eq!(
            log.most_overall,
            overall.min(26 * per_key),
            "{overall} {per_key}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn ten_batches_are_in_flight_overall_by_default() {
    let most = Arc::new(AtomicUsize::new(0));
    let now = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let builder = Keyed::builder(move |_key: u32, jobs: Vec<u32>| {
        let (most, now) = (Arc::clone(&seen), Arc::clone(&now));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(SECOND).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, String>(jobs)
        }
    });
    let keyed = running(builder);
    join_all((0..40).map(|n| keyed.submit(n, n))).await;
    assert_eq!(most.load(Ordering::SeqCst), 10);
}

#[tokio::test(start_paused = true)]
async fn a_flooded_key_holds_another_up_by_one_batch_at_most() {
    let log = Log::default();
    let keyed = running(
        logged(&log)
            .max_in_flight_overall(1)
            .options(|options| options.queue_capacity(10_000).flush_when_idle(true)),
    );
    let flood: Vec<_> = (0..3000).map(|n| keyed.submit("flooded", n)).collect();
    settle_now().await;
    let mut worst = Duration::ZERO;
    for n in 0..50 {
        sleep(Duration::from_millis(u64::from(n) * 37)).await;
        let start = Instant::now();
        keyed.submit("quiet", n).await.unwrap();
        worst = worst.max(start.elapsed());
    }
    // What is left of the batch that runs, and its own.
    assert!(worst <= 2 * SECOND, "{worst:?}");
    assert!(worst > SECOND, "{worst:?}");
    assert!(!flood[2999].is_finished());
}

#[tokio::test(start_paused = true)]
async fn flooded_keys_get_equal_shares_and_a_quiet_one_waits_for_a_round() {
    const FLOODED: [&str; 5] = ["a", "b", "c", "d", "e"];
    let log = Log::default();
    let keyed = running(
        logged(&log)
            .max_in_flight_overall(2)
            .options(|options| options.queue_capacity(10_000).flush_when_idle(true)),
    );
    let mut handles = Vec::new();
    // One after the other, and some with a far greater backlog.
    for (key, jobs) in FLOODED.into_iter().zip([3000, 600, 300, 3000, 900]) {
        handles.extend((0..jobs).map(|n| keyed.submit(key, n)));
    }
    settle_now().await;
    let mut worst = Duration::ZERO;
    for n in 0..30 {
        let start = Instant::now();
        keyed.submit("quiet", n).await.unwrap();
        worst = worst.max(start.elapsed());
    }
    // Six keys, two at a time: a round takes three seconds.
    assert!(worst <= 4 * SECOND, "{worst:?}");
    let batches = |key| log.batches().iter().filter(|(of, _)| *of == key).count();
    let shares = FLOODED.map(batches);
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(*least >= 29 && most - least <= 1, "{shares:?}");
}

/// Keys are counted by a token that each of them holds.
#[derive(Clone)]
struct Counted(u32, #[allow(dead_code)] Arc<()>);

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Counted {}
impl std::hash::Hash for Counted {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_fall_idle_leave_nothing_behind() {
    let token = Arc::new(());
    let keyed = running(echo().options(|options| options.flush_when_idle(true)));
    for wave in 0..100 {
        let keys = (0..1000).map(|n| Counted(wave * 1000 + n, Arc::clone(&token)));
        let handles: Vec<_> = keys.map(|key| keyed.submit(key, [0_u8; 100])).collect();
        assert_eq!(keyed.live_keys(), 1000);
        for handle in handles {
            handle.await.unwrap();
        }
        assert_eq!(keyed.live_keys(), 0);
    }
    // The loops of the last wave end in their own time.
    for _ in 0..50 {
        settle_now().await;
    }
    assert_eq!(Arc::strong_count(&token), 1, "keys are still held");
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    keyed.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_lives_as_long_as_it_has_jobs() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| options.max_batch_size(1)));
    let handles: Vec<_> = (0..3).map(|n| keyed.submit("a", n)).collect();
    let other = keyed.submit("b", 0);
    for (n, handle) in handles.into_iter().enumerate() {
        assert_eq!(keyed.live_keys(), if n == 0 { 2 } else { 1 });
        handle.await.unwrap();
    }
    other.await.unwrap();
    assert_eq!(keyed.live_keys(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_batch_fails_hurts_no_other() {
    let builder = Keyed::builder(|key: &'static str, mut jobs: Vec<u32>| async move {
        match key {
            "fails" => return Err("no disk".to_owned()),
            "panics" => panic!("key {key}"),
            "loses" => drop(jobs.pop()),
            _ => {}
        }
        Ok(jobs)
    });
    let keyed = running(builder.max_in_flight_overall(1));
    for round in 0..3 {
        let keys = ["fails", "panics", "loses", "works"];
        let mut results = join_all(keys.map(|key| keyed.submit(key, round))).await;
        assert_eq!(results.pop().unwrap().unwrap(), round);
        let errors: Vec<_> = results.into_iter().map(Result::unwrap_err).collect();
        assert!(matches!(&errors[0], JobError::Failed(cause) if cause.to_string() == "no disk"));
        assert!(matches!(&errors[1], JobError::Panicked(message) if &**message == "key panics"));
        assert!(matches!(
            errors[2],
            JobError::ResultCount {
                expected: 1,
                actual: 0
            }
        ));
    }
    assert_eq!(keyed.live_keys(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_future_fails_its_batch_and_gives_the_turn_back() {
    let panic = Arc::new(AtomicBool::new(true));
    let first = Arc::clone(&panic);
    let builder = Keyed::builder(move |_key: u8, jobs: Vec<u8>| {
        assert!(!first.swap(false, Ordering::SeqCst), "before");
        async move { Ok::<_, String>(jobs) }
    });
    let keyed = running(builder.max_in_flight_overall(1));
    let error = keyed.submit(1, 1).await.unwrap_err();
    assert!(matches!(error, JobError::Panicked(message) if &*message == "before"));
    assert_eq!(keyed.submit(1, 2).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_holds_up_its_own_key_alone() {
    let log = Log::default();
    let keyed =
        running(logged(&log).options(|options| options.max_batch_size(1).queue_capacity(1)));
    let mut accepted = vec![keyed.submit("a", 0)];
    settle_now().await; // in flight
    accepted.push(keyed.submit("a", 1));
    settle_now().await; // pending
    accepted.push(keyed.submit("a", 2)); // queued
    assert_eq!(
        keyed.try_submit("a", 3).unwrap_err(),
        TrySubmitError::Full(3)
    );
    let mut waiting = keyed.submit("a", 4);
    assert!(timeout(SECOND / 10, waiting.accepted()).await.is_err());
    drop(waiting); // withdrawn
    assert_eq!(keyed.try_submit("b", 5).unwrap().await.unwrap(), 5);
    join_all(accepted).await;
    settle_now().await;
    assert_eq!(log.jobs_of("a"), [0, 1, 2]);
    assert_eq!(keyed.live_keys(), 0);
}

#[tokio::test(start_paused = true)]
async fn withdrawn_jobs_let_their_key_go() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| options.cancel_on_drop(true)));
    drop(keyed.submit("a", 1));
    assert_eq!(keyed.live_keys(), 0);
    keyed.flush().await;
    assert!(log.batches().is_empty());
    settle_now().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_handle_leaves_the_job_to_be_processed() {
    let log = Log::default();
    let keyed = running(logged(&log));
    drop(keyed.submit("a", 1));
    sleep(SECOND * 3).await;
    assert_eq!(log.jobs_of("a"), [1]);
    assert_eq!(keyed.live_keys(), 0);
}

#[tokio::test(start_paused = true)]
async fn weights_and_storages_are_those_of_the_key() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| {
        options
            .max_batch_size(10)
            .max_batch_weight(10, |entry| {
                let heavier = if *entry.key() == "heavy" { 2 } else { 1 };
                *entry.job() as usize * heavier
            })
            .storage(microbatch::MemoryStorage::new())
    }));
    let heavy: Vec<_> = (0..4).map(|_| keyed.submit("heavy", 2)).collect();
    let light: Vec<_> = (0..4).map(|_| keyed.submit("light", 2)).collect();
    join_all(heavy.into_iter().chain(light)).await;
    let mut sizes: Vec<_> = log
        .batches()
        .iter()
        .map(|(key, jobs)| (*key, jobs.len()))
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [("heavy", 2), ("heavy", 2), ("light", 4)]);

    let refused = keyed.try_submit("heavy", 6).unwrap_err();
    assert_eq!(refused, TrySubmitError::TooHeavy(6));
    let error = keyed.submit("heavy", 6).await.unwrap_err();
    assert!(matches!(
        error,
        JobError::TooHeavy {
            weight: 12,
            limit: 10
        }
    ));
    assert_eq!(keyed.live_keys(), 0, "a refused job makes no key");
}

#[tokio::test(start_paused = true)]
async fn flush_means_all_keys() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| options.interval(Duration::MAX)));
    let handles = ["a", "b", "c"].map(|key| keyed.submit(key, 1));
    let start = Instant::now();
    keyed.flush().await;
    assert_eq!(start.elapsed(), SECOND);
    assert!(handles.iter().all(microbatch::JobHandle::is_finished));
    keyed.flush().await; // nothing to wait for
    assert_eq!(start.elapsed(), SECOND);
}

#[tokio::test]
async fn bad_options_are_refused_by_build_and_by_name() {
    let refused = |builder: KeyedBuilder<u8, u8, u8, _>| {
        builder.build_running(CancellationToken::new()).unwrap_err()
    };
    let error = refused(echo().max_in_flight_overall(0));
    assert_eq!(error, BuildError::Zero("max_in_flight_overall"));
    let error = refused(echo().options(|options| options.max_in_flight(0)));
    assert_eq!(error, BuildError::Zero("max_in_flight"));
    let error = refused(echo().options(|options| options.interval(Duration::ZERO)));
    assert_eq!(error, BuildError::Zero("interval"));
}

#[tokio::test(start_paused = true)]
async fn options_that_change_their_mind_refuse_the_job() {
    let calls = AtomicUsize::new(0);
    let keyed =
        running(echo::<u8, u8>().options(
            move |options| match calls.fetch_add(1, Ordering::SeqCst) {
                1 => options.max_batch_size(0),
                2 => panic!("no options"),
                _ => options,
            },
        ));
    let error = keyed.submit(1, 1).await.unwrap_err();
    let JobError::Failed(cause) = error else {
        panic!("{error:?}");
    };
    let cause = cause.downcast_ref::<BuildError>();
    assert_eq!(cause, Some(&BuildError::Zero("max_batch_size")));
    let error = keyed.try_submit(1, 1).unwrap().await.unwrap_err();
    assert!(matches!(error, JobError::Panicked(message) if &*message == "no options"));
    assert_eq!(keyed.submit(1, 1).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn shutdown_drains_all_keys_at_once_and_leaves_no_task() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| options.interval(Duration::MAX)));
    let keys = ["a", "b", "c", "d"];
    let handles: Vec<_> = (0..5)
        .flat_map(|n| keys.map(|key| keyed.submit(key, n)))
        .collect();
    let start = Instant::now();
    assert!(!keyed.is_closed());
    let (first, second) = tokio::join!(keyed.shutdown(), keyed.clone().shutdown());
    assert_eq!((first, second), (Ok(()), Ok(())));
    assert_eq!(start.elapsed(), 2 * SECOND); // five jobs of a key are two batches
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    for result in join_all(handles).await {
        result.unwrap();
    }
    assert!(keyed.is_closed());
    assert_eq!(keyed.live_keys(), 0);
    assert!(matches!(keyed.submit("a", 1).await, Err(JobError::Closed)));
    assert!(matches!(
        keyed.submit("new", 1).await,
        Err(JobError::Closed)
    ));
    assert_eq!(
        keyed.try_submit("a", 7).unwrap_err(),
        TrySubmitError::Closed(7)
    );
    assert_eq!(keyed.shutdown().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_token_stops_all_keys() {
    let log = Log::default();
    let cancel = CancellationToken::new();
    let keyed = logged(&log).build_running(cancel.clone()).unwrap();
    let handles = ["a", "b"].map(|key| keyed.submit(key, 1));
    cancel.cancel();
    assert!(keyed.is_closed());
    assert!(matches!(keyed.submit("a", 2).await, Err(JobError::Closed)));
    for handle in handles {
        handle.await.unwrap();
    }
    assert_eq!(keyed.shutdown().await, Ok(()));
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn shutdown_leaves_the_callers_token_alone() {
    let cancel = CancellationToken::new();
    let keyed = echo::<u8, u8>().build_running(cancel.clone()).unwrap();
    keyed.shutdown().await.unwrap();
    assert!(!cancel.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_one_stops_and_drains() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| options.interval(Duration::MAX)));
    let handles = ["a", "b"].map(|key| keyed.submit(key, 1));
    let clone = keyed.clone();
    drop(keyed);
    settle_now().await;
    assert!(log.batches().is_empty());
    drop(clone);
    for handle in handles {
        handle.await.unwrap();
    }
    settle_now().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_has_one_deadline_for_all_keys_and_counts_what_it_abandoned() {
    let log = Log::default();
    let keyed = running(
        logged(&log)
            .max_in_flight_overall(2)
            .options(|options| options.shutdown_timeout(SECOND * 5 / 2)),
    );
    // Seven batches, two at a time, a second each.
    let keys = ["a", "b", "c", "d", "e", "f", "g"];
    let handles: Vec<_> = keys
        .into_iter()
        .flat_map(|key| [keyed.submit(key, 1), keyed.submit(key, 2)])
        .collect();
    let start = Instant::now();
    let first = keyed.shutdown().await;
    assert_eq!(first, Err(ShutdownTimeout { abandoned: 6 }));
    let took = start.elapsed();
    assert!(
        took >= SECOND * 5 / 2 && took < SECOND * 27 / 10,
        "{took:?}"
    );
    assert_eq!(keyed.shutdown().await, first);
    let results = join_all(handles).await;
    let abandoned = |result: &&Result<u32, JobError>| matches!(result, Err(JobError::Abandoned));
    assert_eq!(results.iter().filter(abandoned).count(), 6);
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 8);
    assert_eq!(keyed.live_keys(), 0);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_room_is_refused_by_a_stop() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| options.queue_capacity(1)));
    let first = keyed.submit("a", 1);
    let mut second = keyed.submit("a", 2);
    assert!(second.accepted().now_or_never().is_none()); // a waiter
    keyed.shutdown().await.unwrap();
    first.await.unwrap();
    // The room may have come before the stop was received, or not.
    match second.await {
        Ok(result) => assert_eq!(result, 2),
        Err(error) => assert!(matches!(error, JobError::Closed), "{error:?}"),
    }
    assert_eq!(keyed.live_keys(), 0);
}

/// Its job is no waiter yet, so no stop can refuse it, nor need it wait.
#[tokio::test(start_paused = true)]
async fn a_handle_that_is_not_polled_does_not_hold_up_a_stop() {
    let log = Log::default();
    let keyed = running(logged(&log).options(|options| options.queue_capacity(1)));
    let first = keyed.submit("a", 1);
    let second = keyed.submit("a", 2);
    keyed.shutdown().await.unwrap();
    assert_eq!(first.await.unwrap(), 1);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    assert_eq!(second.await.unwrap(), 2, "it waited, and got room");
    assert_eq!(keyed.live_keys(), 0);
}

/// The options of a key are made without the lock, so another may be faster
/// with the same key; here it is the options themselves.
#[tokio::test(start_paused = true)]
async fn a_key_that_two_bring_to_life_at_once_has_one_micro_batcher() {
    let log = Log::default();
    let calls = AtomicUsize::new(0);
    type Slot = Mutex<Option<Keyed<&'static str, u32, u32>>>;
    let shared: Arc<Slot> = Arc::default();
    let faster = Arc::new(Mutex::new(Vec::new()));
    let (inside, handles) = (Arc::clone(&shared), Arc::clone(&faster));
    let keyed = running(logged(&log).options(move |options| {
        let keyed = inside.lock().unwrap().clone();
        match (calls.fetch_add(1, Ordering::SeqCst), keyed) {
            (1, Some(keyed)) => handles.lock().unwrap().push(keyed.submit("a", 1)),
            (3, Some(keyed)) => drop(keyed.shutdown().now_or_never()),
            _ => {}
        }
        options
    }));
    *shared.lock().unwrap() = Some(keyed.clone());
    let second = keyed.submit("a", 2);
    let third = keyed.submit("a", 3);
    assert_eq!(keyed.live_keys(), 1);
    let first = faster.lock().unwrap().pop().unwrap();
    for (result, n) in join_all([first, second, third]).await.into_iter().zip(1..) {
        assert_eq!(result.unwrap(), n);
    }
    assert_eq!(log.batches(), [("a", vec![1, 2, 3])]);
    // And here the stop is faster.
    assert!(matches!(keyed.submit("b", 4).await, Err(JobError::Closed)));
    *shared.lock().unwrap() = None;
    assert_eq!(keyed.shutdown().await, Ok(()));
    assert_eq!(log.batches().len(), 1);
}

#[test]
fn a_runtime_that_is_gone_answers_every_job() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let keyed = {
        let _context = runtime.enter();
        running(echo::<u8, u8>().options(|options| options.interval(Duration::MAX)))
    };
    let handle = keyed.submit(1, 1);
    drop(runtime);
    assert!(matches!(handle.blocking_wait(), Err(JobError::Abandoned)));
    assert!(matches!(
        keyed.submit(1, 1).blocking_wait(),
        Err(JobError::Closed)
    ));
    assert!(matches!(
        keyed.submit(2, 1).blocking_wait(),
        Err(JobError::Closed)
    ));
    assert_eq!(keyed.live_keys(), 0);
    let other = tokio::runtime::Runtime::new().unwrap();
    assert_eq!(other.block_on(keyed.shutdown()), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_outside_the_runtime_may_submit() {
    let keyed = running(echo::<u8, u32>().options(|options| options.flush_when_idle(true)));
    let threads: Vec<_> = (0..4_u8)
        .map(|key| {
            let keyed = keyed.clone();
            std::thread::spawn(move || {
                for n in 0..50 {
                    assert_eq!(keyed.submit(key, n).blocking_wait().unwrap(), n);
                }
            })
        })
        .collect();
    for thread in threads {
        tokio::task::spawn_blocking(|| thread.join().unwrap())
            .await
            .unwrap();
    }
}

/// Everything that was accepted is processed before `shutdown` returns, and
/// nothing is accepted or processed after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_among_callers_is_total() {
    for round in 0..50 {
        let processed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&processed);
        let builder = Keyed::builder(move |_key: u64, jobs: Vec<u64>| {
            let count = Arc::clone(&count);
            async move {
                yield_now().await;
                count.fetch_add(jobs.len(), Ordering::SeqCst);
                Ok::<_, String>(jobs)
            }
        });
        let keyed = running(builder.options(|options| options.flush_when_idle(true)));
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let keyed = keyed.clone();
                tokio::spawn(async move {
                    let mut done = 0;
                    for n in 0_u64.. {
                        match keyed.submit(n % (3 + caller), n).await {
                            Ok(result) => assert_eq!(result, n),
                            Err(JobError::Closed) => break,
                            Err(error) => panic!("{error}"),
                        }
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        for _ in 0..round {
            yield_now().await;
        }
        keyed.shutdown().await.unwrap();
        let at_the_end = processed.load(Ordering::SeqCst);
        let mut done = 0;
        for caller in callers {
            done += caller.await.unwrap();
        }
        assert_eq!(done, at_the_end);
        assert_eq!(processed.load(Ordering::SeqCst), at_the_end);
        assert_eq!(keyed.live_keys(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn debug_shows_counts_and_no_jobs() {
    let keyed = running(echo::<u8, &str>());
    let _job = keyed.submit(1, "secret");
    assert_eq!(
        format!("{keyed:?}"),
        "Keyed { live_keys: 1, closed: false, .. }"
    );
    let builder = format!("{:?}", echo::<u8, u8>());
    assert_eq!(
        builder,
        "KeyedBuilder { max_in_flight_overall: 10, queue_capacity_overall: 10000, .. }"
    );
}

/// Ids over keys: the tracked micro-batcher hands each of its batches on to the
/// keys, and there jobs meet those of other batches.
#[cfg(feature = "tracked")]
#[tokio::test(start_paused = true)]
async fn jobs_of_keys_may_be_tracked() {
    use microbatch::{JobStatus, Tracked};

    let log = Log::default();
    let keyed = running(logged(&log));
    let on = keyed.clone();
    let tracked = Tracked::builder(move |jobs: Vec<(&'static str, u32)>| {
        let handles: Vec<_> = jobs
            .into_iter()
            .map(|(key, job)| on.submit(key, job))
            .collect();
        async move { Ok::<_, String>(join_all(handles).await) }
    })
    .options(|options| options.flush_when_idle(true).max_in_flight(100))
    .build_running(CancellationToken::new())
    .unwrap();

    for n in 0..6 {
        let key = if n % 2 == 0 { "even" } else { "odd" };
        tracked.submit(n, (key, n)).accepted().await.unwrap();
        settle_now().await;
    }
    assert!(matches!(tracked.status(&0), Some(JobStatus::Processing)));
    tracked.shutdown().await.unwrap();
    for n in 0..6 {
        let status = tracked.status(&n);
        assert!(matches!(status, Some(JobStatus::Completed(Ok(Ok(result)))) if result == n));
    }
    let mut batches = log.batches();
    batches.sort_unstable();
    assert_eq!(batches, [("even", vec![0, 2, 4]), ("odd", vec![1, 3, 5])]);
}

/// The loop of a key that falls idle ends, and its last batch is not quite over
/// then. It once was abandoned where that took longer than a stop may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_falls_idle_gives_its_last_batch_all_the_time() {
    fn block() {
        // It takes the place of the loop, which would be next on this thread,
        // so that another thread takes the loop up.
        tokio::spawn(async {});
        std::thread::sleep(Duration::from_millis(50));
    }
    #[derive(Debug)]
    struct Slow;
    impl From<Slow> for Box<dyn std::error::Error + Send + Sync> {
        fn from(Slow: Slow) -> Self {
            block();
            "slow".into()
        }
    }
    let builder = Keyed::builder(|key: u8, jobs: Vec<u8>| async move {
        if key == 0 { Err(Slow) } else { Ok(jobs) }
    });
    let keyed = running(builder.options(|options| {
        options
            .flush_when_idle(true)
            .shutdown_timeout(Duration::from_millis(1))
            .on_batch(|_| block())
    }));
    let failed = keyed.submit(0, 1).await;
    assert!(matches!(failed, Err(JobError::Failed(_))), "{failed:?}");
    assert_eq!(keyed.submit(1, 1).await.unwrap(), 1);
    assert_eq!(keyed.shutdown().await, Ok(()));
}
