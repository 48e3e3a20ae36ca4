//! Dead letters.

use super::*;

/// Appends jobs and settles them as dead.
async fn bury<S: Store>(store: &S, jobs: &[NewJob], reason: &str) {
    append_new(store, jobs).await;
    let leased = lease_all(store, jobs.len()).await;
    settle_all(store, &leased, &dead(reason)).await;
}

async fn listed<S: DeadLetters>(store: &S, after: Option<&JobId>, limit: usize) -> Vec<String> {
    let dead = expect(store.list(after, limit).await, "list");
    dead.iter().map(|dead| dead.id.to_string()).collect()
}

/// A dead job is not leased again. It is kept with its bytes, its codec, the attempts it
/// had and the reason, and is there when the store is opened again.
pub async fn dead_letters<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "dead_letters";
    named(NAME, async {
        let store = make_store(NAME).await;
        let new = NewJob {
            codec: "order/2".into(),
            payload: (0..=u8::MAX).collect::<Vec<_>>().into(),
            ..job("a")
        };
        append_new(&store, std::slice::from_ref(&new)).await;
        let first = lease(&store, 1).await;
        settle_all(&store, &first, &retry(Duration::ZERO)).await;
        let second = lease(&store, 1).await;
        let reason = format!("no \u{10ffff} \"such\"\n'address'; -- {}", "é".repeat(500));
        settle_all(&store, &second, &dead(&reason)).await;
        expect_nothing_due(&store, "`a` is dead").await;
        let store = reopen(store, &make_store, NAME).await;
        expect_nothing_due(&store, "`a` is dead").await;
        let found = expect(store.list(None, 9).await, "list");
        assert!(found.len() == 1, "`a` is dead; `list` gave {found:?}");
        let letter = &found[0];
        let kept = NewJob {
            id: letter.id.clone(),
            codec: letter.codec.clone(),
            payload: letter.payload.clone(),
        };
        assert!(
            kept == new,
            "a dead job is kept as it was appended, {new:?}; `list` gave {letter:?}"
        );
        assert!(
            letter.reason == reason,
            "the reason was {reason:?}; `list` gave {:?}",
            letter.reason
        );
        assert!(
            letter.attempt == 2,
            "it died on its attempt 2; `list` gave attempt {}",
            letter.attempt
        );
        let appended = second[0].appended;
        assert!(
            letter.appended == appended && first[0].appended == appended,
            "it was appended once; it was leased as of {:?} and {appended:?}, and `list` gave \
             {letter:?}",
            first[0].appended,
        );
        assert!(
            letter.died >= appended,
            "it died before it was appended: {letter:?}"
        );

        // A message of a panic may have a NUL in it, which databases do not take in a text.
        append_new(&store, &["b", "c"].map(job)).await;
        let leased = lease_all(&store, 2).await;
        let nul = "no\0yes".to_owned();
        let again = Verdict::Retry {
            after: LATER,
            reason: nul.clone(),
        };
        let verdicts = [
            (leased[0].lease.clone(), dead(&nul)),
            (leased[1].lease.clone(), again),
        ];
        settle_held(&store, &verdicts).await;
        let found = expect(store.list(Some(&"a".into()), 9).await, "list");
        assert!(
            found.len() == 1 && found[0].reason.contains("no"),
            "`b` died with the reason {nul:?}; `list` gave {found:?}"
        );
        store.close().await;
    })
    .await;
}

/// Dead letters are listed in the order of the bytes of their ids, `limit` at most, from
/// behind `after` on, whether or not that one is dead.
pub async fn list_pages<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "list_pages";
    named(NAME, async {
        let store = make_store(NAME).await;
        let mut ids = [
            "b",
            "a",
            "é",
            "Z",
            "a1",
            "a-1",
            "a 1",
            "A",
            "~",
            "1",
            "10",
            "2",
            "aa",
            "ab",
            "\u{10ffff}",
            "\u{ffff}",
            "z",
            "_",
        ];
        bury(&store, &ids.map(job), "no").await;
        append_new(&store, &[job("ac")]).await;
        ids.sort_unstable();
        let all = listed(&store, None, ids.len() + 5).await;
        assert!(
            all == ids,
            "expected the dead in the order of the bytes, {ids:?}; `list` gave {all:?}"
        );
        for limit in [0, 1, 5, ids.len()] {
            for (at, after) in ids.iter().enumerate() {
                let page = listed(&store, Some(&(*after).into()), limit).await;
                let expected: Vec<_> = ids[at + 1..].iter().take(limit).collect();
                assert!(
                    page.iter().eq(expected.iter().copied()),
                    "at most {limit} after {after:?}: expected {expected:?}; `list` gave {page:?}"
                );
            }
            let page = listed(&store, None, limit).await;
            let expected = &ids[..limit];
            assert!(
                page == expected,
                "at most {limit}: expected {expected:?}; `list` gave {page:?}"
            );
        }
        let page = listed(&store, Some(&"ac".into()), 2).await;
        assert!(
            page == ["b", "z"],
            "after \"ac\", which is not dead: expected \"b\" and \"z\"; `list` gave {page:?}"
        );
        store.close().await;
    })
    .await;
}

fn expect_answers(answers: Vec<bool>, expected: &[bool], call: &str) {
    assert!(
        answers == expected,
        "whether each was dead: expected {expected:?}; `{call}` answered {answers:?}"
    );
}

/// A dead job that is revived is due, and begins with attempt 1. Its id stays taken. Other
/// ids are answered with `false`.
pub async fn revive<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "revive";
    named(NAME, async {
        let store = make_store(NAME).await;
        let jobs = ["a", "b", "c"].map(job);
        bury(&store, &jobs, "no").await;
        append_new(&store, &[job("live")]).await;
        let ids = ["none", "c", "live", "a", "c", ""].map(JobId::from);
        let answers = expect(store.revive(&ids).await, "revive");
        expect_answers(answers, &[false, true, false, true, false, false], "revive");
        let store = reopen(store, &make_store, NAME).await;
        let again = append(&store, &jobs).await;
        assert!(
            again.iter().all(|answer| *answer == Appended::Duplicate),
            "revived and dead jobs keep their ids; `append` answered {again:?}"
        );
        let leased = lease_all(&store, 3).await;
        let expected = [("live", 1), ("c", 1), ("a", 1)];
        expect_seen(&leased, &expected, "revived jobs come behind those in line");
        let payloads = leased[1..].iter().map(|job| &job.payload);
        assert!(
            payloads.eq([&jobs[2].payload, &jobs[0].payload]),
            "revived jobs have their bytes"
        );
        let dead = listed(&store, None, 9).await;
        assert!(dead == ["b"], "`b` alone is dead; `list` gave {dead:?}");
        settle_all(&store, &leased, &Verdict::Done).await;
        let answers = expect(store.revive(&["a".into()]).await, "revive");
        expect_answers(answers, &[false], "revive");
        let again = append(&store, &jobs).await;
        assert!(
            again.iter().all(|answer| *answer == Appended::Duplicate),
            "done after they were revived, or dead; `append` answered {again:?}"
        );
        let mut leased = Box::pin(lease(&store, 3));
        if let Poll::Ready(leased) = poll_once(leased.as_mut()).await {
            panic!("no job is due, and `lease` gave {:?}", seen(&leased));
        }
        let answers = expect(store.revive(&["b".into()]).await, "revive");
        expect_answers(answers, &[true], "revive");
        expect_seen(&leased.await, &[("b", 1)], "revived while `lease` waits");
        store.close().await;
    })
    .await;
}

/// A dead job that is discarded is gone, and its id is free at once. Other ids are answered
/// with `false`.
pub async fn discard<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "discard";
    named(NAME, async {
        let store = make_store(NAME).await;
        let jobs = ["a", "b", "c"].map(job);
        bury(&store, &jobs, "no").await;
        append_new(&store, &[job("live")]).await;
        let ids = ["c", "none", "a", "a", "live", ""].map(JobId::from);
        let answers = expect(store.discard(&ids).await, "discard");
        expect_answers(
            answers,
            &[true, false, true, false, false, false],
            "discard",
        );
        let store = reopen(store, &make_store, NAME).await;
        let dead = listed(&store, None, 9).await;
        assert!(dead == ["b"], "`b` alone is dead; `list` gave {dead:?}");
        let again = append(&store, &jobs).await;
        assert!(
            again == [Appended::New, Appended::Duplicate, Appended::New],
            "the ids of `a` and `c` are free, that of `b` is taken; `append` answered {again:?}"
        );
        let leased = lease_all(&store, 3).await;
        let expected = [("live", 1), ("a", 1), ("c", 1)];
        expect_seen(&leased, &expected, "appended again");
        settle_all(&store, &leased, &Verdict::Done).await;
        store.close().await;
    })
    .await;
}
