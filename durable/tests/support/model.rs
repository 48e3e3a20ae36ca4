//! A model of a store, and steps that are done to both. Each target has its stores.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use microbatch_durable::{Appended, DeadLetters, Depth, JobId, NewJob, Settled, Store, Verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const IDS: u8 = 6;
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A case that takes longer hangs. The longest ones take about a second.
const CASE_LIMIT: Duration = Duration::from_secs(60);

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Its turn.
    Line,
    /// A time.
    Until(Duration),
    /// The settlement of this delivery, or the end of its time.
    Lease(usize, Option<Duration>),
    /// Somebody to revive it.
    Dead,
}

#[derive(Debug, Clone)]
struct Job {
    id: u8,
    place: u64,
    attempt: u32,
    wait: Wait,
}

/// What a store is to answer. Deliveries are numbered as they are made.
#[derive(Debug)]
pub(crate) struct Model {
    now: Duration,
    lease_time: Option<Duration>,
    dedup_window: Duration,
    jobs: Vec<Job>,
    settled: BTreeMap<u8, Duration>,
    places: u64,
    deliveries: usize,
}

impl Model {
    pub(crate) fn new(lease_time: Option<Duration>, dedup_window: Duration) -> Self {
        Self {
            now: Duration::ZERO,
            lease_time,
            dedup_window,
            jobs: Vec::new(),
            settled: BTreeMap::new(),
            places: 0,
            deliveries: 0,
        }
    }

    fn place(&mut self) -> u64 {
        self.places += 1;
        self.places
    }

    fn sorted(&mut self, is_chosen: impl Fn(&Job) -> bool) -> Vec<&mut Job> {
        let mut jobs: Vec<_> = self.jobs.iter_mut().filter(|job| is_chosen(job)).collect();
        jobs.sort_by_key(|job| job.place);
        jobs
    }

    /// Does what time has brought.
    fn pass(&mut self, by: Duration) {
        self.now += by;
        let now = self.now;
        self.settled.retain(|_, at| *at + self.dedup_window > now);
        let mut due = Vec::new();
        for (at, job) in self.jobs.iter_mut().enumerate() {
            match job.wait {
                Wait::Lease(_, Some(until)) if until <= now => job.wait = Wait::Line,
                Wait::Until(until) if until <= now => due.push((until, at)),
                _ => {}
            }
        }
        // Of those due at the same time, the oldest first.
        due.sort_unstable();
        for (_, at) in due {
            self.jobs[at].place = self.place();
            self.jobs[at].wait = Wait::Line;
        }
    }

    fn append(&mut self, id: u8) -> Appended {
        let is_taken = self.jobs.iter().any(|job| job.id == id) || self.settled.contains_key(&id);
        if is_taken {
            return Appended::Duplicate;
        }
        let place = self.place();
        let (attempt, wait) = (0, Wait::Line);
        self.jobs.push(Job {
            id,
            place,
            attempt,
            wait,
        });
        Appended::New
    }

    fn lease(&mut self, max: usize) -> Vec<(u8, u32)> {
        let until = self.lease_time.map(|time| self.now + time);
        let mut deliveries = self.deliveries;
        let mut line = self.sorted(|job| job.wait == Wait::Line);
        line.truncate(max);
        let leased = line.into_iter().map(|job| {
            job.attempt += 1;
            job.wait = Wait::Lease(deliveries, until);
            deliveries += 1;
            (job.id, job.attempt)
        });
        let leased = leased.collect();
        self.deliveries = deliveries;
        leased
    }

    fn held(&self, delivery: usize) -> Option<usize> {
        let is_its = |job: &Job| matches!(job.wait, Wait::Lease(of, _) if of == delivery);
        self.jobs.iter().position(is_its)
    }

    fn settle(&mut self, delivery: usize, verdict: &Verdict) -> Settled {
        let Some(at) = self.held(delivery) else {
            return Settled::Lost;
        };
        match verdict {
            Verdict::Done => {
                let job = self.jobs.remove(at);
                self.settled.insert(job.id, self.now);
            }
            Verdict::Retry { after, .. } if after.is_zero() => {
                self.jobs[at].place = self.place();
                self.jobs[at].wait = Wait::Line;
            }
            Verdict::Retry { after, .. } => self.jobs[at].wait = Wait::Until(self.now + *after),
            Verdict::Dead { .. } => self.jobs[at].wait = Wait::Dead,
            Verdict::Release => {
                self.jobs[at].attempt -= 1;
                self.jobs[at].wait = Wait::Line;
            }
            Verdict::Settled => {}
        }
        Settled::Held
    }

    fn extend(&mut self, delivery: usize) -> Settled {
        let Some(at) = self.held(delivery) else {
            return Settled::Lost;
        };
        self.jobs[at].wait = Wait::Lease(delivery, self.lease_time.map(|time| self.now + time));
        Settled::Held
    }

    /// Ends every lease.
    fn crash(&mut self) {
        for job in self.sorted(|job| matches!(job.wait, Wait::Lease(..))) {
            job.wait = Wait::Line;
        }
    }

    fn is_dead(&self, id: u8) -> Option<usize> {
        let is_it = |job: &Job| job.id == id && job.wait == Wait::Dead;
        self.jobs.iter().position(is_it)
    }

    fn revive(&mut self, id: u8) -> bool {
        let Some(at) = self.is_dead(id) else {
            return false;
        };
        self.jobs.remove(at);
        self.append(id) == Appended::New
    }

    fn discard(&mut self, id: u8) -> bool {
        let found = self.is_dead(id);
        found.map(|at| self.jobs.remove(at)).is_some()
    }

    fn list(&self, after: Option<u8>, limit: usize) -> Vec<(u8, u32)> {
        let mut dead: Vec<_> = self
            .jobs
            .iter()
            .filter(|job| job.wait == Wait::Dead && after.is_none_or(|after| job.id > after))
            .map(|job| (job.id, job.attempt))
            .collect();
        dead.sort_unstable();
        dead.truncate(limit);
        dead
    }

    fn depth(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for job in &self.jobs {
            counts[match job.wait {
                Wait::Line => 0,
                Wait::Lease(..) => 1,
                Wait::Until(_) => 2,
                Wait::Dead => 3,
            }] += 1;
        }
        counts
    }
}

/// What is done to both. Deliveries are chosen from the latest on backwards.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Append(Vec<u8>),
    Lease(usize),
    Settle(Vec<(usize, Verdict)>),
    Extend(Vec<usize>),
    List(Option<u8>, usize),
    Revive(Vec<u8>),
    Discard(Vec<u8>),
    /// The process ends, orderly or not.
    Crash {
        orderly: bool,
    },
    /// Time passes, for a store whose clock can be set.
    Clock(Duration),
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let retry = |after| Verdict::Retry {
        after,
        reason: "again".to_owned(),
    };
    let after = prop_oneof![Just(HOUR), (1..9_u64).prop_map(Duration::from_secs)];
    prop_oneof![
        3 => Just(Verdict::Done),
        2 => Just(retry(Duration::ZERO)),
        2 => after.prop_map(retry),
        2 => Just(Verdict::Dead { reason: "no".to_owned() }),
        2 => Just(Verdict::Release),
        1 => Just(Verdict::Settled),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let ids = || vec(0..IDS, 0..4);
    prop_oneof![
        6 => vec(0..IDS, 0..6).prop_map(Step::Append),
        8 => (1..5_usize).prop_map(Step::Lease),
        8 => vec((0..6_usize, verdict()), 0..5).prop_map(Step::Settle),
        2 => vec(0..6_usize, 0..4).prop_map(Step::Extend),
        1 => (proptest::option::of(0..IDS), 0..4_usize).prop_map(|(id, max)| Step::List(id, max)),
        2 => ids().prop_map(Step::Revive),
        2 => ids().prop_map(Step::Discard),
        2 => any::<bool>().prop_map(|orderly| Step::Crash { orderly }),
        4 => (0..12_u64).prop_map(|secs| Step::Clock(Duration::from_secs(secs))),
    ]
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..60)
}

/// A store under test.
pub(crate) trait Subject: Sized {
    type Store: DeadLetters;

    fn store(&self) -> &Self::Store;
    /// Whether leases end with the process.
    const ENDS_LEASES: bool;
    async fn crash(self, orderly: bool) -> Self;
    /// Lets time pass. Returns how much did.
    fn advance(&self, by: Duration) -> Duration;
}

fn id(number: u8) -> JobId {
    format!("id-{number}").into()
}

fn number(id: &str) -> u8 {
    id.trim_start_matches("id-").parse().unwrap()
}

fn job(number: u8) -> NewJob {
    NewJob {
        id: id(number),
        codec: "json".into(),
        payload: vec![number; usize::from(number)].into(),
    }
}

/// Does each step to both, and compares each answer. `reached` is the step it is at.
pub(crate) async fn compare<S: Subject>(
    mut subject: S,
    mut model: Model,
    steps: Vec<Step>,
    reached: &AtomicUsize,
) {
    let mut leases: Vec<<S::Store as Store>::Lease> = Vec::new();
    for (at, step) in steps.into_iter().enumerate() {
        reached.store(at, Ordering::Relaxed);
        let store = subject.store();
        match step.clone() {
            Step::Append(ids) => {
                let jobs: Vec<_> = ids.iter().copied().map(job).collect();
                let answers = store.append(&jobs).await.unwrap();
                let expected: Vec<_> = ids.into_iter().map(|id| model.append(id)).collect();
                assert_eq!(answers, expected, "{step:?}");
            }
            Step::Lease(max) => {
                let expected = model.lease(max);
                let mut leased = Vec::new();
                if expected.is_empty() {
                    expect_nothing_due(store, max, at).await;
                } else {
                    leased = store.lease(max).await.unwrap();
                }
                let seen: Vec<_> = leased
                    .iter()
                    .map(|job| (number(&job.id), job.attempt.get()))
                    .collect();
                assert_eq!(seen, expected, "{step:?}");
                for leased in leased {
                    let new = job(number(&leased.id));
                    assert_eq!((leased.payload, leased.codec), (new.payload, new.codec));
                    leases.push(leased.lease);
                }
            }
            Step::Settle(verdicts) => {
                let chosen = verdicts.into_iter().filter_map(|(back, verdict)| {
                    let delivery = leases.len().checked_sub(1 + back)?;
                    Some((delivery, verdict))
                });
                let chosen: Vec<_> = chosen.collect();
                let verdicts: Vec<_> = chosen
                    .iter()
                    .map(|(delivery, verdict)| (leases[*delivery].clone(), verdict.clone()))
                    .collect();
                let answers = store.settle(&verdicts).await.unwrap();
                let expected: Vec<_> = chosen
                    .iter()
                    .map(|(delivery, verdict)| model.settle(*delivery, verdict))
                    .collect();
                assert_eq!(answers, expected, "{step:?}");
            }
            Step::Extend(chosen) => {
                let chosen = chosen.into_iter();
                let chosen: Vec<_> = chosen
                    .filter_map(|back| leases.len().checked_sub(1 + back))
                    .collect();
                let extended: Vec<_> = chosen.iter().map(|at| leases[*at].clone()).collect();
                let answers = store.extend(&extended).await.unwrap();
                let expected: Vec<_> = chosen.into_iter().map(|at| model.extend(at)).collect();
                assert_eq!(answers, expected, "{step:?}");
            }
            Step::List(after, limit) => {
                let listed = store.list(after.map(id).as_ref(), limit).await.unwrap();
                let seen: Vec<_> = listed
                    .iter()
                    .map(|dead| (number(&dead.id), dead.attempt))
                    .collect();
                assert_eq!(seen, model.list(after, limit), "{step:?}");
                for dead in listed {
                    let new = job(number(&dead.id));
                    assert_eq!((dead.payload, &*dead.reason), (new.payload, "no"));
                }
            }
            Step::Revive(ids) => {
                let asked: Vec<_> = ids.iter().copied().map(id).collect();
                let answers = store.revive(&asked).await.unwrap();
                let expected: Vec<_> = ids.into_iter().map(|id| model.revive(id)).collect();
                assert_eq!(answers, expected, "{step:?}");
            }
            Step::Discard(ids) => {
                let asked: Vec<_> = ids.iter().copied().map(id).collect();
                let answers = store.discard(&asked).await.unwrap();
                let expected: Vec<_> = ids.into_iter().map(|id| model.discard(id)).collect();
                assert_eq!(answers, expected, "{step:?}");
            }
            Step::Crash { orderly } => {
                subject = subject.crash(orderly).await;
                if S::ENDS_LEASES {
                    model.crash();
                }
            }
            Step::Clock(by) => model.pass(subject.advance(by)),
        }
        model.pass(Duration::ZERO);
        let depth = subject.store().depth().await.unwrap();
        assert_eq!(counts(depth), model.depth(), "the depth after {step:?}");
        assert_eq!(depth.oldest.is_some(), depth.pending() > 0, "{step:?}");
    }
    subject.store().close().await;
}

/// A lease waits until another job is appended, and gives that one. It is done at once.
async fn expect_nothing_due<S: Store>(store: &S, max: usize, step: usize) {
    let other = NewJob {
        id: format!("other-{step}").into(),
        ..job(0)
    };
    let other = [other];
    let (leased, appended) = tokio::join!(store.lease(max), store.append(&other));
    assert_eq!(appended.unwrap(), [Appended::New]);
    let leased = leased.unwrap();
    let ids: Vec<_> = leased.iter().map(|job| &*job.id).collect();
    assert_eq!(ids, [&*other[0].id], "no other job is due");
    let done = [(leased[0].lease.clone(), Verdict::Done)];
    assert_eq!(store.settle(&done).await.unwrap(), [Settled::Held]);
}

fn counts(depth: Depth) -> [usize; 4] {
    [depth.ready, depth.leased, depth.delayed, depth.dead].map(|count| count as usize)
}

/// Runs a case on a thread of its own, so that one that hangs fails and is printed.
pub(crate) fn within_limit(
    steps: Vec<Step>,
    is_paused: bool,
    case: impl AsyncFnOnce(Vec<Step>, &AtomicUsize) + Send + 'static,
) {
    let reached = Arc::new(AtomicUsize::new(0));
    let (ended, end) = mpsc::channel::<()>();
    let thread = thread::spawn({
        let (steps, reached) = (steps.clone(), Arc::clone(&reached));
        move || {
            let _ended_on_drop = ended;
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(is_paused)
                .build()
                .unwrap()
                .block_on(case(steps, &reached));
        }
    });
    if end.recv_timeout(CASE_LIMIT) == Err(RecvTimeoutError::Timeout) {
        let at = reached.load(Ordering::Relaxed);
        panic!("it hangs at step {at} of {steps:#?}");
    }
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// Runs cases in real time, where each step is on a disk.
pub(crate) fn on_disk(case: impl Fn(Vec<Step>, Duration)) {
    let config = ProptestConfig::default();
    let config = ProptestConfig {
        // A case takes a tenth of a second.
        cases: config.cases.div_ceil(16),
        max_shrink_iters: config.max_shrink_iters.min(200),
        // Each case that hangs takes its limit.
        max_shrink_time: 180_000,
        failure_persistence: None,
        ..config
    };
    let windows = prop_oneof![Just(Duration::ZERO), Just(HOUR)];
    // Not by the macro, with which `PROPTEST_CASES` goes before the number above.
    let outcome = TestRunner::new(config).run(&(steps(), windows), |(steps, dedup_window)| {
        case(delayed_for_long(steps), dedup_window);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// For a clock that stands still: what is delayed is so for an hour.
fn delayed_for_long(mut steps: Vec<Step>) -> Vec<Step> {
    for step in &mut steps {
        if let Step::Settle(verdicts) = step {
            for (_, verdict) in verdicts {
                if let Verdict::Retry { after, .. } = verdict
                    && !after.is_zero()
                {
                    *after = HOUR;
                }
            }
        }
    }
    steps
}
