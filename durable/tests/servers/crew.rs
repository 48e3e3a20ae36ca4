//! Worker processes on a store, and a front that submits to it; all they say goes into a
//! ledger.

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backon::ConstantBuilder;
use fastrand::Rng;
use microbatch_durable::{
    CancellationToken, DeadLetters as _, Drain, DrainError, Drained, Durable, Store as _,
};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::by_seed::{BySeed, MAX_ATTEMPTS};
use crate::child::{self, Running, child_of, say};
use crate::engine::Engine;
use crate::ledger::{Allowed, Ledger};
use crate::setup::{count, runtime};
use crate::told::Told;

pub(crate) const LEASE_TIME: Duration = Duration::from_millis(1500);

/// How long it may take until nothing is left.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many submit at once.
const CALLERS: u64 = 8;

/// Answers each line that the parent of this process writes, until it closes the pipe.
pub(crate) fn stop_at_end_of_input(stop: CancellationToken) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            say(format!("heard {}", line.unwrap()));
        }
        stop.cancel();
    });
}

/// Drains until its parent closes its input.
pub(crate) fn child<E: Engine>() {
    let Some(orders) = child::orders() else {
        return;
    };
    let [place, seed, longest] = &orders[..] else {
        panic!("{orders:?}");
    };
    let mut rng = Rng::with_seed(seed.parse().unwrap());
    let longest = Duration::from_micros(longest.parse().unwrap());
    runtime().block_on(async {
        let store = Told(E::open(place, LEASE_TIME).await);
        let stop = CancellationToken::new();
        stop_at_end_of_input(stop.clone());
        let drain = Drain::builder(store, BySeed::new(rng.fork(), longest))
            .max_batch_size(16)
            .max_attempts(MAX_ATTEMPTS)
            .max_in_flight(rng.usize(1..4))
            .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(2)))
            .build()
            .unwrap();
        run_and_say(drain.run(stop)).await;
    });
}

/// Runs a drain, which is said at its beginning and its end.
pub(crate) async fn run_and_say(run: impl Future<Output = Result<Drained, DrainError>>) {
    say("drains");
    let drained = run.await.unwrap();
    say(format!("drained {drained:?}"));
}

/// A store that processes share.
pub(crate) trait Shared: Engine {
    /// What it may do that others may not.
    const ALLOWED: Allowed = Allowed::NOTHING;
}

pub(crate) struct Worker {
    pub(crate) running: Running,
    pub(crate) number: u32,
}

pub(crate) struct Crew<E: Shared> {
    pub(crate) engine: E,
    pub(crate) workers: Vec<Worker>,
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) rng: Rng,
    pub(crate) runtime: Runtime,
    store: E::Store,
    front: Durable<String>,
    /// The test that is their child.
    child: String,
    /// How long a batch takes at most.
    longest: Duration,
    started: u32,
    round: u64,
}

impl<E: Shared> Crew<E> {
    /// Starts workers, which are children of a module that has tests for each engine.
    pub(crate) fn start(engine: E, module: &str, workers: usize, longest: Duration) -> Self {
        Self::start_child(engine, child_of::<E>(module), workers, longest)
    }

    /// Starts workers, which run this test.
    pub(crate) fn start_child(engine: E, child: String, workers: usize, longest: Duration) -> Self {
        let runtime = runtime();
        let store = runtime.block_on(E::open(&engine.place(), LEASE_TIME));
        let front = runtime.block_on(async {
            Durable::builder(store.clone())
                .build_running(CancellationToken::new())
                .unwrap()
        });
        let mut crew = Self {
            engine,
            workers: Vec::new(),
            ledger: Arc::new(Mutex::new(Ledger::new(LEASE_TIME, E::ALLOWED))),
            rng: Rng::with_seed(count("SERVER_SEED", 7)),
            runtime,
            store,
            front,
            child,
            longest,
            started: 0,
            round: 0,
        };
        for _ in 0..workers {
            crew.start_worker();
        }
        for worker in &crew.workers {
            while worker.running.line().expect("it drains") != "drains" {}
        }
        crew
    }

    pub(crate) fn start_worker(&mut self) {
        let orders = [
            self.rng.u64(..).to_string(),
            self.longest.as_micros().to_string(),
        ];
        let running = Running::start(&self.child, &self.engine.place(), &orders);
        self.started += 1;
        self.workers.push(Worker {
            running,
            number: self.started,
        });
    }

    /// Kills a worker, and notes what it had said.
    pub(crate) fn kill_worker(&mut self, at: usize) {
        let mut worker = self.workers.remove(at);
        worker.running.child.kill().unwrap();
        while let Some(line) = worker.running.line() {
            self.ledger.lock().unwrap().hear(worker.number, &line);
        }
        worker.running.wait();
    }

    /// Notes what was said until now.
    pub(crate) fn hear(&mut self) {
        for worker in &self.workers {
            while let Ok(line) = worker.running.line_until(Instant::now()) {
                let line = line.expect("a worker ended by itself");
                self.ledger.lock().unwrap().hear(worker.number, &line);
            }
        }
    }

    /// Submits jobs for some time. What fails is submitted again under its id until it is
    /// acknowledged.
    pub(crate) fn submit_for(&mut self, time: Duration) -> JoinSet<()> {
        self.round += 1;
        let until = Instant::now() + time;
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (front, ledger) = (self.front.clone(), Arc::clone(&self.ledger));
            let (mut rng, round) = (self.rng.fork(), self.round);
            let submit = async move {
                for n in 0.. {
                    if Instant::now() >= until {
                        return;
                    }
                    let id = format!("{round}-{caller}-{n}");
                    let answer = loop {
                        match front.submit(id.clone(), id.clone()).await {
                            Ok(answer) => break answer,
                            Err(_) => {
                                ledger.lock().unwrap().repeats += 1;
                                sleep(Duration::from_millis(rng.u64(..30))).await;
                            }
                        }
                    };
                    ledger.lock().unwrap().acknowledge(&id, &answer);
                    sleep(Duration::from_millis(rng.u64(..20))).await;
                }
            };
            callers.spawn_on(submit, self.runtime.handle());
        }
        callers
    }

    /// Waits until all callers have their answers and nothing is left in the store. Then
    /// judges.
    pub(crate) fn settle(&mut self, mut callers: JoinSet<()>) {
        self.runtime.block_on(async {
            while let Some(caller) = callers.join_next().await {
                caller.unwrap();
            }
        });
        let started = Instant::now();
        loop {
            self.hear();
            let depth = self.runtime.block_on(self.store.depth());
            if depth.as_ref().is_ok_and(|depth| depth.pending() == 0) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "it does not go on: {depth:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        // An answer comes after all that was said before it.
        for worker in &self.workers {
            let mut orders = worker.running.child.stdin.as_ref().unwrap();
            orders.write_all(b"you\n").unwrap();
            loop {
                let line = worker.running.line().expect("a worker ended by itself");
                if line == "heard you" {
                    break;
                }
                self.ledger.lock().unwrap().hear(worker.number, &line);
            }
        }
        let dead = self.runtime.block_on(self.store.list(None, usize::MAX));
        self.ledger.lock().unwrap().judge(&dead.unwrap());
    }

    /// Stops all workers, who have nothing to do.
    pub(crate) fn stop(mut self) {
        for mut worker in self.workers.drain(..) {
            drop(worker.running.child.stdin.take());
            let mut last = String::new();
            while let Some(line) = worker.running.line() {
                self.ledger.lock().unwrap().hear(worker.number, &line);
                if line.starts_with("drained ") {
                    last = line;
                }
            }
            assert!(worker.running.wait().success());
            println!("worker {}: {last}", worker.number);
        }
        self.runtime.block_on(self.front.shutdown()).unwrap();
        let depth = self.runtime.block_on(self.store.depth()).unwrap();
        assert_eq!(depth.pending(), 0);
        self.runtime.block_on(self.store.close());
    }
}
