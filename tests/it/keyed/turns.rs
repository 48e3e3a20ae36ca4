//! A key's batch is cut when the key has its turn, and not before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use microbatch::{CancellationToken, Keyed};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::millis;

const KEYS: u64 = 50;
const SECONDS: u64 = 60;

/// When each key's jobs come, in milliseconds: one a second, from its own moment on.
fn arrivals() -> Vec<(u64, u64)> {
    let mut random = 12345_u64;
    let mut offsets = Vec::new();
    for _ in 0..KEYS {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        offsets.push((random >> 33) % 1000);
    }
    let of_key = |(key, offset): (u64, u64)| (0..SECONDS).map(move |n| (n * 1000 + offset, key));
    let mut all: Vec<_> = (0..).zip(offsets).flat_map(of_key).collect();
    all.sort_unstable();
    all
}

/// Mean latency in milliseconds and number of calls of a server that takes one key after
/// the other, first come, first served, and cuts its batch at that moment.
fn model(service: u64) -> (f64, usize) {
    let arrivals = arrivals();
    let mut pending: Vec<Vec<u64>> = vec![Vec::new(); KEYS as usize];
    let mut turns = VecDeque::new();
    let mut next = 0;
    let mut busy: Option<(u64, u64)> = None;
    let (mut total, mut calls) = (0, 0);
    loop {
        let arrival = arrivals.get(next).map_or(u64::MAX, |(at, _)| *at);
        let end = busy.map_or(u64::MAX, |(end, _)| end);
        let now = arrival.min(end);
        if now == u64::MAX {
            return (total as f64 / arrivals.len() as f64, calls);
        }
        if arrival <= end {
            let key = arrivals[next].1;
            next += 1;
            pending[key as usize].push(now);
            if !turns.contains(&key) && busy.is_none_or(|(_, busy)| busy != key) {
                turns.push_back(key);
            }
        } else if let Some((_, key)) = busy.take() {
            if !pending[key as usize].is_empty() {
                turns.push_back(key);
            }
        }
        if busy.is_none() {
            if let Some(key) = turns.pop_front() {
                let batch = std::mem::take(&mut pending[key as usize]);
                total += batch.iter().map(|came| now + service - came).sum::<u64>();
                calls += 1;
                busy = Some((now + service, key));
            }
        }
    }
}

async fn measured(service: u64) -> (f64, usize) {
    let calls = Arc::new(Mutex::new(0));
    let counter = calls.clone();
    let keyed = Keyed::builder(move |_key: u64, jobs: Vec<u64>| {
        *counter.lock().unwrap() += 1;
        async move {
            sleep(millis(service)).await;
            Ok::<_, String>(jobs)
        }
    })
    .max_in_flight_overall(1)
    .options(|options| options.flush_when_idle(true).max_batch_size(1000))
    .build_running(CancellationToken::new())
    .unwrap();
    let start = Instant::now();
    let callers = arrivals().into_iter().map(|(at, key)| {
        let keyed = keyed.clone();
        tokio::spawn(async move {
            sleep_until(start + millis(at)).await;
            let came = Instant::now();
            keyed.submit(key, at).await.unwrap();
            came.elapsed()
        })
    });
    let waits: Vec<Duration> = join_all(callers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let total: Duration = waits.iter().sum();
    let calls = *calls.lock().unwrap();
    (total.as_secs_f64() * 1000.0 / waits.len() as f64, calls)
}

/// A batch that was cut before its turn kept later jobs of its key out, so that the key
/// needed another turn for them.
#[tokio::test(start_paused = true)]
async fn latency_and_calls_are_those_of_cutting_at_the_turn() {
    for service in [10, 25] {
        let (expected, fewest) = model(service);
        let (mean, calls) = measured(service).await;
        assert!(
            (mean / expected - 1.0).abs() <= 0.01,
            "service {service} ms: mean {mean} ms, model {expected} ms"
        );
        assert!(
            calls <= fewest,
            "service {service} ms: {calls} calls, model {fewest}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_the_turn_joins_the_batch() {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let log = sizes.clone();
    let keyed = Keyed::builder(move |key: &'static str, jobs: Vec<u32>| {
        log.lock().unwrap().push((key, jobs.len()));
        async move {
            sleep(millis(100)).await;
            Ok::<_, String>(jobs)
        }
    })
    .max_in_flight_overall(1)
    .options(|options| options.flush_when_idle(true).max_batch_size(10))
    .build_running(CancellationToken::new())
    .unwrap();
    let mut handles = vec![keyed.submit("a", 0)];
    sleep(millis(10)).await;
    handles.push(keyed.submit("b", 1));
    sleep(millis(10)).await;
    handles.extend([keyed.submit("b", 2), keyed.submit("b", 3)]);
    join_all(handles).await;
    assert_eq!(*sizes.lock().unwrap(), [("a", 1), ("b", 3)]);
}
