//! Draining: its rules, one by one, over the store in memory and in virtual time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::ConstantBuilder;
use microbatch::{BatchProcessorExt, BuildError};
use microbatch_durable::{
    CancellationToken, DeadLetters, Drain, DrainError, Drained, IntoVerdict, MemoryLease,
    MemoryStore, NewJob, Store, Verdict,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Hooked, Moment, NoRoom, drain_all, fill};

/// The batches that a processor saw.
type Seen = Arc<Mutex<Vec<Vec<u32>>>>;

fn dead_ids(dead: &[microbatch_durable::DeadJob]) -> Vec<&str> {
    dead.iter().map(|job| &*job.id).collect()
}

#[tokio::test(start_paused = true)]
async fn jobs_are_processed_in_the_order_appended_and_in_full_batches() {
    let store = MemoryStore::new();
    fill(&store, 0..250).await;
    let seen = Seen::default();
    let record = Arc::clone(&seen);
    let drained = drain_all(
        &store,
        Drain::builder(store.clone(), move |jobs: Vec<u32>| {
            let results = vec![(); jobs.len()];
            record.lock().unwrap().push(jobs);
            async move { Ok::<_, String>(results) }
        }),
    )
    .await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.concat(), (0..250).collect::<Vec<_>>());
    // The first lease asks for one, because nothing is known of what waits.
    assert_eq!(
        seen.iter().map(Vec::len).collect::<Vec<_>>(),
        [1, 100, 100, 49]
    );
    assert_eq!(
        (drained.done, drained.batches, drained.store_errors),
        (250, 4, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_is_tried_again_in_smaller_ones_and_only_the_guilty_is_dead() {
    let store = MemoryStore::new();
    fill(&store, 0..100).await;
    let seen = Seen::default();
    let record = Arc::clone(&seen);
    let processor = move |jobs: Vec<u32>| {
        record.lock().unwrap().push(jobs.clone());
        async move {
            match jobs.contains(&37) {
                true => Err(std::io::Error::other("row 37 does not fit")),
                false => Ok(vec![(); jobs.len()]),
            }
        }
    };
    let drained = drain_all(&store, Drain::builder(store.clone(), processor)).await;
    assert_eq!((drained.done, drained.dead), (99, 1));
    let dead = store.list(None, 10).await.unwrap();
    assert_eq!(dead_ids(&dead), ["00037"]);
    assert_eq!(dead[0].attempt, 5);
    assert_eq!(
        dead[0].reason,
        "failed alone on attempt 5, its last: row 37 does not fit"
    );
    let sizes: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .filter(|jobs| jobs.contains(&37))
        .map(Vec::len)
        .collect();
    assert_eq!(sizes.len(), 5);
    for (attempt, size) in sizes.into_iter().enumerate() {
        assert!(
            size <= 100 >> attempt,
            "attempt {} in company of {size}",
            attempt + 1
        );
        assert!(attempt < 4 || size == 1, "the last attempt is alone");
    }
}

#[tokio::test(start_paused = true)]
async fn redelivered_jobs_share_no_batch_with_fresh_ones() {
    let store = MemoryStore::new();
    let attempts: Arc<Mutex<HashMap<u32, u32>>> = Arc::default();
    let counted = Arc::clone(&attempts);
    let processor = move |jobs: Vec<u32>| {
        let mut attempts = counted.lock().unwrap();
        let tries: Vec<_> = jobs
            .iter()
            .map(|job| {
                let tries = attempts.entry(*job).or_default();
                *tries += 1;
                *tries
            })
            .collect();
        assert!(tries.iter().all(|other| *other == tries[0]), "{tries:?}");
        // Each third job fails once, each fifteenth twice.
        let results: Vec<_> = jobs
            .iter()
            .zip(tries)
            .map(|(job, tries)| match (job % 15, tries) {
                (0, 1 | 2) | (3 | 6 | 9 | 12, 1) => Err("not yet"),
                _ => Ok(()),
            })
            .collect();
        async move { Ok::<_, String>(results) }
    };
    let builder = Drain::builder(store.clone(), processor)
        .max_batch_size(10)
        .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(30)));
    let filling = async {
        for chunk in 0..60 {
            fill(&store, chunk * 10..chunk * 10 + 10).await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    let cancel = CancellationToken::new();
    let drain = tokio::spawn(builder.build().unwrap().run(cancel.clone()));
    filling.await;
    while store.depth().await.unwrap().pending() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    cancel.cancel();
    let drained = drain.await.unwrap().unwrap();
    assert_eq!((drained.done, drained.retried, drained.dead), (600, 240, 0));
}

#[tokio::test(start_paused = true)]
async fn errors_of_single_jobs_are_settled_one_by_one() {
    let store = MemoryStore::new();
    fill(&store, 0..10).await;
    let processor = |jobs: Vec<u32>| async move {
        let results = jobs.iter().map(|job| match job {
            3 => Verdict::Dead {
                reason: "no such user".to_owned(),
            },
            4 => Verdict::Dead {
                reason: String::new(),
            },
            _ => Verdict::Done,
        });
        Ok::<_, String>(results.collect())
    };
    let drained = drain_all(&store, Drain::builder(store.clone(), processor)).await;
    assert_eq!((drained.done, drained.dead, drained.retried), (8, 2, 0));
    let dead = store.list(None, 10).await.unwrap();
    assert_eq!(dead_ids(&dead), ["00003", "00004"]);
    assert_eq!(dead[0].reason, "no such user");
    assert!(!dead[1].reason.is_empty(), "a dead job has a reason");
}

#[tokio::test(start_paused = true)]
async fn bisect_finds_the_guilty_job_at_once() {
    let store = MemoryStore::new();
    fill(&store, 0..64).await;
    let processor = |jobs: Vec<u32>| async move {
        match jobs.contains(&7) {
            true => Err("seven"),
            false => Ok(vec![(); jobs.len()]),
        }
    };
    let builder = Drain::builder(store.clone(), processor.bisect()).max_attempts(3);
    let drained = drain_all(&store, builder).await;
    assert_eq!((drained.done, drained.retried, drained.dead), (63, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn each_retry_waits_for_the_backoff_of_its_own_attempt() {
    let store = MemoryStore::new();
    fill(&store, [1]).await;
    let times = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&times);
    let processor = move |_: Vec<u32>| {
        record.lock().unwrap().push(Instant::now());
        async { Err::<Vec<()>, _>("always") }
    };
    let backoff = backon::FibonacciBuilder::new()
        .with_min_delay(Duration::from_secs(10))
        .without_max_times()
        .with_max_delay(Duration::from_secs(1000));
    let builder = Drain::builder(store.clone(), processor)
        .backoff(backoff)
        .max_attempts(6);
    drain_all(&store, builder).await;
    let times = times.lock().unwrap();
    let pauses: Vec<_> = times
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_secs())
        .collect();
    assert_eq!(pauses, [10, 10, 20, 30, 50]);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_may_ask_for_a_longer_pause_than_the_backoff() {
    let store = MemoryStore::new();
    fill(&store, [1]).await;
    struct TooMany;
    impl IntoVerdict for TooMany {
        fn into_verdict(self, attempt: u32) -> Verdict {
            match attempt {
                1 => Verdict::Retry {
                    after: Duration::from_secs(90),
                    reason: "429".to_owned(),
                },
                _ => Verdict::Done,
            }
        }
    }
    let started = Instant::now();
    let processor = |_: Vec<u32>| async { Ok::<_, String>(vec![TooMany]) };
    drain_all(&store, Drain::builder(store.clone(), processor)).await;
    assert_eq!(started.elapsed().as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn panics_and_wrong_counts_fail_the_batch_alone() {
    let store = MemoryStore::new();
    fill(&store, 0..40).await;
    let processor = |jobs: Vec<u32>| {
        assert!(!jobs.contains(&5), "five before the future");
        async move {
            assert!(!jobs.contains(&11), "eleven in the future");
            let missing = usize::from(jobs.contains(&20));
            Ok::<_, String>(vec![(); jobs.len() - missing])
        }
    };
    let drained = drain_all(
        &store,
        Drain::builder(store.clone(), processor).max_attempts(3),
    )
    .await;
    assert_eq!((drained.done, drained.dead), (37, 3));
    let dead = store.list(None, 10).await.unwrap();
    assert_eq!(dead_ids(&dead), ["00005", "00011", "00020"]);
    assert!(
        dead[0]
            .reason
            .ends_with("the processor panicked: five before the future")
    );
    assert!(
        dead[1]
            .reason
            .ends_with("the processor panicked: eleven in the future")
    );
    assert!(
        dead[2]
            .reason
            .ends_with("the processor returned 0 results for 1 jobs")
    );
}

#[tokio::test(start_paused = true)]
async fn what_does_not_decode_is_dead_with_its_bytes_and_comes_back_by_revive() {
    let store = MemoryStore::new();
    let raw = |id: &str, codec: &str, payload: &'static str| NewJob {
        id: id.into(),
        codec: codec.into(),
        payload: payload.into(),
    };
    store
        .append(&[
            raw("a", "json", "1"),
            raw("b", "json", "{oops"),
            raw("c", "order/2", "2"),
        ])
        .await
        .unwrap();
    let processor = |jobs: Vec<u32>| async move { Ok::<_, String>(vec![(); jobs.len()]) };
    let drained = drain_all(&store, Drain::builder(store.clone(), processor)).await;
    assert_eq!((drained.done, drained.dead, drained.retried), (1, 2, 0));
    let dead = store.list(None, 10).await.unwrap();
    assert_eq!(dead[0].payload, "{oops");
    assert!(
        dead[0]
            .reason
            .starts_with("cannot be decoded as `json`: invalid type: map"),
        "{}",
        dead[0].reason
    );
    assert_eq!(
        dead[1].reason,
        "written by the codec `order/2`; this drain reads `json`"
    );
    // After a deploy: a drain that reads it.
    struct OrderV2;
    impl microbatch_durable::Codec<u32> for OrderV2 {
        const NAME: &'static str = "order/2";
        fn encode(
            &self,
            job: &u32,
        ) -> Result<bytes::Bytes, Box<dyn std::error::Error + Send + Sync>> {
            Ok(job.to_string().into())
        }
        fn decode(&self, payload: &[u8]) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
            Ok(std::str::from_utf8(payload)?.parse()?)
        }
    }
    assert_eq!(store.revive(&["c".into()]).await.unwrap(), [true]);
    let cancel = CancellationToken::new();
    let drain = Drain::builder(store.clone(), processor)
        .codec(OrderV2)
        .build()
        .unwrap();
    let run = tokio::spawn(drain.run(cancel.clone()));
    while store.depth().await.unwrap().pending() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    cancel.cancel();
    assert_eq!(run.await.unwrap().unwrap().done, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_too_often_is_dead_without_being_processed() {
    let store = MemoryStore::new();
    fill(&store, 0..4).await;
    // The process dies with each of the first two attempts.
    for _ in 0..2 {
        store.lease(3).await.unwrap();
        store.restart();
    }
    let seen = Seen::default();
    let record = Arc::clone(&seen);
    let processor = move |jobs: Vec<u32>| {
        let results = vec![(); jobs.len()];
        record.lock().unwrap().push(jobs);
        async move { Ok::<_, String>(results) }
    };
    let drained = drain_all(
        &store,
        Drain::builder(store.clone(), processor).max_attempts(2),
    )
    .await;
    assert_eq!((drained.done, drained.dead), (1, 3));
    assert_eq!(*seen.lock().unwrap(), [[3]]);
    for dead in store.list(None, 10).await.unwrap() {
        assert_eq!(dead.attempt, 3);
        assert_eq!(
            dead.reason,
            "delivered 2 times and never settled: its process died each time"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_counts_an_attempt_only_for_what_it_processed() {
    // A poison job kills the process; the drain is dropped as the death of it would, and
    // the store forgets its leases.
    let store = MemoryStore::new();
    fill(&store, 0..100).await;
    let mut deaths = 0;
    loop {
        let death = Arc::new(Notify::new());
        let die = Arc::clone(&death);
        let processor = move |jobs: Vec<u32>| {
            let die = Arc::clone(&die);
            async move {
                if jobs.contains(&41) {
                    die.notify_one();
                    std::future::pending::<()>().await;
                }
                Ok::<_, String>(vec![(); jobs.len()])
            }
        };
        let drain = Drain::builder(store.clone(), processor).build().unwrap();
        let cancel = CancellationToken::new();
        let empty = async {
            while store.depth().await.unwrap().pending() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let run = tokio::spawn(drain.run(cancel.clone()));
        tokio::select! {
            () = death.notified() => {
                // What the dead drain still says reaches nobody.
                store.restart();
                run.abort();
                let _ = run.await;
                deaths += 1;
            }
            () = empty => {
                cancel.cancel();
                run.await.unwrap().unwrap();
                break;
            }
        }
    }
    assert_eq!(deaths, 5);
    let dead = store.list(None, 100).await.unwrap();
    assert_eq!(dead_ids(&dead), ["00041"]);
}

#[tokio::test(start_paused = true)]
async fn leases_are_extended_while_their_batch_runs() {
    let store = MemoryStore::builder()
        .lease_time(Duration::from_secs(30))
        .build();
    fill(&store, 0..10).await;
    let processor = |jobs: Vec<u32>| async move {
        sleep(Duration::from_secs(600)).await;
        Ok::<_, String>(vec![(); jobs.len()])
    };
    let drained = drain_all(&store, Drain::builder(store.clone(), processor)).await;
    assert_eq!((drained.done, drained.lost, drained.batches), (10, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_batch_all_of_whose_leases_are_lost_is_dropped() {
    struct Dropped(Arc<Mutex<u32>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let store = MemoryStore::builder()
        .lease_time(Duration::from_secs(30))
        .build();
    fill(&store, 0..1).await;
    let dropped = Arc::new(Mutex::new(0));
    let (count, calls) = (Arc::clone(&dropped), Arc::new(Mutex::new(0)));
    let processor = move |jobs: Vec<u32>| {
        let guard = Dropped(Arc::clone(&count));
        *calls.lock().unwrap() += 1;
        let first = *calls.lock().unwrap() == 1;
        async move {
            let _guard = guard;
            if first {
                std::future::pending::<()>().await;
            }
            Ok::<_, String>(vec![(); jobs.len()])
        }
    };
    let reports = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&reports);
    let builder = Drain::builder(store.clone(), processor).on_batch(move |report| {
        let error = report.error.map(str::to_owned);
        record
            .lock()
            .unwrap()
            .push((report.lost, report.done, report.attempt, error));
    });
    let cancel = CancellationToken::new();
    let drain = tokio::spawn(builder.build().unwrap().run(cancel.clone()));
    sleep(Duration::from_secs(15)).await;
    assert_eq!(*dropped.lock().unwrap(), 0);
    store.advance(Duration::from_secs(31)); // a frozen process, say
    sleep(Duration::from_secs(15)).await;
    cancel.cancel();
    let drained = drain.await.unwrap().unwrap();
    assert_eq!((drained.done, drained.lost, drained.dead), (1, 1, 0));
    assert_eq!(*dropped.lock().unwrap(), 2);
    let lost = "all leases were lost while it was processed".to_owned();
    assert_eq!(
        *reports.lock().unwrap(),
        [(1, 0, 1, Some(lost)), (0, 1, 2, None)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_batch_in_flight_and_leases_no_more() {
    let store = MemoryStore::new();
    fill(&store, 0..300).await;
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let processor = move |jobs: Vec<u32>| {
        if jobs.len() == 100 {
            stop.cancel();
        }
        async move {
            sleep(Duration::from_secs(4)).await;
            Ok::<_, String>(vec![(); jobs.len()])
        }
    };
    let drain = Drain::builder(store.clone(), processor).build().unwrap();
    let drained = drain.run(cancel).await.unwrap();
    assert_eq!((drained.done, drained.released), (101, 0));
    assert_eq!(store.depth().await.unwrap().ready, 199);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_runs_out_of_time_releases_uncounted() {
    let store = MemoryStore::new();
    fill(&store, 0..30).await;
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let processor = move |_: Vec<u32>| {
        stop.cancel();
        std::future::pending::<Result<Vec<()>, String>>()
    };
    let drain = Drain::builder(store.clone(), processor)
        .shutdown_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let started = Instant::now();
    let drained = drain.run(cancel).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(2));
    assert_eq!((drained.released, drained.done), (1, 0));
    let leased = store.lease(30).await.unwrap();
    assert!(
        leased.iter().all(|job| job.attempt.get() == 1),
        "not counted"
    );
    assert_eq!(&*leased[0].id, "00000", "and in its old place");
}

#[tokio::test(start_paused = true)]
async fn a_drain_whose_future_is_dropped_gives_back_what_it_leased() {
    let store = MemoryStore::new();
    fill(&store, 0..30).await;
    let processor = |jobs: Vec<u32>| async move {
        if jobs.len() > 1 {
            std::future::pending::<()>().await;
        }
        Ok::<_, String>(vec![(); jobs.len()])
    };
    let drain = Drain::builder(store.clone(), processor).build().unwrap();
    let run = drain.run(CancellationToken::new());
    assert!(timeout(Duration::from_secs(1), run).await.is_err());
    let freed = async {
        while store.depth().await.unwrap().leased > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(1), freed).await.unwrap();
    let leased = store.lease(30).await.unwrap();
    assert_eq!(leased.len(), 29);
    assert!(leased.iter().all(|job| job.attempt.get() == 1));
}

#[tokio::test(start_paused = true)]
async fn at_most_max_in_flight_batches_run_side_by_side() {
    let store = MemoryStore::new();
    fill(&store, 0..1000).await;
    let running = Arc::new(Mutex::new((0, 0)));
    let count = Arc::clone(&running);
    let processor = move |jobs: Vec<u32>| {
        let running = Arc::clone(&count);
        async move {
            {
                let mut running = running.lock().unwrap();
                running.0 += 1;
                running.1 = running.1.max(running.0);
            }
            sleep(Duration::from_secs(1)).await;
            running.lock().unwrap().0 -= 1;
            Ok::<_, String>(vec![(); jobs.len()])
        }
    };
    let started = Instant::now();
    let builder = Drain::builder(store.clone(), processor)
        .max_batch_size(10)
        .max_in_flight(4);
    let drained = drain_all(&store, builder).await;
    assert_eq!(drained.done, 1000);
    assert_eq!(running.lock().unwrap().1, 4);
    assert!(
        started.elapsed() <= Duration::from_secs(27),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_settles_itself_is_believed() {
    let store = MemoryStore::new();
    fill(&store, 0..3).await;
    // Stands for a processor that settles together with its effects.
    let leases: Arc<Mutex<Vec<MemoryLease>>> = Arc::default();
    let (settling, noted) = (store.clone(), Arc::clone(&leases));
    let noting = Hooked::new(&store, move |moment| {
        match moment {
            Moment::Leased(jobs) => {
                let leases = jobs.iter().map(|job| job.lease.clone());
                noted.lock().unwrap().extend(leases);
            }
            Moment::Settle => panic!("nothing is left to settle"),
            _ => {}
        }
        Ok(())
    });
    let processor = move |jobs: Vec<u32>| {
        let leases = std::mem::take(&mut *leases.lock().unwrap());
        let store = settling.clone();
        async move {
            let done: Vec<_> = leases
                .into_iter()
                .map(|lease| (lease, Verdict::Done))
                .collect();
            store.settle(&done).await.unwrap();
            Ok::<_, String>(vec![Verdict::Settled; jobs.len()])
        }
    };
    let drained = drain_all(&store, Drain::builder(noting, processor)).await;
    assert_eq!((drained.done, drained.unknown, drained.lost), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_a_while_ends_no_drain_and_loses_nothing() {
    let store = MemoryStore::new();
    fill(&store, 0..50).await;
    let failures = Mutex::new([7, 9]);
    let failing = Hooked::new(&store, move |moment| {
        let call = match moment {
            Moment::Lease => 0,
            Moment::Settle => 1,
            _ => return Ok(()),
        };
        let left: &mut u32 = &mut failures.lock().unwrap()[call];
        match *left {
            0 => Ok(()),
            _ => {
                *left -= 1;
                Err(NoRoom)
            }
        }
    });
    let processor = |jobs: Vec<u32>| async move { Ok::<_, String>(vec![(); jobs.len()]) };
    let drained = drain_all(&store, Drain::builder(failing, processor)).await;
    assert_eq!((drained.done, drained.store_errors), (50, 16));
}

#[tokio::test(start_paused = true)]
async fn a_stop_over_a_store_that_takes_nothing_back_ends_and_says_so() {
    let store = MemoryStore::new();
    fill(&store, 0..50).await;
    let failing = Hooked::new(&store, |moment| match moment {
        Moment::Settle => Err(NoRoom),
        _ => Ok(()),
    });
    let processor = |jobs: Vec<u32>| async move { Ok::<_, String>(vec![(); jobs.len()]) };
    let cancel = CancellationToken::new();
    let drain = Drain::builder(failing, processor).build().unwrap();
    let run = tokio::spawn(drain.run(cancel.clone()));
    sleep(Duration::from_secs(20)).await;
    cancel.cancel();
    let started = Instant::now();
    let error = run.await.unwrap().unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(10));
    // One lease of one, and one of the rest: then the loop waits for its settlements.
    let DrainError::Unreleased { jobs, drained, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((jobs, drained.done), (50, 0));
    assert!(drained.store_errors > 2);
}

#[tokio::test(start_paused = true)]
async fn hooks_and_backoffs_and_verdicts_may_panic() {
    let store = MemoryStore::new();
    fill(&store, 0..3).await;
    #[derive(Clone, Debug)]
    struct Bomb;
    impl backon::BackoffBuilder for Bomb {
        type Backoff = std::iter::Empty<Duration>;
        fn build(self) -> Self::Backoff {
            panic!("no pauses")
        }
    }
    struct Undecided(u32);
    impl IntoVerdict for Undecided {
        fn into_verdict(self, attempt: u32) -> Verdict {
            assert!(self.0 != 1 || attempt > 1, "undecided");
            Verdict::Done
        }
    }
    let processor = |jobs: Vec<u32>| async move {
        Ok::<_, String>(jobs.into_iter().map(Undecided).collect::<Vec<_>>())
    };
    let builder = Drain::builder(store.clone(), processor)
        .backoff(Bomb)
        .on_batch(|_| panic!("no time for this"));
    let drained = drain_all(&store, builder).await;
    assert_eq!((drained.done, drained.dead), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn zero_options_are_refused_by_name() {
    let builder = || {
        let processor = |jobs: Vec<u32>| async move { Ok::<_, String>(vec![(); jobs.len()]) };
        Drain::builder(MemoryStore::new(), processor)
    };
    let error = |name| Some(BuildError::Zero(name));
    assert_eq!(
        builder().max_batch_size(0).build().err(),
        error("max_batch_size")
    );
    assert_eq!(
        builder().max_in_flight(0).build().err(),
        error("max_in_flight")
    );
    assert_eq!(
        builder().max_attempts(0).build().err(),
        error("max_attempts")
    );
    let huge = builder()
        .max_batch_size(usize::MAX)
        .max_in_flight(usize::MAX)
        .max_attempts(u32::MAX);
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert_eq!(
        huge.build().unwrap().run(cancel).await.unwrap(),
        Drained::default()
    );
}
