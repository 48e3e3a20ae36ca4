//! What is appended, and what is not.

use bytes::Bytes;

use super::*;
use crate::outcome::Refusal;

/// What is appended is there after the store was closed and opened again: in order, with
/// its bytes and the name of its codec.
pub async fn appended_jobs_survive<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "appended_jobs_survive";
    named(NAME, async {
        let store = make_store(NAME).await;
        let mut jobs = jobs(9);
        jobs[0].payload = (0..=u8::MAX).collect::<Vec<_>>().into();
        jobs[1].payload = Vec::new().into();
        jobs[2].codec = "order/2".into();
        append_new(&store, &jobs[..4]).await;
        append_new(&store, &jobs[4..]).await;
        let store = reopen(store, &make_store, NAME).await;
        let leased = lease_all(&store, jobs.len()).await;
        let back: Vec<_> = leased
            .iter()
            .map(|job| NewJob {
                id: job.id.clone(),
                codec: job.codec.clone(),
                payload: job.payload.clone(),
            })
            .collect();
        assert!(
            back == jobs,
            "expected what was appended; `lease` gave {back:?}"
        );
        assert!(
            leased.iter().all(|job| job.attempt.get() == 1),
            "nothing was leased before, so each attempt is the first: {:?}",
            seen(&leased)
        );
        expect_nothing_due(&store, "all are leased").await;
        store.close().await;
    })
    .await;
}

/// The id of a job is taken until the job is done and the deduplication window has passed;
/// that of a dead job for good. Within one append the first of an id is appended.
pub async fn duplicates<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "duplicates";
    named(NAME, async {
        let store = make_store(NAME).await;
        let of = |id: &str, payload: &'static str| NewJob {
            payload: payload.into(),
            ..job(id)
        };
        let expect_answers = |answers: Vec<Appended>, duplicate: &[bool], when: &str| {
            let expected: Vec<_> = duplicate
                .iter()
                .map(|duplicate| match duplicate {
                    true => Appended::Duplicate,
                    false => Appended::New,
                })
                .collect();
            assert!(
                answers == expected,
                "{when}: expected {expected:?}; `append` answered {answers:?}"
            );
        };
        let (first, second) = ("first", "second");
        let answers = append(&store, &[of("a", first), of("b", first), of("a", second)]).await;
        expect_answers(answers, &[false, false, true], "twice in one append");
        let again = [of("b", second), of("c", first), of("a", second)];
        let answers = append(&store, &again).await;
        expect_answers(answers, &[true, false, true], "mixed with a new one");
        append_new(&store, &[of("d", first)]).await;

        let leased = lease_all(&store, 4).await;
        expect_seen(
            &leased,
            &[("a", 1), ("b", 1), ("c", 1), ("d", 1)],
            "each job once",
        );
        for job in &leased {
            assert!(
                job.payload == first,
                "the first of an id is kept; {:?} came with {:?}",
                job.id,
                job.payload
            );
        }
        let again = ["a", "b", "c", "d"].map(|id| of(id, second));
        let answers = append(&store, &again).await;
        expect_answers(answers, &[true; 4], "while leased");
        let verdicts = [Verdict::Done, dead("no"), retry(LATER), Verdict::Done];
        let leases = leased.into_iter().map(|job| job.lease);
        settle_held(&store, &leases.zip(verdicts).collect::<Vec<_>>()).await;
        let answers = append(&store, &again).await;
        expect_answers(answers, &[true; 4], "once done, dead, delayed, and done");

        let store = reopen(store, &make_store, NAME).await;
        let answers = append(&store, &again).await;
        expect_answers(answers, &[true; 4], "after another opening");
        expect_nothing_due(&store, "duplicates are not appended").await;
        store.close().await;
    })
    .await;
}

/// Every id is taken that has 1 to 255 bytes without a NUL, whatever is in it, and each is
/// another one: nothing is folded or trimmed.
pub async fn ids<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "ids";
    named(NAME, async {
        let store = make_store(NAME).await;
        let longest = "x".repeat(JobId::MAX_LEN);
        let widest = "é".repeat(JobId::MAX_LEN / 2);
        let ids = [
            "a",
            "A",
            " a",
            "a ",
            "ä",
            "a\u{308}",
            "\n",
            " ",
            ".",
            "..",
            "a.b",
            "*",
            ">",
            "/",
            "\\",
            "'",
            "\"",
            "%s",
            "$1",
            "{}",
            "-",
            "--",
            "0",
            "00",
            "null",
            "\u{1}",
            "\u{7f}",
            "\u{10ffff}",
            &longest,
            &longest[1..],
            &widest,
        ];
        let jobs = ids.map(job);
        append_new(&store, &jobs).await;
        let again = append(&store, &jobs).await;
        assert!(
            again.iter().all(|answer| *answer == Appended::Duplicate),
            "the same ids again: expected duplicates; `append` answered {again:?}"
        );
        let leased = lease_all(&store, jobs.len()).await;
        expect_seen(&leased, &ids.map(|id| (id, 1)), "ids come back as they are");
        settle_all(&store, &leased, &Verdict::Done).await;
        store.close().await;
    })
    .await;
}

/// What a store cannot take is refused with the reason, and the others of the same append
/// are appended.
pub async fn refusals<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "refusals";
    named(NAME, async {
        let store = make_store(NAME).await;
        let too_long = "x".repeat(JobId::MAX_LEN + 1);
        let bad = ["", &too_long, "a\0b", "\0"];
        let mut jobs = vec![job("good-0")];
        for (n, bad) in bad.iter().enumerate() {
            jobs.extend([job(*bad), job(format!("good-{}", n + 1))]);
        }
        for (answer, job) in append(&store, &jobs).await.iter().zip(&jobs) {
            let expected = match bad.contains(&&*job.id) {
                true => Appended::Refused(Refusal::BadId),
                false => Appended::New,
            };
            assert!(
                *answer == expected,
                "the id {:?}: expected {expected:?}; `append` answered {answer:?}",
                job.id
            );
        }
        let leased = lease_all(&store, bad.len() + 1).await;
        let good = ["good-0", "good-1", "good-2", "good-3", "good-4"];
        expect_seen(&leased, &good.map(|id| (id, 1)), "what was not refused");
        expect_nothing_due(&store, "the others were refused").await;
        store.close().await;
    })
    .await;
}

/// A job of more than 64 MiB is stored whole, or refused with its size and with a limit
/// that is true: a job of just that size is stored whole.
pub async fn large_payloads<S: Store>(make_store: impl AsyncFn(&str) -> S) {
    const NAME: &str = "large_payloads";
    named(NAME, async {
        let store = make_store(NAME).await;
        let of = |id: &str, size: usize| NewJob {
            payload: bytes_of(size),
            ..job(id)
        };
        let expect_back = |back: &[Leased<S::Lease>], jobs: &[&NewJob]| {
            let expected: Vec<_> = jobs.iter().map(|job| (&*job.id, 1)).collect();
            expect_seen(back, &expected, "large jobs and their neighbours");
            for (back, job) in back.iter().zip(jobs) {
                assert!(
                    back.payload == job.payload,
                    "{:?} of {} bytes came back as other {} bytes",
                    job.id,
                    job.payload.len(),
                    back.payload.len()
                );
            }
        };
        let size = (64 << 20) + 1;
        let jobs = [job("before"), of("large", size), job("after")];
        let answers = append(&store, &jobs).await;
        for at in [0, 2] {
            assert!(
                answers[at] == Appended::New,
                "a neighbour of a large job is appended; `append` answered {:?}",
                answers[at]
            );
        }
        match answers[1] {
            Appended::New => {
                let leased = lease_all(&store, 3).await;
                expect_back(&leased, &[&jobs[0], &jobs[1], &jobs[2]]);
                settle_all(&store, &leased, &Verdict::Done).await;
            }
            Appended::Refused(Refusal::TooLarge { size: said, limit }) => {
                assert!(
                    said == size && limit < size,
                    "{size} bytes were refused as {said} bytes of at most {limit}"
                );
                let largest = of("largest", limit);
                append_new(&store, std::slice::from_ref(&largest)).await;
                let leased = lease_all(&store, 3).await;
                expect_back(&leased, &[&jobs[0], &jobs[2], &largest]);
                settle_all(&store, &leased, &Verdict::Done).await;
            }
            ref answer => {
                panic!("{size} bytes: expected `New` or `TooLarge`; `append` answered {answer:?}")
            }
        }
        expect_nothing_due(&store, "all are done").await;
        store.close().await;
    })
    .await;
}

/// Bytes of which no two stretches are easily mistaken for each other.
fn bytes_of(size: usize) -> Bytes {
    let block: Vec<_> = (0..251).collect();
    let mut bytes = block.repeat(size / block.len() + 1);
    bytes.truncate(size);
    bytes.into()
}
