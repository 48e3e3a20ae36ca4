//! The store answers as a simple model of it does, whatever is done in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use fastrand::Rng;
use microbatch_durable::{
    Appended, DeadLetters, JetStreamLease, JetStreamStore, JobId, Settled, Store, Verdict,
};
use microbatch_nats::{Options, Server, programs};

use crate::job::job;
use crate::support::server;

const IDS: u8 = 7;
const STEPS: usize = 300;

/// Later than the test lasts.
const LATER: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Due,
    /// By the last delivery.
    Leased,
    Delayed,
    Dead,
    /// Less than the window ago.
    Done,
}

/// What is known of an id. No id that is not here was ever appended, or it was discarded.
#[derive(Debug, Clone, Copy)]
struct Job {
    state: State,
    /// How many deliveries are counted.
    attempt: u32,
}

/// The model, and the leases that were given.
#[derive(Default)]
struct Model {
    jobs: BTreeMap<JobId, Job>,
    leases: Vec<(JobId, JetStreamLease, bool)>,
}

impl Model {
    fn count(&self, state: State) -> u64 {
        self.jobs.values().filter(|job| job.state == state).count() as u64
    }

    fn ids(&self, state: State) -> BTreeSet<JobId> {
        let jobs = self.jobs.iter().filter(|(_, job)| job.state == state);
        jobs.map(|(id, _)| id.clone()).collect()
    }

    fn append(&mut self, id: &JobId) -> Appended {
        if self.jobs.contains_key(id) {
            return Appended::Duplicate;
        }
        let (state, attempt) = (State::Due, 0);
        self.jobs.insert(id.clone(), Job { state, attempt });
        Appended::New
    }

    fn settle(&mut self, at: usize, verdict: &Verdict) -> Settled {
        let (id, _, held) = &mut self.leases[at];
        if !*held {
            return Settled::Lost;
        }
        let job = self.jobs.get_mut(id).unwrap();
        job.state = match verdict {
            Verdict::Settled => return Settled::Held,
            Verdict::Done => State::Done,
            Verdict::Dead { .. } => State::Dead,
            Verdict::Retry { after, .. } if after.is_zero() => State::Due,
            Verdict::Retry { .. } => State::Delayed,
            Verdict::Release => {
                job.attempt -= 1;
                State::Due
            }
        };
        *held = false;
        Settled::Held
    }
}

async fn run(seed: u64, server: &Server, stores: &[JetStreamStore]) {
    let mut rng = Rng::with_seed(seed);
    let mut model = Model::default();
    let store = &stores[0];
    for step in 0..STEPS {
        let at = format!("seed {seed}, step {step} on {}", server.url());
        let ids: Vec<JobId> = (0..rng.usize(1..4))
            .map(|_| format!("id {}", rng.u8(..IDS)).into())
            .collect();
        match rng.u8(..8) {
            0 | 1 => {
                let jobs: Vec<_> = ids.iter().map(|id| job(id)).collect();
                // Another process, which leases nothing.
                let store = rng.choice(stores).unwrap();
                let expected: Vec<_> = ids.iter().map(|id| model.append(id)).collect();
                assert_eq!(store.append(&jobs).await.unwrap(), expected, "{at}");
            }
            2 | 3 => {
                let due = model.ids(State::Due);
                if due.is_empty() {
                    continue;
                }
                let max = rng.usize(1..5);
                let leased = store.lease(max).await.unwrap();
                assert!((1..=max).contains(&leased.len()), "{at}: {leased:?}");
                for job in leased {
                    assert!(due.contains(&job.id), "{at}: {:?} is not due", job.id);
                    let known = model.jobs.get_mut(&job.id).unwrap();
                    assert_eq!(known.state, State::Due, "{at}: {:?} came twice", job.id);
                    known.state = State::Leased;
                    known.attempt += 1;
                    assert_eq!(NonZeroU32::new(known.attempt), Some(job.attempt), "{at}");
                    assert_eq!(job.payload, crate::job::job(&job.id).payload, "{at}");
                    model.leases.push((job.id, job.lease, true));
                }
            }
            4 | 5 if !model.leases.is_empty() => {
                let reason = "drawn".to_owned();
                let verdicts: Vec<_> = (0..rng.usize(1..4))
                    .map(|_| {
                        let verdict = match rng.u8(..7) {
                            0 | 1 => Verdict::Done,
                            2 => Verdict::Dead {
                                reason: reason.clone(),
                            },
                            3 => Verdict::Release,
                            4 => Verdict::Settled,
                            5 => Verdict::Retry {
                                after: LATER,
                                reason: reason.clone(),
                            },
                            _ => Verdict::Retry {
                                after: Duration::ZERO,
                                reason: reason.clone(),
                            },
                        };
                        // Mostly a late one.
                        let back = rng.usize(..model.leases.len().min(5));
                        (model.leases.len() - 1 - back, verdict)
                    })
                    .collect();
                let asked: Vec<_> = verdicts
                    .iter()
                    .map(|(at, verdict)| (model.leases[*at].1.clone(), verdict.clone()))
                    .collect();
                let expected: Vec<_> = verdicts
                    .iter()
                    .map(|(at, verdict)| model.settle(*at, verdict))
                    .collect();
                let answers = store.settle(&asked).await.unwrap();
                assert_eq!(answers, expected, "{at}: {asked:?}");
            }
            6 => {
                let is_revived = rng.bool();
                let store = rng.choice(stores).unwrap();
                let expected: Vec<_> = ids
                    .iter()
                    .map(|id| {
                        let job = model.jobs.get(id).copied();
                        let found = job.is_some_and(|job| job.state == State::Dead);
                        if found && is_revived {
                            let (state, attempt) = (State::Due, 0);
                            model.jobs.insert(id.clone(), Job { state, attempt });
                        } else if found {
                            model.jobs.remove(id);
                        }
                        found
                    })
                    .collect();
                let answers = match is_revived {
                    true => store.revive(&ids).await.unwrap(),
                    false => store.discard(&ids).await.unwrap(),
                };
                assert_eq!(answers, expected, "{at}: {ids:?}, revived {is_revived}");
            }
            _ => {
                let leases: Vec<_> = model.leases.iter().rev().take(5).collect();
                let asked: Vec<_> = leases.iter().map(|(_, lease, _)| lease.clone()).collect();
                let expected: Vec<_> = leases
                    .iter()
                    .map(|(_, _, held)| match held {
                        true => Settled::Held,
                        false => Settled::Lost,
                    })
                    .collect();
                assert_eq!(store.extend(&asked).await.unwrap(), expected, "{at}");
            }
        }
        let depth = store.depth().await.unwrap();
        let counts = (depth.ready, depth.leased, depth.delayed, depth.dead);
        let [due, leased, delayed, dead] = [State::Due, State::Leased, State::Delayed, State::Dead]
            .map(|state| model.count(state));
        assert_eq!(counts, (due, leased, delayed, dead), "{at}");
        assert_eq!(depth.oldest.is_some(), depth.pending() > 0, "{at}");
        let letters = rng.choice(stores).unwrap().list(None, 99).await.unwrap();
        let listed: Vec<_> = letters.into_iter().map(|letter| letter.id).collect();
        assert!(
            model.ids(State::Dead).iter().eq(&listed),
            "{at}: {listed:?}"
        );
    }
}

#[tokio::test]
async fn it_answers_as_the_model_does_on_every_server() {
    let programs = programs();
    if programs.is_empty() {
        // It says so.
        return drop(server(Options::default()));
    }
    for program in programs {
        let server = Server::start(&program, Options::default()).unwrap();
        for seed in 0..8 {
            // Nothing passes with time.
            let open = || {
                JetStreamStore::builder()
                    .stream(format!("model-{seed}"))
                    .lease_time(LATER)
                    .dedup_window(LATER)
                    .connect(server.url())
            };
            let stores = [open().await.unwrap(), open().await.unwrap()];
            run(seed, &server, &stores).await;
        }
    }
}
