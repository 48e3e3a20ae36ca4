//! What this process has of the stream: the leases that it gave, and the jobs that it keeps
//! for its next lease.
//!
//! # Invariants
//!
//! - A delivery is in one place: given as a lease, or kept. A lease that is settled,
//!   superseded by another delivery of its job, or out of time, is in none.
//! - The end of a delivery's time is counted from before the request that started it was
//!   sent, so by this clock it never ends later than by the server's.
//! - Kept jobs are given in the order of their deliveries, so one that is released comes
//!   back in its old place.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_nats::Subject;
use bytes::Bytes;

use super::face::JetStreamLease;
use crate::job::{JobId, Leased};

/// Numbers leases of all stores of this process, so that none has another's.
static NEXT_LEASE: AtomicU64 = AtomicU64::new(1);

/// One delivery of one job.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) id: JobId,
    pub(super) codec: Arc<str>,
    pub(super) payload: Bytes,
    pub(super) appended: SystemTime,
    pub(super) attempt: NonZeroU32,
    /// Of the message in its stream.
    pub(super) sequence: u64,
    /// Of this delivery among all of the consumer.
    pub(super) place: u64,
    /// Where it is acknowledged.
    pub(super) reply: Subject,
    /// The dead letter that it was revived from.
    pub(super) revived: Option<u64>,
}

#[derive(Debug)]
struct Given {
    delivery: Arc<Delivery>,
    ends: Instant,
    /// Whether a verdict is on its way.
    settling: bool,
    /// Whether it was given back, and nobody knows whether the server has heard it.
    doubtful: bool,
}

#[derive(Debug)]
struct Kept {
    delivery: Arc<Delivery>,
    ends: Instant,
    since: Instant,
}

/// What a verdict may do with a lease.
#[derive(Debug)]
pub(super) enum Taken {
    /// It holds, and nobody else settles it until it is put back.
    Held(Arc<Delivery>),
    /// It is to be settled with nothing done.
    Lost,
    /// Another call settles it, or has sent what must not be sent again.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    given: HashMap<u64, Given>,
    /// The lease of each job that is given.
    tokens: HashMap<u64, u64>,
    kept: BTreeMap<u64, Kept>,
    /// The place of each job that is kept.
    places: HashMap<u64, u64>,
    /// Jobs that this process gave back to the server, and when they are due.
    returned: HashMap<u64, Instant>,
}

/// How many jobs are where, as far as this process knows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Delivered, and given to nobody.
    pub(super) due: u64,
    /// Given back, and not due yet.
    pub(super) delayed: u64,
}

impl Leases {
    /// Keeps a delivery for the next lease. An older one of the same job is superseded.
    pub(super) fn keep(&mut self, delivery: Arc<Delivery>, ends: Instant) {
        let sequence = delivery.sequence;
        if let Some(token) = self.tokens.remove(&sequence) {
            self.given.remove(&token);
        }
        self.returned.remove(&sequence);
        if let Some(place) = self.places.insert(sequence, delivery.place) {
            self.kept.remove(&place);
        }
        let since = Instant::now();
        self.kept.insert(
            delivery.place,
            Kept {
                delivery,
                ends,
                since,
            },
        );
    }

    /// Gives at most `max` of those that are kept.
    pub(super) fn give(&mut self, max: usize) -> Vec<Leased<JetStreamLease>> {
        let now = Instant::now();
        let mut leased = Vec::new();
        while leased.len() < max
            && let Some((_, kept)) = self.kept.pop_first()
        {
            self.places.remove(&kept.delivery.sequence);
            // Else the server gives it to somebody else.
            if kept.ends > now {
                leased.push(self.give_one(kept.delivery, kept.ends));
            }
        }
        leased
    }

    fn give_one(&mut self, delivery: Arc<Delivery>, ends: Instant) -> Leased<JetStreamLease> {
        let token = NEXT_LEASE.fetch_add(1, Ordering::Relaxed);
        let leased = Leased {
            id: delivery.id.clone(),
            attempt: delivery.attempt,
            codec: Arc::clone(&delivery.codec),
            payload: delivery.payload.clone(),
            appended: delivery.appended,
            lease: JetStreamLease(token),
        };
        self.tokens.insert(delivery.sequence, token);
        self.given.insert(
            token,
            Given {
                delivery,
                ends,
                settling: false,
                doubtful: false,
            },
        );
        leased
    }

    /// Looks at a lease without taking it.
    pub(super) fn held(&mut self, lease: &JetStreamLease) -> Option<Arc<Delivery>> {
        let given = self.given.get(&lease.0)?;
        if given.ends <= Instant::now() {
            self.remove(lease);
            return None;
        }
        (!given.settling).then(|| Arc::clone(&given.delivery))
    }

    /// Takes a lease to settle it. `repeatable` says whether the verdict is true whoever has
    /// the job by now.
    pub(super) fn take(&mut self, lease: &JetStreamLease, repeatable: bool) -> Taken {
        let Some(given) = self.given.get_mut(&lease.0) else {
            return Taken::Lost;
        };
        if given.ends <= Instant::now() {
            self.remove(lease);
            return Taken::Lost;
        }
        if given.settling || (given.doubtful && !repeatable) {
            return Taken::Unknown;
        }
        given.settling = true;
        Taken::Held(Arc::clone(&given.delivery))
    }

    /// Puts a lease back whose verdict failed. `doubtful` says whether its job may have been
    /// given back to the server.
    pub(super) fn put_back(&mut self, lease: &JetStreamLease, doubtful: bool) {
        if let Some(given) = self.given.get_mut(&lease.0) {
            given.settling = false;
            given.doubtful |= doubtful;
        }
    }

    /// Ends a lease that was settled.
    pub(super) fn remove(&mut self, lease: &JetStreamLease) {
        if let Some(given) = self.given.remove(&lease.0) {
            self.tokens.remove(&given.delivery.sequence);
        }
    }

    /// Ends a lease, and keeps its job for the next. Its time was started again.
    pub(super) fn release(&mut self, lease: &JetStreamLease, ends: Instant) {
        if let Some(given) = self.given.remove(&lease.0) {
            self.tokens.remove(&given.delivery.sequence);
            self.keep(given.delivery, ends);
        }
    }

    /// Ends a lease whose job was given back to the server.
    pub(super) fn give_back(&mut self, lease: &JetStreamLease, after: Duration) {
        if let Some(given) = self.given.remove(&lease.0) {
            self.tokens.remove(&given.delivery.sequence);
            self.note_returned(given.delivery.sequence, after);
        }
    }

    pub(super) fn note_returned(&mut self, sequence: u64, after: Duration) {
        let now = Instant::now();
        let due = now.checked_add(after).unwrap_or(now);
        self.returned.insert(sequence, due);
    }

    /// Notes that the time of a lease was started again.
    pub(super) fn extended(&mut self, lease: &JetStreamLease, ends: Instant) {
        if let Some(given) = self.given.get_mut(&lease.0) {
            given.ends = given.ends.max(ends);
        }
    }

    /// Takes the jobs that were kept for longer than `patience`, to give them back.
    pub(super) fn take_stale(&mut self, patience: Duration) -> Vec<Arc<Delivery>> {
        let stale: Vec<_> = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.since.elapsed() >= patience)
            .map(|(place, _)| *place)
            .collect();
        let now = Instant::now();
        let mut taken = Vec::new();
        for kept in stale
            .into_iter()
            .filter_map(|place| self.kept.remove(&place))
        {
            self.places.remove(&kept.delivery.sequence);
            if kept.ends > now {
                taken.push(kept.delivery);
            }
        }
        taken
    }

    /// Forgets what is over: leases out of time, and jobs that were due for so long that
    /// another process has had them.
    pub(super) fn sweep(&mut self, lease_time: Duration) {
        let now = Instant::now();
        let tokens = &mut self.tokens;
        self.given.retain(|_, given| {
            let held = given.ends > now;
            if !held {
                tokens.remove(&given.delivery.sequence);
            }
            held
        });
        self.returned
            .retain(|_, due| now.saturating_duration_since(*due) < lease_time);
    }

    pub(super) fn counts(&self) -> Counts {
        let now = Instant::now();
        let kept = self.kept.values().filter(|kept| kept.ends > now).count();
        let delayed = self.returned.values().filter(|due| **due > now).count();
        Counts {
            due: (kept + self.returned.len() - delayed) as u64,
            delayed: delayed as u64,
        }
    }
}
