//! What is known of each job, from the answers of a store alone. It judges every later
//! answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use microbatch_durable::{Appended, DeadJob, Verdict};

/// Reasons of dead letters begin with it, and end with the id.
const REASON: &str = "dead by verdict: ";

pub(crate) fn reason(id: &str) -> String {
    format!("{REASON}{id}")
}

/// What is known of one job.
#[derive(Debug, Clone, Default)]
struct Known {
    /// An append of it was answered.
    acknowledged: bool,
    /// Attempts that are counted for certain.
    attempts: u32,
    /// Attempts that may be counted besides: an answer was lost, or a release of which it
    /// is not known whether it happened.
    maybe: u32,
    /// A call has it leased.
    is_leased: bool,
    /// Deliveries that were answered.
    deliveries: u32,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fate {
    #[default]
    Live,
    Done,
    /// Its settlement as done was not answered.
    PerhapsDone,
    Dead,
    PerhapsDead,
}

/// What the callers of a store know together.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<BTreeMap<String, Known>>);

/// A settlement on its way: tells its outcome apart from that of a later delivery.
#[derive(Debug)]
pub(crate) struct Sent {
    id: String,
    delivery: u32,
    verdict: Verdict,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an append is on its way. Says whether the store is known to have the
    /// job, or to have had it.
    pub(crate) fn submitted(&self, id: &str) -> bool {
        let mut jobs = self.lock();
        let known = jobs.entry(id.to_owned()).or_default();
        known.acknowledged || known.deliveries > 0
    }

    /// Jobs of which no append was answered.
    pub(crate) fn unacknowledged(&self) -> Vec<String> {
        let jobs = self.lock();
        let open = jobs.iter().filter(|(_, known)| !known.acknowledged);
        open.map(|(id, _)| id.clone()).collect()
    }

    /// Notes the answer to an append; `is_known` is what [`submitted`](Self::submitted) said.
    pub(crate) fn appended(&self, id: &str, answer: &Appended, is_known: bool) {
        let mut jobs = self.lock();
        let known = jobs.get_mut(id).expect("it was submitted");
        assert!(answer.is_accepted(), "{id}: {answer:?}");
        if is_known {
            assert_eq!(
                *answer,
                Appended::Duplicate,
                "{id} is in the store: {known:?}"
            );
        }
        known.acknowledged = true;
    }

    pub(crate) fn leased(&self, id: &str, attempt: u32) {
        let mut jobs = self.lock();
        let known = jobs.get_mut(id);
        let known = known.unwrap_or_else(|| panic!("{id} was never submitted"));
        assert!(
            !matches!(known.fate, Fate::Done | Fate::Dead),
            "{id} is leased after it left the store: {known:?}",
        );
        assert!(!known.is_leased, "{id} is leased twice: {known:?}");
        let from = known.attempts + 1;
        assert!(
            (from..=from + known.maybe).contains(&attempt),
            "{id} is delivered as attempt {attempt}: {known:?}",
        );
        known.attempts = attempt;
        known.maybe = 0;
        known.is_leased = true;
        known.deliveries += 1;
        known.fate = Fate::Live;
    }

    /// Notes that a settlement is on its way.
    pub(crate) fn settling(&self, id: &str, verdict: Verdict) -> Sent {
        let mut jobs = self.lock();
        let known = jobs.get_mut(id).expect("it was leased");
        known.is_leased = false;
        match verdict {
            Verdict::Done => known.fate = Fate::PerhapsDone,
            Verdict::Dead { .. } => known.fate = Fate::PerhapsDead,
            Verdict::Release => {
                known.attempts -= 1;
                known.maybe += 1;
            }
            _ => {}
        }
        Sent {
            id: id.to_owned(),
            delivery: known.deliveries,
            verdict,
        }
    }

    /// Notes that a settlement took effect.
    pub(crate) fn settled(&self, sent: &Sent) {
        let mut jobs = self.lock();
        let known = jobs.get_mut(&sent.id).expect("it was leased");
        match sent.verdict {
            Verdict::Done => known.fate = Fate::Done,
            Verdict::Dead { .. } => known.fate = Fate::Dead,
            Verdict::Release if known.deliveries == sent.delivery => known.maybe = 0,
            _ => {}
        }
        if matches!(sent.verdict, Verdict::Done | Verdict::Dead { .. }) {
            assert_eq!(
                known.deliveries, sent.delivery,
                "{} was delivered after {:?}",
                sent.id, sent.verdict,
            );
        }
    }

    /// Notes that the process has ended: no lease holds, and one may have been counted
    /// whose answer was lost.
    pub(crate) fn ended(&self) {
        for known in self.lock().values_mut() {
            if !known.is_leased {
                known.maybe += 1;
            }
            known.is_leased = false;
        }
    }

    /// Notes that the store was closed: no lease holds, and nothing else has changed.
    pub(crate) fn closed(&self) {
        for known in self.lock().values_mut() {
            known.is_leased = false;
        }
    }

    /// How many jobs callers have leased.
    pub(crate) fn leases(&self) -> usize {
        self.lock().values().filter(|known| known.is_leased).count()
    }

    /// Judges all that a store has: jobs that were leased to find them, and dead letters.
    pub(crate) fn check(&self, live: &BTreeSet<String>, dead: &[DeadJob]) {
        let listed: BTreeMap<_, _> = dead.iter().map(|job| (&*job.id, job)).collect();
        assert_eq!(listed.len(), dead.len(), "each dead letter is listed once");
        let jobs = self.lock();
        for (id, job) in &listed {
            let known = jobs.get(*id);
            let known = known.unwrap_or_else(|| panic!("{id} is dead and was never submitted"));
            assert!(
                matches!(known.fate, Fate::Dead | Fate::PerhapsDead),
                "{id} is dead: {known:?}",
            );
            assert_eq!(job.reason, reason(id));
            assert_eq!(&*job.payload, id.as_bytes());
            assert_eq!(job.attempt, known.attempts, "{id}: {known:?}");
            assert!(!live.contains(*id), "{id} is alive and dead");
        }
        for (id, known) in &*jobs {
            let (live, dead) = (live.contains(id), listed.contains_key(&**id));
            match known.fate {
                Fate::Done => assert!(!live && !dead, "{id} is done, and is there: {known:?}"),
                Fate::Dead => assert!(dead, "{id} is no dead letter any more: {known:?}"),
                Fate::Live if known.acknowledged || known.deliveries > 0 => {
                    assert!(live, "{id} is lost: {known:?}");
                }
                Fate::Live | Fate::PerhapsDone | Fate::PerhapsDead => {}
            }
        }
    }

    pub(crate) fn is_nothing_acknowledged(&self) -> bool {
        self.lock().values().all(|known| !known.acknowledged)
    }

    /// How many jobs there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}
