//! The network between a store and its server is paused, cut, closed in one direction or
//! refuses connections: every call ends in time, and all goes on afterwards.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use microbatch_durable::{DeadLetters, JobId, Store, Verdict};
use tokio::time::timeout;

use crate::crew::{Crew, LEASE_TIME, Shared, child};
use crate::engine::Engine;
use crate::job::job;
use crate::ledger::Allowed;
use crate::networked::Networked;
use crate::relay::{Mode, Relay, TROUBLES};
use crate::setup::{count, runtime};

/// The ledger counts on less than half of what a lease holds.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);

/// What a loaded machine adds to a timeout.
const MARGIN: Duration = Duration::from_secs(1);

/// How long a call may take that has to wait for a lease to lapse.
const LONG: Duration = Duration::from_secs(30);

/// One trouble, and what each call makes of it.
struct Trouble<'a, S: Store> {
    mode: Mode,
    relay: &'a Relay,
    /// By way of the relay.
    store: &'a S,
    /// How long each call took in the trouble.
    took: Vec<String>,
}

impl<S: DeadLetters> Trouble<'_, S> {
    /// Calls in the trouble: it has to end in time. Then the relay passes again, and the call
    /// is repeated until it is answered.
    async fn call<T, E: Debug, F: Future<Output = Result<T, E>>>(
        &mut self,
        name: &str,
        call: impl Fn() -> F,
    ) -> T {
        // Connections that are open when the trouble begins.
        answered(|| self.store.depth()).await;
        self.relay.set(self.mode);
        let asked = Instant::now();
        let answer = timeout(CALL_TIMEOUT + MARGIN, call()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{:?}: `{name}` hangs", self.mode));
        let outcome = if answer.is_ok() { "answered" } else { "failed" };
        let took = asked.elapsed().as_millis();
        self.took.push(format!("{name} {outcome} in {took} ms"));
        self.relay.set(Mode::Pass);
        if let Ok(answer) = answer {
            return answer;
        }
        let passes = Instant::now();
        loop {
            let error = match timeout(LONG, call()).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => error,
                Err(_) => panic!("{:?}: `{name}` hangs afterwards", self.mode),
            };
            let passed = passes.elapsed();
            let limit = 3 * CALL_TIMEOUT + MARGIN;
            assert!(
                passed < limit,
                "{:?}: `{name}` still fails: {error:?}",
                self.mode
            );
        }
    }

    /// Leases some of its jobs without trouble.
    async fn lease(&self, jobs: usize) -> Vec<S::Lease> {
        let mut leases = Vec::new();
        while leases.len() < jobs {
            let leased = answered(|| self.store.lease(jobs - leases.len())).await;
            let leased = leased.into_iter();
            leases.extend(leased.map(|job| job.lease));
        }
        leases
    }
}

/// Every method, in every trouble.
async fn each_call<E: Networked>(engine: &E) {
    let relay = Relay::start(engine.address()).await;
    let place = engine.place_at(relay.address(), CALL_TIMEOUT);
    let ground = E::open(&engine.place(), LEASE_TIME).await;
    for (n, mode) in TROUBLES.into_iter().enumerate() {
        let store = E::open(&place, LEASE_TIME).await;
        let mut trouble = Trouble {
            mode,
            relay: &relay,
            store: &store,
            took: Vec::new(),
        };
        let id = |name: &str| JobId::from(format!("{n}-{name}"));

        let jobs = ["a", "b", "c"].map(|name| job(&id(name)));
        let answers = trouble.call("append", || store.append(&jobs)).await;
        assert!(answers.iter().all(|answer| answer.is_accepted()));
        assert_eq!(ground.depth().await.unwrap().ready, 3, "{mode:?}");

        // What a call took whose answer was lost comes again when its lease lapses.
        let mut leased = trouble.call("lease", || store.lease(9)).await;
        while leased.len() < 3 {
            leased.extend(answered(|| store.lease(9)).await);
        }
        let ids: BTreeSet<_> = leased.iter().map(|job| job.id.clone()).collect();
        assert_eq!(ids, BTreeSet::from(["a", "b", "c"].map(id)), "{mode:?}");

        let leases: Vec<_> = leased.into_iter().map(|job| job.lease).collect();
        trouble.call("extend", || store.extend(&leases)).await;
        let released: Vec<_> = leases
            .into_iter()
            .map(|lease| (lease, Verdict::Release))
            .collect();
        answered(|| store.settle(&released)).await;

        let mut leases = trouble.lease(3).await.into_iter();
        let dead = Verdict::Dead {
            reason: "no".to_owned(),
        };
        let mut verdicts: Vec<_> = leases
            .by_ref()
            .take(2)
            .map(|lease| (lease, dead.clone()))
            .collect();
        verdicts.extend(leases.map(|lease| (lease, Verdict::Done)));
        trouble.call("settle", || store.settle(&verdicts)).await;
        let depth = trouble.call("depth", || store.depth()).await;
        assert_eq!((depth.pending(), depth.dead), (0, 2), "{mode:?}");

        let dead = trouble.call("list", || store.list(None, 9)).await;
        let dead: Vec<_> = dead.into_iter().map(|job| job.id).collect();
        assert_eq!(dead.len(), 2, "{mode:?}");
        trouble.call("revive", || store.revive(&dead[..1])).await;
        trouble.call("discard", || store.discard(&dead[1..])).await;
        let depth = ground.depth().await.unwrap();
        assert_eq!(
            (depth.ready, depth.pending(), depth.dead),
            (1, 1, 0),
            "{mode:?}"
        );

        // A call that waits for a job when the trouble begins gets it, or fails, afterwards.
        let done = [(trouble.lease(1).await.remove(0), Verdict::Done)];
        answered(|| store.settle(&done)).await;
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { answered(|| store.lease(9)).await }
        });
        tokio::time::sleep(CALL_TIMEOUT / 2).await;
        relay.set(mode);
        tokio::time::sleep(2 * CALL_TIMEOUT).await;
        ground.append(&[job(&id("late"))]).await.unwrap();
        relay.set(Mode::Pass);
        let leased = timeout(LONG, waiting).await.expect("it hangs").unwrap();
        assert_eq!(leased[0].id, id("late"), "{mode:?}");
        let done = [(leased[0].lease.clone(), Verdict::Done)];
        answered(|| store.settle(&done)).await;
        assert_eq!(ground.depth().await.unwrap().pending(), 0, "{mode:?}");

        relay.set(mode);
        let closed = timeout(CALL_TIMEOUT + MARGIN, store.close()).await;
        closed.unwrap_or_else(|_| panic!("{mode:?}: `close` hangs"));
        drop(relay.pass().await);
        println!("{}, {mode:?}: {}", E::NAME, trouble.took.join(", "));
    }
    ground.close().await;
}

/// Calls until there is an answer: half a second is little on a machine that has other work.
async fn answered<T, E, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let answered = async {
        loop {
            if let Ok(answer) = call().await {
                return answer;
            }
        }
    };
    timeout(LONG, answered).await.expect("it hangs")
}

fn each_call_ends_in_time<E: Networked>() {
    if let Some(engine) = E::make() {
        runtime().block_on(each_call(&engine));
    }
}

/// A store behind a relay.
struct Relayed<E> {
    engine: E,
    relay: SocketAddr,
}

impl<E: Networked> Engine for Relayed<E> {
    type Store = E::Store;

    const NAME: &'static str = E::NAME;

    fn make() -> Option<Self> {
        None
    }

    fn place(&self) -> String {
        self.engine.place_at(self.relay, CALL_TIMEOUT)
    }

    async fn open(place: &str, lease_time: Duration) -> E::Store {
        E::open(place, lease_time).await
    }
}

impl<E: Networked> Shared for Relayed<E> {
    const ALLOWED: Allowed = E::ALLOWED;
}

/// A front and two workers, all behind the relay, which has one trouble after the other.
fn nothing_is_lost<E: Networked>() {
    let Some(engine) = E::make() else {
        return;
    };
    let rounds = count("SERVER_ROUNDS", TROUBLES.len() as u64);
    let started = Instant::now();
    let relaying = runtime();
    let relay = relaying.block_on(Relay::start(engine.address()));
    let engine = Relayed {
        engine,
        relay: relay.address(),
    };
    let longest = Duration::from_millis(20);
    let mut crew = Crew::start(engine, "network", 2, longest);
    for (round, mode) in (0..rounds).zip(TROUBLES.into_iter().cycle()) {
        let callers = crew.submit_for(Duration::from_millis(700));
        let [moment, time] = [400, 2500].map(|most| Duration::from_millis(crew.rng.u64(..most)));
        std::thread::sleep(moment);
        relay.set(mode);
        std::thread::sleep(time);
        relay.set(Mode::Pass);
        let passes = Instant::now();
        crew.settle(callers);
        let figures = crew.ledger.lock().unwrap().figures();
        println!(
            "{}, round {round}: {mode:?} for {time:?}; {figures}; all done {:?} after it passed \
             again, {:?}",
            E::NAME,
            passes.elapsed(),
            started.elapsed(),
        );
    }
    crew.stop();
}

on_each_server! {
    tests: each_call_ends_in_time, nothing_is_lost;
    child: child;
}
