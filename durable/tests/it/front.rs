//! Submitting.

use std::time::Duration;

use microbatch::{BuildError, TrySubmitError};
use microbatch_durable::{
    Appended, CancellationToken, Durable, JobId, MemoryStore, Refusal, Store, Verdict,
};

fn front(store: &MemoryStore, max_pending: usize) -> Durable<u32> {
    Durable::builder(store.clone())
        .max_pending(max_pending)
        .build_running(CancellationToken::new())
        .unwrap()
}

async fn settle(store: &MemoryStore, max: usize) {
    let leased = store.lease(max).await.unwrap();
    let done: Vec<_> = leased
        .into_iter()
        .map(|job| (job.lease, Verdict::Done))
        .collect();
    store.settle(&done).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_caller_learns_what_became_of_its_job() {
    let store = MemoryStore::builder().max_payload(4).build();
    let jobs = Durable::<String>::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    let answers = jobs
        .submit_all(
            [("a", "1"), ("a", "2"), ("", "3"), ("b", "long"), ("c", "4")]
                .map(|(id, job)| (id, job.to_owned())),
        )
        .await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    let too_large = Refusal::TooLarge { size: 6, limit: 4 };
    assert_eq!(
        answers,
        [
            Appended::New,
            Appended::Duplicate,
            Appended::Refused(Refusal::BadId),
            Appended::Refused(too_large),
            Appended::New,
        ]
    );
    assert_eq!(store.depth().await.unwrap().ready, 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_encoded_is_refused_and_hurts_nobody() {
    let store = MemoryStore::new();
    let jobs = Durable::<std::collections::HashMap<Vec<u8>, u8>>::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    let bad = std::collections::HashMap::from([(vec![1], 1)]);
    let (bad, good) = tokio::join!(jobs.submit("a", bad), jobs.submit("b", Default::default()));
    assert!(matches!(
        bad.unwrap(),
        Appended::Refused(Refusal::Unencodable { .. })
    ));
    assert_eq!(good.unwrap(), Appended::New);
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_makes_submit_wait_and_try_submit_refuse() {
    let store = MemoryStore::new();
    let jobs = front(&store, 3);
    let answers = jobs.submit_all((0..3).map(|n| (format!("{n}"), n))).await;
    assert!(
        answers
            .into_iter()
            .all(|answer| answer.unwrap() == Appended::New)
    );
    match jobs.try_submit("x", 7) {
        Err(TrySubmitError::Full((id, job))) => assert_eq!((id, job), (JobId::from("x"), 7)),
        _ => panic!("there is no room"),
    }
    let mut waiting = jobs.submit("w", 8);
    let waited = tokio::time::timeout(Duration::from_secs(60), &mut waiting).await;
    assert!(waited.is_err(), "the backlog is full");
    assert_eq!(store.depth().await.unwrap().pending(), 3);
    settle(&store, 1).await;
    assert_eq!(waiting.await.unwrap(), Appended::New);
    assert_eq!(store.depth().await.unwrap().pending(), 3);
}

#[tokio::test(start_paused = true)]
async fn try_submit_alone_learns_that_there_is_room_again() {
    let store = MemoryStore::new();
    let jobs = front(&store, 2);
    jobs.submit_all([("a", 1), ("b", 2)]).await;
    assert!(jobs.try_submit("c", 3).is_err());
    settle(&store, 2).await;
    for round in 0.. {
        match jobs.try_submit("c", 3) {
            Ok(handle) => {
                assert_eq!(handle.await.unwrap(), Appended::New);
                return;
            }
            Err(_) => assert!(round < 10, "nobody asks the store"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_to_the_store_counts_as_well() {
    let store = MemoryStore::new();
    let jobs = front(&store, 10);
    let accepted: Vec<_> = (0..1000)
        .filter_map(|n| jobs.try_submit(format!("{n}"), n).ok())
        .collect();
    assert_eq!(accepted.len(), 10);
    for handle in accepted {
        assert_eq!(handle.await.unwrap(), Appended::New);
    }
    assert_eq!(store.depth().await.unwrap().pending(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_backlog_that_was_there_before_counts() {
    let store = MemoryStore::new();
    front(&store, 9)
        .submit_all((0..9).map(|n| (format!("{n}"), n)))
        .await;
    let jobs = front(&store, 5);
    let mut waiting = jobs.submit("w", 1);
    assert!(
        tokio::time::timeout(Duration::from_secs(9), &mut waiting)
            .await
            .is_err()
    );
    settle(&store, 5).await;
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_callers_never_pass_the_limit() {
    let store = MemoryStore::new();
    let jobs = front(&store, 10);
    let callers: Vec<_> = (0..500)
        .map(|n| {
            tokio::spawn({
                let jobs = jobs.clone();
                async move { jobs.submit(format!("{n}"), n).await.unwrap() }
            })
        })
        .collect();
    for _ in 0..500 {
        settle(&store, 1).await;
        assert!(store.depth().await.unwrap().pending() <= 10);
    }
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Appended::New);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_appends_what_was_accepted() {
    let store = MemoryStore::new();
    let cancel = CancellationToken::new();
    let jobs = Durable::<u32>::builder(store.clone())
        .build_running(cancel.clone())
        .unwrap();
    let handles: Vec<_> = (0..100).map(|n| jobs.submit(format!("{n}"), n)).collect();
    cancel.cancel();
    for handle in handles {
        assert_eq!(handle.await.unwrap(), Appended::New);
    }
    jobs.shutdown().await.unwrap();
    assert!(jobs.is_closed());
    assert!(matches!(
        jobs.try_submit("late", 1),
        Err(TrySubmitError::Closed(_))
    ));
    assert_eq!(store.depth().await.unwrap().ready, 100);
}

#[tokio::test(start_paused = true)]
async fn zero_options_are_refused_by_name() {
    let build = |options: fn(_) -> _| {
        let builder = options(Durable::<u32>::builder(MemoryStore::new()));
        let builder: microbatch_durable::DurableBuilder<u32, MemoryStore> = builder;
        builder.build_running(CancellationToken::new()).err()
    };
    assert_eq!(
        build(|b| b.max_pending(0)),
        Some(BuildError::Zero("max_pending"))
    );
    assert_eq!(
        build(|b| b.max_batch_size(0)),
        Some(BuildError::Zero("max_batch_size"))
    );
    assert_eq!(
        build(|b| b.queue_capacity(0)),
        Some(BuildError::Zero("queue_capacity"))
    );
}
