//! What was submitted, and what the workers said. Judges whether that can be, with the
//! dead letters of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use microbatch_durable::{Appended, DeadJob};

use crate::by_seed::is_reason;

/// What a store may do that others may not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    /// How long before its server is killed it may forget leases and attempts.
    pub(crate) forgets: Duration,
    /// How long it may have had a lease before it gives it to its caller.
    pub(crate) keeps: Duration,
    /// Whether a settlement that was not answered may come when another has the lease.
    pub(crate) has_no_fence: bool,
}

impl Allowed {
    pub(crate) const NOTHING: Self = Self {
        forgets: Duration::ZERO,
        keeps: Duration::ZERO,
        has_no_fence: false,
    };
}

#[derive(Debug)]
pub(crate) struct Ledger {
    allowed: Allowed,
    lease_time: u64,
    /// When the server was killed.
    pub(crate) kills: Vec<u64>,
    /// Which worker was stopped, and until when.
    pub(crate) freezes: Vec<(u32, u64)>,
    acknowledged: BTreeMap<String, Times>,
    /// The attempts at which a job was processed to its end.
    processed: BTreeMap<String, Vec<u32>>,
    begun: BTreeSet<String>,
    events: BTreeMap<String, Vec<Event>>,
    /// What was refused or failed on its way to the store, and submitted again.
    pub(crate) repeats: u64,
    deliveries: u64,
    lost: u64,
    /// Deliveries after one that was not settled.
    pub(crate) lapsed: u64,
    /// Attempts and leases that a killed server forgot, as it may.
    forgotten: u64,
}

/// How often a job was answered as new and as a duplicate.
#[derive(Debug, Default)]
struct Times {
    new: u32,
    duplicate: u32,
}

/// What a worker said of a delivery.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    at: u64,
    worker: u32,
    attempt: u32,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Leased {
        asked: u64,
    },
    Extended {
        asked: u64,
    },
    Settling {
        verdict: String,
    },
    /// Its lease held.
    Settled {
        asked: u64,
        verdict: String,
    },
}

impl Event {
    /// A line, with times in milliseconds.
    fn told_since(&self, first: u64) -> String {
        let Self {
            at,
            worker,
            attempt,
            what,
        } = self;
        let since = |at: &u64| (*at as f64 - first as f64) / 1000.0;
        let what = match what {
            What::Leased { asked } => format!("leased, asked at {}", since(asked)),
            What::Extended { asked } => format!("extended, asked at {}", since(asked)),
            What::Settling { verdict } => format!("settling: {verdict}"),
            What::Settled { asked, verdict } => {
                format!("settled: {verdict}, asked at {}", since(asked))
            }
        };
        format!("{}: worker {worker}, attempt {attempt}: {what}", since(at))
    }
}

/// The last delivery of a job, as far as the events were read.
struct Last<'a> {
    event: &'a Event,
    /// Its lease was taken or extended then, or later.
    since: u64,
    is_settled: bool,
    is_released: bool,
}

impl Ledger {
    pub(crate) fn new(lease_time: Duration, allowed: Allowed) -> Self {
        Self {
            allowed,
            lease_time: lease_time.as_micros() as u64,
            kills: Vec::new(),
            freezes: Vec::new(),
            acknowledged: BTreeMap::new(),
            processed: BTreeMap::new(),
            begun: BTreeSet::new(),
            events: BTreeMap::new(),
            repeats: 0,
            deliveries: 0,
            lost: 0,
            lapsed: 0,
            forgotten: 0,
        }
    }

    pub(crate) fn acknowledge(&mut self, id: &str, answer: &Appended) {
        let times = self.acknowledged.entry(id.to_owned()).or_default();
        match answer {
            Appended::New => times.new += 1,
            Appended::Duplicate => times.duplicate += 1,
            Appended::Refused(refusal) => panic!("{id} is refused: {refusal}"),
        }
        assert!(times.new <= 1, "{id} was appended twice");
    }

    /// What there was, in a line.
    pub(crate) fn figures(&self) -> String {
        let Self {
            repeats,
            deliveries,
            lapsed,
            lost,
            forgotten,
            ..
        } = self;
        format!(
            "{} jobs, {repeats} repeated, {deliveries} deliveries, {lapsed} leases lapsed, {lost} \
             lost, {forgotten} forgotten",
            self.acknowledged.len(),
        )
    }

    /// Whether these and no others were acknowledged.
    #[cfg(feature = "postgres")]
    pub(crate) fn is_acknowledged(&self, ids: &BTreeSet<String>) -> bool {
        self.acknowledged.keys().eq(ids)
    }

    /// Notes a line of a worker.
    pub(crate) fn hear(&mut self, worker: u32, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        let number = |word: &str| word.parse().expect("a number");
        let (id, at, attempt, what) = match words[..] {
            ["begin", id] => {
                self.begun.insert(id.to_owned());
                return;
            }
            ["did", id, attempt, _] => {
                let attempts = self.processed.entry(id.to_owned()).or_default();
                attempts.push(number(attempt) as u32);
                return;
            }
            ["leased", at, asked, attempt, id] => {
                self.deliveries += 1;
                let asked = number(asked);
                (id, at, attempt, What::Leased { asked })
            }
            ["extended", at, asked, "Held", attempt, id] => {
                let asked = number(asked);
                (id, at, attempt, What::Extended { asked })
            }
            ["settling", at, verdict, attempt, id] => {
                let verdict = verdict.to_owned();
                (id, at, attempt, What::Settling { verdict })
            }
            ["settled", at, asked, verdict, "Held", attempt, id] => {
                let (asked, verdict) = (number(asked), verdict.to_owned());
                (id, at, attempt, What::Settled { asked, verdict })
            }
            ["settled", _, _, _, "Lost", ..] => {
                self.lost += 1;
                return;
            }
            _ => return,
        };
        let event = Event {
            at: number(at),
            worker,
            attempt: number(attempt) as u32,
            what,
        };
        self.events.entry(id.to_owned()).or_default().push(event);
    }

    /// How many jobs a worker has leased and not settled.
    pub(crate) fn held_by(&self, worker: u32) -> u64 {
        let is_held = |events: &&Vec<Event>| {
            let mut last = events.iter().rev().filter(|event| event.worker == worker);
            last.next().is_some_and(|event| {
                matches!(event.what, What::Leased { .. } | What::Extended { .. })
            })
        };
        self.events.values().filter(is_held).count() as u64
    }

    /// Judges all that is known, once nothing is left in the store but these dead letters.
    pub(crate) fn judge(&mut self, dead: &[DeadJob]) {
        let mut reasons = BTreeMap::new();
        for job in dead {
            assert!(is_reason(&job.reason), "{}: {:?}", job.id, job.reason);
            let earlier = reasons.insert(job.id.to_string(), &job.reason);
            assert_eq!(earlier, None, "{} is dead twice", job.id);
        }
        for id in self.acknowledged.keys() {
            assert!(
                self.processed.contains_key(id) || reasons.contains_key(id),
                "{id} is lost: it was acknowledged, and was never processed",
            );
        }
        for id in self.begun.iter().chain(self.events.keys()) {
            assert!(self.acknowledged.contains_key(id), "{id} was not submitted");
        }
        let (mut lapsed, mut forgotten) = (0, 0);
        for (id, events) in &self.events {
            let mut events = events.clone();
            events.sort_by_key(|event| event.at);
            let end = self.judge_deliveries(id, &events, &mut lapsed, &mut forgotten);
            match end.as_deref() {
                Some("dead") => assert!(reasons.contains_key(id), "{id} is not among the dead"),
                Some(_) => assert!(!reasons.contains_key(id), "{id} was done and is dead"),
                // The answer was lost.
                None => {}
            }
        }
        for (id, attempts) in &self.processed {
            let mut attempts = attempts.clone();
            attempts.sort_unstable();
            let twice = attempts.windows(2).any(|pair| pair[0] == pair[1]);
            let forgot = self.may_forget(&self.events[id]);
            assert!(
                !twice || forgot,
                "{id} was processed twice at the same attempt: {attempts:?}\n{:#?}",
                self.events[id],
            );
        }
        self.lapsed = lapsed;
        self.forgotten = forgotten;
    }

    /// Returns the verdict that ended the job.
    fn judge_deliveries(
        &self,
        id: &str,
        events: &[Event],
        lapsed: &mut u64,
        forgotten: &mut u64,
    ) -> Option<String> {
        let mut last: Option<Last<'_>> = None;
        let mut end: Option<String> = None;
        let forgot = self.may_forget(events);
        let is_free = forgot || self.may_settle_late(events);
        let story = || {
            let first = events.first().map_or(0, |event| event.at);
            let lines = events.iter().map(|event| event.told_since(first));
            format!("{id}\n{}", lines.collect::<Vec<_>>().join("\n"))
        };
        for event in events {
            let is_last = |last: &Last<'_>| {
                (last.event.worker, last.event.attempt) == (event.worker, event.attempt)
            };
            match (&event.what, &mut last) {
                (What::Leased { asked }, Some(last))
                    if self.is_told_late(event, *asked) && event.attempt < last.event.attempt => {}
                (What::Leased { asked }, last) => {
                    let is_open = end.is_none();
                    assert!(is_free || is_open, "settled, and leased again: {}", story());
                    end = None;
                    if let Some(last) = last {
                        let attempts = last.event.attempt..=event.attempt;
                        let is_later = !attempts.is_empty()
                            && (last.is_released || last.event.attempt < event.attempt);
                        assert!(forgot || is_later, "not a later attempt: {}", story());
                        let keeps = self.allowed.keeps.as_micros() as u64;
                        let lapses = last.since + self.lease_time - keeps;
                        let is_over = last.is_settled || event.at >= lapses;
                        assert!(is_free || is_over, "two live leases: {}", story());
                        *lapsed += u64::from(!last.is_settled);
                        *forgotten += u64::from(!is_later || !is_over);
                    }
                    *last = Some(Last {
                        event,
                        // The call may have waited for long before it was answered; no
                        // answer is on its way for half the time of a lease, unless to a
                        // process that is stopped.
                        since: match self.is_told_late(event, *asked) {
                            true => *asked,
                            false => (*asked).max(event.at - self.lease_time / 2),
                        },
                        is_settled: false,
                        is_released: false,
                    });
                }
                (_, None) => panic!("it was not leased: {}", story()),
                (What::Extended { asked }, Some(last)) if is_last(last) => {
                    last.since = last.since.max(*asked);
                }
                (What::Settling { verdict }, Some(last)) if is_last(last) => {
                    last.is_settled = true;
                    last.is_released |= verdict == "release";
                }
                (What::Settled { verdict, .. }, Some(last)) if is_last(last) => {
                    end = end.or(ends(verdict));
                }
                (What::Settled { asked, verdict }, Some(last)) => {
                    let is_stale = *asked > last.event.at;
                    assert!(!is_stale || is_free, "settled by a lost lease: {}", story());
                    end = end.or(ends(verdict));
                }
                (What::Extended { asked }, Some(last)) => {
                    let is_stale = *asked > last.event.at;
                    assert!(
                        !is_stale || is_free,
                        "a lost lease was extended: {}",
                        story()
                    );
                }
                // Its answer is told.
                (What::Settling { .. }, Some(_)) => {}
            }
        }
        // Where two had a lease, each may have said something else.
        end.filter(|_| !is_free)
    }

    /// Whether the worker was stopped before it could say that it leased the job.
    fn is_told_late(&self, event: &Event, asked: u64) -> bool {
        let told = asked..event.at;
        let mut freezes = self.freezes.iter();
        freezes.any(|(worker, thawed)| *worker == event.worker && told.contains(thawed))
    }

    /// Whether the store may have forgotten a lease of these: it was taken at some time
    /// between its question and its answer.
    fn may_forget(&self, events: &[Event]) -> bool {
        let [forgets, keeps] =
            [self.allowed.forgets, self.allowed.keeps].map(|time| time.as_micros() as u64);
        let is_near = |kill: u64| {
            events.iter().any(|event| match event.what {
                What::Leased { asked } => {
                    asked.saturating_sub(keeps) <= kill && kill <= event.at + forgets
                }
                _ => false,
            })
        };
        forgets > 0 && self.kills.iter().any(|kill| is_near(*kill))
    }

    /// Whether a settlement of these may have come to the store when another had the lease.
    fn may_settle_late(&self, events: &[Event]) -> bool {
        let is_unanswered = |event: &Event| match event.what {
            What::Settling { .. } => !events.iter().any(|answer| match answer.what {
                What::Settled { asked, .. } => (asked, answer.worker) == (event.at, event.worker),
                _ => false,
            }),
            _ => false,
        };
        self.allowed.has_no_fence && events.iter().any(is_unanswered)
    }
}

fn ends(verdict: &str) -> Option<String> {
    ["done", "dead"]
        .contains(&verdict)
        .then(|| verdict.to_owned())
}
