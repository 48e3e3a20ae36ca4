//! One suite that every store passes.
//!
//! [`run`] makes all checks, one after another. Each is also a function of its own, to be
//! run by its name. A check that fails panics with its name and with what was expected.
//!
//! A check opens its store by a name, which is that of the check: lower case letters and
//! underscores. `make_store` opens the store of that name. The same name again is the same
//! storage again, which is how durability is tested: the check calls
//! [`close`](Store::close), drops the store, and opens it again. A name that was not used
//! before is an empty store.
//!
//! - A store on disk or on a server runs in real time. One without
//!   [`lease_time`](Store::lease_time) spends about a second on delays. One with a lease
//!   time spends about six times its length on leases that lapse, so give it a short one; and one
//!   that is long enough for a slow machine, since a lease that lapses early fails a check:
//!   some seconds are good.
//! - A store whose clock is Tokio's may be run with the clock paused.
//! - Ids are to stay taken for as long as a check lasts once their job is done, so leave
//!   the deduplication window at minutes.
//! - A store that says in [`promises`](Store::promises) that it does not keep one of the
//!   finer promises is not asked for it.
//! - Checks start tasks, on the runtime that they run on.
//!
//! # Examples
//!
//! A store on disk has a file for each name:
//!
//! ```
//! # #[cfg(feature = "redb")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use microbatch_durable::{RedbStore, conformance};
//!
//! let folder = tempfile::tempdir().unwrap();
//! let make_store = async |name: &str| RedbStore::open(folder.path().join(name)).await.unwrap();
//! conformance::duplicates(make_store).await; // one check
//! # }
//! # #[cfg(not(feature = "redb"))]
//! # fn main() {}
//! ```
//!
//! A store in memory is kept by its name, and told that its process has died:
//!
//! ```
//! use std::cell::RefCell;
//! use std::collections::HashMap;
//!
//! use microbatch_durable::{MemoryStore, conformance};
//!
//! # fn main() {
//! # let runtime = tokio::runtime::Builder::new_current_thread()
//! #     .enable_time().start_paused(true).build().unwrap();
//! # runtime.block_on(async {
//! let stores = RefCell::new(HashMap::<String, MemoryStore>::new());
//! conformance::run(async |name: &str| {
//!     let mut stores = stores.borrow_mut();
//!     let store = stores.entry(name.to_owned()).or_default();
//!     store.restart();
//!     store.clone()
//! })
//! .await;
//! # });
//! # }
//! ```

mod append;
mod dead;
mod lease;
mod settle;
mod whole;

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use crate::job::{Depth, JobId, Leased, NewJob};
use crate::outcome::{Appended, Settled, Verdict};
use crate::store::{DeadLetters, Store};

pub use append::{appended_jobs_survive, duplicates, ids, large_payloads, refusals};
pub use dead::{dead_letters, discard, list_pages, revive};
pub use lease::{
    concurrent_leases, dropped_leases, empty_calls, lease_limits, lease_waits, order, redelivery,
};
pub use settle::{
    extend, lost_leases, release, retry_at_once, retry_delay, settled_by_the_processor,
    settled_twice, several_verdicts,
};
pub use whole::{backlog, depth, drain};

/// How long one check may take.
const LONGEST_CHECK: Duration = Duration::from_secs(600);

/// How long a job that is due may keep its lease waiting.
const LONGEST_LEASE: Duration = Duration::from_secs(60);

/// Makes all checks.
///
/// # Panics
///
/// If one fails, with its name.
pub async fn run<S: DeadLetters>(make_store: impl AsyncFn(&str) -> S) {
    let make_store = &make_store;
    appended_jobs_survive(make_store).await;
    duplicates(make_store).await;
    ids(make_store).await;
    refusals(make_store).await;
    large_payloads(make_store).await;
    order(make_store).await;
    lease_limits(make_store).await;
    lease_waits(make_store).await;
    dropped_leases(make_store).await;
    concurrent_leases(make_store).await;
    redelivery(make_store).await;
    empty_calls(make_store).await;
    retry_at_once(make_store).await;
    retry_delay(make_store).await;
    release(make_store).await;
    settled_by_the_processor(make_store).await;
    settled_twice(make_store).await;
    several_verdicts(make_store).await;
    lost_leases(make_store).await;
    extend(make_store).await;
    dead_letters(make_store).await;
    list_pages(make_store).await;
    revive(make_store).await;
    discard(make_store).await;
    depth(make_store).await;
    drain(make_store).await;
    backlog(make_store).await;
}

/// Makes one check. A panic in it is one of the check's name.
async fn named(name: &str, check: impl Future<Output = ()>) {
    tracing::debug!(check = name, "checking the store");
    let mut check = pin!(check);
    let caught = poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| check.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        },
    );
    match timeout(LONGEST_CHECK, caught).await {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => panic!("the check `{name}` failed: {}", message(&*panic)),
        Err(_) => panic!("the check `{name}` did not end within {LONGEST_CHECK:?}"),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message,
        _ => "no message",
    }
}

/// Closes a store and opens it again.
async fn reopen<S: Store>(store: S, make_store: impl AsyncFn(&str) -> S, name: &str) -> S {
    store.close().await;
    drop(store);
    make_store(name).await
}

/// Has all leases end unsettled. With a lease time, the next lease waits for that.
async fn lose_leases<S: Store>(store: S, make_store: impl AsyncFn(&str) -> S, name: &str) -> S {
    match store.lease_time() {
        None => reopen(store, make_store, name).await,
        Some(_) => store,
    }
}

fn job(id: impl Into<JobId>) -> NewJob {
    let id = id.into();
    NewJob {
        payload: format!("{:?}", &*id).into(),
        codec: "json".into(),
        id,
    }
}

/// `count` jobs with ids that sort as they count.
fn jobs(count: usize) -> Vec<NewJob> {
    (0..count).map(|n| job(format!("job-{n:06}"))).collect()
}

fn expect<T, E: std::error::Error + 'static>(outcome: Result<T, E>, call: &str) -> T {
    outcome.unwrap_or_else(|error| {
        let error = crate::outcome::describe(&error);
        panic!("`{call}` failed: {error}")
    })
}

fn expect_count<T: Debug>(answers: Vec<T>, asked: usize, call: &str) -> Vec<T> {
    let given = answers.len();
    assert!(
        given == asked,
        "`{call}` has to answer {asked} times; it answered {given} times: {answers:?}"
    );
    answers
}

async fn append<S: Store>(store: &S, jobs: &[NewJob]) -> Vec<Appended> {
    let answers = expect(store.append(jobs).await, "append");
    expect_count(answers, jobs.len(), "append")
}

/// Appends jobs that are all new.
async fn append_new<S: Store>(store: &S, jobs: &[NewJob]) {
    for (answer, job) in append(store, jobs).await.iter().zip(jobs) {
        assert!(
            *answer == Appended::New,
            "{:?} is new to the store, which answered {answer:?}",
            job.id
        );
    }
}

/// Leases of a store that has, or will by itself have, a job that is due.
async fn lease<S: Store>(store: &S, max: usize) -> Vec<Leased<S::Lease>> {
    let longest = LONGEST_LEASE + store.lease_time().unwrap_or_default();
    let Ok(leased) = timeout(longest, store.lease(max)).await else {
        panic!("a job is due, and `lease` did not give it within {longest:?}");
    };
    let leased = expect(leased, "lease");
    let given = leased.len();
    assert!(
        (1..=max).contains(&given),
        "`lease({max})` has to give 1 to {max} jobs; it gave {given}"
    );
    leased
}

/// Leases until there are `count` jobs.
async fn lease_all<S: Store>(store: &S, count: usize) -> Vec<Leased<S::Lease>> {
    let mut leased = Vec::new();
    while leased.len() < count {
        leased.extend(lease(store, count - leased.len()).await);
    }
    leased
}

/// Fails if a job can be leased.
async fn expect_nothing_due<S: Store>(store: &S, why: &str) {
    let ready = expect(store.depth().await, "depth").ready;
    assert!(
        ready == 0,
        "{why}: no job is due, and `depth` says that {ready} are ready"
    );
    // The lease has as long as the store needs to answer the other call, which came later.
    tokio::select! {
        biased;
        leased = store.lease(usize::MAX) => {
            let leased = expect(leased, "lease");
            panic!("{why}: no job is due, and `lease` gave {:?}", seen(&leased));
        }
        _ = store.depth() => {}
    }
}

fn seen<L>(leased: &[Leased<L>]) -> Vec<(&str, u32)> {
    leased
        .iter()
        .map(|job| (&*job.id, job.attempt.get()))
        .collect()
}

/// The same without the order.
fn seen_as_set<L>(leased: &[Leased<L>]) -> BTreeSet<(&str, u32)> {
    seen(leased).into_iter().collect()
}

fn expect_seen<L>(leased: &[Leased<L>], expected: &[(&str, u32)], why: &str) {
    let seen = seen(leased);
    assert!(
        seen == expected,
        "{why}: expected the ids and attempts {expected:?}; `lease` gave {seen:?}"
    );
}

async fn settle<S: Store>(store: &S, verdicts: &[(S::Lease, Verdict)]) -> Vec<Settled> {
    let answers = expect(store.settle(verdicts).await, "settle");
    expect_count(answers, verdicts.len(), "settle")
}

/// Settles leases that hold.
async fn settle_held<S: Store>(store: &S, verdicts: &[(S::Lease, Verdict)]) {
    for (answer, (_, verdict)) in settle(store, verdicts).await.iter().zip(verdicts) {
        assert!(
            *answer != Settled::Lost,
            "the lease holds, and `settle` with {verdict:?} answered `Lost`"
        );
    }
}

/// Settles leases that do not hold.
async fn settle_lost<S: Store>(store: &S, verdicts: &[(S::Lease, Verdict)], why: &str) {
    for (answer, (_, verdict)) in settle(store, verdicts).await.iter().zip(verdicts) {
        assert!(
            *answer != Settled::Held,
            "{why}: the lease does not hold, and `settle` with {verdict:?} answered `Held`"
        );
    }
}

async fn settle_all<S: Store>(store: &S, leased: &[Leased<S::Lease>], verdict: &Verdict) {
    let verdicts: Vec<_> = leased
        .iter()
        .map(|job| (job.lease.clone(), verdict.clone()))
        .collect();
    settle_held(store, &verdicts).await;
}

fn retry(after: Duration) -> Verdict {
    Verdict::Retry {
        after,
        reason: "to be tried again".to_owned(),
    }
}

fn dead(reason: &str) -> Verdict {
    Verdict::Dead {
        reason: reason.to_owned(),
    }
}

/// Counts so many jobs as delayed that were so before the store was opened again, if the
/// store counts them as leased and does not promise otherwise.
fn with_delays<S: Store>(store: &S, found: Depth, delayed: u64) -> Depth {
    let as_leased = delayed.saturating_sub(found.delayed);
    match store.promises().delays_counted || as_leased > found.leased {
        true => found,
        false => Depth {
            leased: found.leased - as_leased,
            delayed: found.delayed + as_leased,
            ..found
        },
    }
}

/// Later than any check lasts.
const LATER: Duration = Duration::from_secs(86_400);

/// Each verdict that changes something.
fn verdicts() -> [Verdict; 5] {
    [
        Verdict::Done,
        retry(Duration::ZERO),
        retry(LATER),
        dead("it was the verdict"),
        Verdict::Release,
    ]
}

/// Polls a future once.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}
