//! What the verdicts do, and who may give them.

use tokio::time::{Instant, sleep};

use super::*;

/// A job that is to be tried again without delay is due at once, behind those that were due
/// before, with its attempt counted.
pub async fn retry_at_once<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "retry_at_once";
    named(NAME, async {
        let store = make_store(NAME).await;
        append_new(&store, &["a", "b"].map(job)).await;
        let a = lease(&store, 1).await;
        settle_all(&store, &a, &retry(Duration::ZERO)).await;
        let both = lease_all(&store, 2).await;
        expect_in_order(
            &store,
            &both,
            &[("b", 1), ("a", 2)],
            "`b` was due before `a` was",
        );
        // One after the other: what becomes due by one call has no order.
        for job in both.chunks(1) {
            settle_all(&store, job, &retry(Duration::ZERO)).await;
        }
        let mut store = reopen(store, &make_store, NAME).await;
        append_new(&store, &[job("c")]).await;
        let mut all = lease_all(&store, 3).await;
        let why = "tried again in this order, before what was appended later";
        expect_in_order(&store, &all, &[("b", 2), ("a", 3), ("c", 1)], why);
        if store.lease_time().is_none() {
            settle_all(&store, &all, &retry(Duration::ZERO)).await;
            lease_all(&store, 3).await;
            store = reopen(store, &make_store, NAME).await;
            append_new(&store, &[job("d")]).await;
            all = lease_all(&store, 4).await;
            let expected = BTreeSet::from([("b", 4), ("a", 5), ("c", 3), ("d", 1)]);
            let seen = seen_as_set(&all);
            assert!(
                seen == expected,
                "leases ended unsettled: expected {expected:?}; `lease` gave {seen:?}"
            );
        }
        settle_all(&store, &all, &Verdict::Done).await;
        store.close().await;
    })
    .await;
}

/// A job that is to be tried again later is leased when that time has passed and not
/// before, also by a store that was opened again meanwhile. Then its place is before that
/// of jobs that became due after it.
pub async fn retry_delay<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "retry_delay";
    named(NAME, async {
        let store = make_store(NAME).await;
        let millis = Duration::from_millis;
        append_new(&store, &["a", "b", "c"].map(job)).await;
        let leased = lease_all(&store, 3).await;
        let settled = Instant::now();
        let delays = [("b", millis(100)), ("a", millis(300))];
        let verdicts = [retry(delays[1].1), retry(delays[0].1), Verdict::Done];
        let leases = leased.into_iter().map(|job| job.lease);
        settle_held(&store, &leases.zip(verdicts).collect::<Vec<_>>()).await;
        let mut leased = Vec::new();
        while leased.len() < 2 {
            let next = lease(&store, 2).await;
            let waited = settled.elapsed();
            for (id, delay) in delays {
                assert!(
                    waited >= delay || next.iter().all(|job| &*job.id != id),
                    "{id:?} was leased after {waited:?}, and not to be tried before {delay:?}"
                );
            }
            leased.extend(next);
        }
        expect_seen(
            &leased,
            &[("b", 2), ("a", 2)],
            "in the order of their delays",
        );
        settle_all(&store, &leased[..1], &Verdict::Done).await;

        let settled = Instant::now();
        settle_all(&store, &leased[1..], &retry(millis(200))).await;
        let store = reopen(store, &make_store, NAME).await;
        let leased = lease(&store, 1).await;
        let waited = settled.elapsed();
        expect_seen(
            &leased,
            &[("a", 3)],
            "delayed while the store was opened again",
        );
        assert!(
            waited >= millis(200),
            "the store was opened again, and the delay of 200 ms was over after {waited:?}"
        );

        settle_all(&store, &leased, &retry(millis(20))).await;
        while expect(store.depth().await, "depth").ready == 0 {
            sleep(millis(5)).await;
        }
        append_new(&store, &[job("d")]).await;
        let both = lease_all(&store, 2).await;
        expect_seen(&both, &[("a", 4), ("d", 1)], "`a` was due before `d` was");
        settle_all(&store, &both, &Verdict::Done).await;
        store.close().await;
    })
    .await;
}

/// A job that is released is due at once, in its old place, and the attempt is not counted.
pub async fn release<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "release";
    named(NAME, async {
        let store = make_store(NAME).await;
        append_new(&store, &["a", "b", "c"].map(job)).await;
        for _ in 0..3 {
            let mut two = lease_all(&store, 2).await;
            expect_seen(&two, &[("a", 1), ("b", 1)], "released before");
            two.reverse();
            settle_all(&store, &two, &Verdict::Release).await;
        }
        let a = lease(&store, 1).await;
        settle_all(&store, &a, &retry(Duration::ZERO)).await;
        for _ in 0..2 {
            let all = lease_all(&store, 3).await;
            let why = "`a` was tried once, and released before";
            expect_in_order(&store, &all, &[("b", 1), ("c", 1), ("a", 2)], why);
            settle_all(&store, &all, &Verdict::Release).await;
        }
        let store = reopen(store, &make_store, NAME).await;
        let all = lease_all(&store, 3).await;
        let why = "released, and opened again";
        expect_released(&store, &all, &[("b", 1), ("c", 1), ("a", 2)], why);
        settle_all(&store, &all, &Verdict::Done).await;
        store.close().await;
    })
    .await;
}

/// Expects these ids and attempts in this order. If the store does not promise that, those
/// that are tried again may come earlier.
fn expect_in_order<S: Store>(
    store: &S,
    leased: &[Leased<S::Lease>],
    expected: &[(&str, u32)],
    why: &str,
) {
    let seen = seen(leased);
    let same = match store.promises().retries_in_order {
        true => seen == expected,
        false => is_earlier_at_most(&seen, expected, |attempt, expected| attempt == expected),
    };
    assert!(
        same,
        "{why}: expected the ids and attempts {expected:?}; `lease` gave {seen:?}"
    );
}

/// Expects what was released before the store was opened again. If the store does not
/// promise that a release is not counted, each attempt may be counted once more.
fn expect_released<S: Store>(
    store: &S,
    leased: &[Leased<S::Lease>],
    expected: &[(&str, u32)],
    why: &str,
) {
    if store.promises().releases_uncounted {
        return expect_in_order(store, leased, expected, why);
    }
    let seen = seen(leased);
    let counted =
        |attempt: u32, expected: u32| attempt.checked_sub(expected).is_some_and(|more| more <= 1);
    let in_order = seen
        .iter()
        .map(|(id, _)| id)
        .eq(expected.iter().map(|(id, _)| id));
    assert!(
        is_earlier_at_most(&seen, expected, counted)
            && (in_order || !store.promises().retries_in_order),
        "{why}: expected {expected:?}, each attempt counted once more at most; `lease` gave \
         {seen:?}"
    );
}

/// Returns whether each of `expected` was seen once, with an attempt that is right, and
/// before all that are expected later, unless those are tried again.
fn is_earlier_at_most(
    seen: &[(&str, u32)],
    expected: &[(&str, u32)],
    is_right: impl Fn(u32, u32) -> bool,
) -> bool {
    let places: Vec<_> = expected
        .iter()
        .filter_map(|(id, attempt)| {
            let place = seen.iter().position(|(seen, _)| seen == id)?;
            is_right(seen[place].1, *attempt).then_some(place)
        })
        .collect();
    let all = places.len() == expected.len() && seen.len() == expected.len();
    let is_ordered = |(at, place): (usize, &usize)| {
        let later = &places[at + 1..];
        later
            .iter()
            .all(|later| later > place || seen[*later].1 > 1)
    };
    all && places.iter().enumerate().all(is_ordered)
}

/// [`Verdict::Settled`] changes nothing.
pub async fn settled_by_the_processor<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "settled_by_the_processor";
    named(NAME, async {
        let store = make_store(NAME).await;
        append_new(&store, &["a", "b"].map(job)).await;
        let leased = lease_all(&store, 2).await;
        let before = expect(store.depth().await, "depth");
        settle_all(&store, &leased, &Verdict::Settled).await;
        let after = expect(store.depth().await, "depth");
        assert!(
            before == after,
            "`Settled` changes nothing; `depth` said {before:?} before and {after:?} after"
        );
        expect_nothing_due(&store, "both are leased").await;
        settle_all(&store, &leased[..1], &Verdict::Done).await;
        let why = "`b` was not settled";
        if store.lease_time().is_none() {
            let store = reopen(store, &make_store, NAME).await;
            let b = lease(&store, 2).await;
            expect_seen(&b, &[("b", 2)], why);
            settle_all(&store, &b, &Verdict::Done).await;
            store.close().await;
        } else {
            let b = lease(&store, 2).await;
            expect_seen(&b, &[("b", 2)], why);
            settle_all(&store, &b, &Verdict::Done).await;
            store.close().await;
        }
    })
    .await;
}

/// What is settled stays as it was settled, whatever is said of the same lease later, and
/// after another opening.
pub async fn settled_twice<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "settled_twice";
    named(NAME, async {
        let store = make_store(NAME).await;
        let seconds = || verdicts().into_iter().chain([Verdict::Settled]);
        for (n, first) in verdicts().into_iter().enumerate() {
            for (m, second) in seconds().enumerate() {
                let id = format!("{n}-{m}");
                append_new(&store, &[job(&*id)]).await;
                let leased = lease(&store, 1).await;
                expect_seen(&leased, &[(&*id, 1)], "no other job is due");
                settle_all(&store, &leased, &first).await;
                let before = expect(store.depth().await, "depth");
                let why = format!("settled as {first:?} before");
                settle_lost(&store, &[(leased[0].lease.clone(), second.clone())], &why).await;
                let after = expect(store.depth().await, "depth");
                assert!(
                    before == after,
                    "settled as {first:?} and then as {second:?}, which changes nothing; `depth` \
                     said {before:?} before and {after:?} after"
                );
                let attempt = match first {
                    Verdict::Release => 1,
                    Verdict::Retry { after, .. } if after.is_zero() => 2,
                    _ => continue,
                };
                let leased = lease(&store, 1).await;
                expect_seen(&leased, &[(&*id, attempt)], &why);
                settle_all(&store, &leased, &Verdict::Done).await;
            }
        }
        let store = reopen(store, &make_store, NAME).await;
        let depth = expect(store.depth().await, "depth");
        let depth = with_delays(&store, depth, 6);
        assert!(
            (depth.ready, depth.leased, depth.delayed, depth.dead) == (0, 0, 6, 6),
            "6 jobs are delayed and 6 dead, and no others are left; `depth` says {depth:?}"
        );
        let dead = expect(store.list(None, 9).await, "list");
        let ids: Vec<_> = dead.iter().map(|dead| &*dead.id).collect();
        assert!(
            ids == ["3-0", "3-1", "3-2", "3-3", "3-4", "3-5"],
            "the dead are those that were first settled as dead; `list` gave {ids:?}"
        );
        store.close().await;
    })
    .await;
}

/// Several verdicts in one call are each done; if two are of one lease, the first is.
pub async fn several_verdicts<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "several_verdicts";
    named(NAME, async {
        let store = make_store(NAME).await;
        append_new(&store, &["a", "b", "c", "d", "e", "f", "g", "h"].map(job)).await;
        let leased = lease_all(&store, 8).await;
        let said = [
            (0, Verdict::Done),
            (1, retry(Duration::ZERO)),
            (2, retry(LATER)),
            (6, Verdict::Done),
            (3, dead("no")),
            (6, dead("too late")),
            (4, Verdict::Release),
            (5, Verdict::Settled),
            (7, Verdict::Settled),
            (7, Verdict::Done),
            (0, Verdict::Release),
        ];
        let is_late = |at| at == 5 || at == 10;
        let verdicts = said.map(|(at, verdict)| (leased[at].lease.clone(), verdict));
        let answers = settle(&store, &verdicts).await;
        for (at, (answer, (_, verdict))) in answers.iter().zip(&verdicts).enumerate() {
            let wrong = match is_late(at) {
                true => Settled::Held,
                false => Settled::Lost,
            };
            assert!(
                *answer != wrong,
                "{verdict:?}, the verdict {at} of {}, was answered with {answer:?}",
                verdicts.len()
            );
        }
        let depth = expect(store.depth().await, "depth");
        assert!(
            (depth.ready, depth.leased, depth.delayed, depth.dead) == (2, 1, 1, 1),
            "2 jobs are ready, 1 is leased, 1 delayed, 1 dead; `depth` says {depth:?}"
        );
        let due = lease_all(&store, 2).await;
        expect_seen(&due, &[("e", 1), ("b", 2)], "released, and tried again");
        let listed = expect(store.list(None, 9).await, "list");
        let listed: Vec<_> = listed.iter().map(|dead| &*dead.id).collect();
        assert!(listed == ["d"], "`d` alone is dead; `list` gave {listed:?}");
        store.close().await;
    })
    .await;
}

/// Whoever has lost a lease changes nothing by settling it, whatever the verdict: neither
/// while the job is due again nor once somebody else has it.
pub async fn lost_leases<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "lost_leases";
    named(NAME, async {
        let store = make_store(NAME).await;
        let said = || verdicts().into_iter().chain([Verdict::Settled]);
        append_new(&store, &jobs(6)).await;
        let lost = lease_all(&store, 6).await;
        let late: Vec<_> = lost.into_iter().map(|job| job.lease).zip(said()).collect();
        let store = lose_leases(store, &make_store, NAME).await;
        if store.lease_time().is_none() {
            let before = expect(store.depth().await, "depth");
            settle_lost(&store, &late, "the store was opened again").await;
            let after = expect(store.depth().await, "depth");
            assert!(
                before == after && after.ready == 6,
                "6 jobs are due, and late verdicts change nothing; `depth` said {before:?} \
                 before and {after:?} after"
            );
        }
        let held = lease_all(&store, 6).await;
        let expected: BTreeSet<_> = held.iter().map(|job| (&*job.id, 2)).collect();
        let seen = seen_as_set(&held);
        assert!(
            seen == expected && seen.len() == 6,
            "the attempts of lost leases are counted; `lease` gave {seen:?}"
        );
        settle_lost(&store, &late, "others have the jobs").await;
        let leases: Vec<_> = held.iter().map(|job| job.lease.clone()).collect();
        let answers = expect(store.extend(&leases).await, "extend");
        assert!(
            answers.len() == 6 && !answers.contains(&Settled::Lost),
            "leases hold whatever others say of the jobs; `extend` answered {answers:?}"
        );
        let depth = expect(store.depth().await, "depth");
        assert!(
            (depth.ready, depth.leased, depth.delayed, depth.dead) == (0, 6, 0, 0),
            "6 jobs are leased; `depth` says {depth:?}"
        );
        settle_all(&store, &held, &Verdict::Done).await;
        store.close().await;
    })
    .await;
}

/// A lease that holds can be extended, one that is settled cannot. If leases have a time,
/// one that is extended holds beyond it, and one that is not ends with it and not before.
pub async fn extend<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "extend";
    named(NAME, async {
        let store = make_store(NAME).await;
        append_new(&store, &["a", "b", "c"].map(job)).await;
        let leasing = Instant::now();
        let leased = lease_all(&store, 3).await;
        settle_all(&store, &leased[..1], &Verdict::Done).await;
        let leases: Vec<_> = leased.iter().map(|job| job.lease.clone()).collect();
        let answers = expect(store.extend(&leases[..2]).await, "extend");
        assert!(
            answers.len() == 2 && answers[0] != Settled::Held && answers[1] != Settled::Lost,
            "`a` is done, `b` is leased; `extend` answered {answers:?}"
        );
        let Some(time) = store.lease_time() else {
            settle_all(&store, &leased[1..], &Verdict::Done).await;
            return store.close().await;
        };
        let mut lapsed = 0;
        let mut next = Box::pin(store.lease(2));
        // `b` is extended for two times its time, `c` never.
        for _ in 0..6 {
            let pause = sleep(time / 3);
            let mut pause = pin!(pause);
            loop {
                tokio::select! {
                    given = &mut next => {
                        let given = expect(given, "lease");
                        let waited = leasing.elapsed();
                        lapsed += 1;
                        expect_seen(&given, &[("c", 1 + lapsed)], "`b` is extended, `c` is not");
                        assert!(
                            waited >= time * lapsed,
                            "the lease of `c` has {time:?}, and ended after {waited:?}"
                        );
                        next = Box::pin(store.lease(2));
                    }
                    () = &mut pause => break,
                }
            }
            let answers = expect(store.extend(&leases[1..2]).await, "extend");
            assert!(
                answers.len() == 1 && answers[0] != Settled::Lost,
                "`b` is extended at each third of its time; `extend` answered {answers:?}"
            );
        }
        drop(next);
        assert!(
            lapsed > 0,
            "the lease of `c` was not extended, and held for two times {time:?}"
        );
        let answers = expect(store.extend(&leases[2..]).await, "extend");
        assert!(
            answers.len() == 1 && answers[0] != Settled::Held,
            "the lease of `c` has ended; `extend` answered {answers:?}"
        );
        settle_all(&store, &leased[1..2], &Verdict::Done).await;
        store.close().await;
    })
    .await;
}
