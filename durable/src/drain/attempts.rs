//! Which leased jobs make a batch. No job is declared dead in company.
//!
//! # Invariants
//!
//! - A batch has jobs of one attempt only, so what was delivered before never shares a
//!   batch with what is fresh.
//! - Attempt `k` runs in batches of at most `max_batch_size / 2^(k-1)`, the last attempt
//!   alone. A job that fails its last attempt has failed without neighbours.
//! - An attempt is counted by the lease, so whoever is leased when a process dies shares
//!   the blame. So the last attempt is leased and processed alone in the drain: nothing
//!   else is in the processor, and all that was is settled. Only there a job is spent.
//! - A process begins alone, since it may follow one that died, and what that one left
//!   comes first. It stays alone until it has leased only what is far from its last
//!   attempt. If the last attempt of a job is met in company, it is put back, and the drain
//!   is alone for the next lease.
//! - What is leased and not processed now is put back before anything is processed, so an
//!   attempt is counted for those only that the processor has. A store leases by number
//!   alone, so the next lease asks for as many as the last one showed to fit.

use std::num::NonZeroU32;

use crate::job::Leased;

/// The limits of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_batch_size: usize,
    pub(super) max_attempts: u32,
}

impl Limits {
    /// Whether there is no further attempt.
    fn is_last(self, attempt: NonZeroU32) -> bool {
        attempt.get() >= self.max_attempts
    }

    /// Whether a job behind one of this attempt may be at its last.
    fn is_near_last(self, attempt: NonZeroU32) -> bool {
        self.is_last(attempt) || attempt.get() > self.max_attempts.saturating_sub(2).max(1)
    }

    /// Returns how many jobs may share a batch on this attempt.
    pub(super) fn batch_size(self, attempt: NonZeroU32) -> usize {
        if self.is_last(attempt) {
            return 1;
        }
        let halvings = attempt.get() - 1;
        self.max_batch_size
            .checked_shr(halvings)
            .unwrap_or(0)
            .max(1)
    }
}

/// What to do with the jobs of one lease.
#[derive(Debug)]
pub(super) struct Plan<L> {
    /// Batches to process now: at least one, unless all are spent.
    pub(super) batches: Vec<Vec<Leased<L>>>,
    /// Jobs to put back at once.
    pub(super) put_back: Vec<Leased<L>>,
    /// Jobs that are dead without being processed: their process ended in each attempt.
    pub(super) spent: Vec<Leased<L>>,
    /// How to lease next time.
    pub(super) next: NextLease,
}

/// How to lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NextLease {
    pub(super) max: usize,
    /// Whether to wait before until all is processed and settled.
    pub(super) alone: bool,
}

impl NextLease {
    /// The first of a drain.
    pub(super) const FIRST: Self = Self {
        max: 1,
        alone: true,
    };
}

/// Sorts what was leased into at most `slots` batches, oldest first. `alone` says whether
/// nothing else is processed or unsettled.
pub(super) fn plan<L>(
    leased: Vec<Leased<L>>,
    limits: Limits,
    slots: usize,
    alone: bool,
) -> Plan<L> {
    let mut batches: Vec<Vec<Leased<L>>> = Vec::new();
    let (mut put_back, mut spent) = (Vec::new(), Vec::new());
    let mut last = None;
    let stays_alone = leased.iter().any(|job| match alone {
        true => limits.is_near_last(job.attempt),
        false => limits.is_last(job.attempt),
    });
    for job in leased {
        if !alone && limits.is_last(job.attempt) {
            put_back.push(job);
            continue;
        }
        if job.attempt.get() > limits.max_attempts {
            spent.push(job);
            continue;
        }
        last = Some(job.attempt);
        let size = limits.batch_size(job.attempt);
        let fits = |batch: &Vec<Leased<L>>| batch[0].attempt == job.attempt && batch.len() < size;
        match batches.iter().position(fits) {
            Some(at) => batches[at].push(job),
            None if batches.len() < slots => batches.push(vec![job]),
            None => put_back.push(job),
        }
    }
    let next = put_back.first().map(|job: &Leased<L>| job.attempt).or(last);
    let next = NextLease {
        max: next.map_or(1, |attempt| limits.batch_size(attempt)),
        alone: stays_alone,
    };
    Plan {
        batches,
        put_back,
        spent,
        next,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::*;

    fn leased(attempts: &[u32]) -> Vec<Leased<usize>> {
        let job = |(lease, &attempt)| Leased {
            id: format!("{lease}").into(),
            attempt: NonZeroU32::new(attempt).unwrap(),
            codec: "json".into(),
            payload: Bytes::new(),
            appended: SystemTime::UNIX_EPOCH,
            lease,
        };
        attempts.iter().enumerate().map(job).collect()
    }

    fn leases(jobs: &[Leased<usize>]) -> Vec<usize> {
        jobs.iter().map(|job| job.lease).collect()
    }

    const LIMITS: Limits = Limits {
        max_batch_size: 8,
        max_attempts: 4,
    };

    #[test]
    fn sizes_halve_with_each_attempt_and_the_last_is_alone() {
        let sizes = |limits: Limits| {
            [1, 2, 3, 4, 5, 90].map(|n| limits.batch_size(NonZeroU32::new(n).unwrap()))
        };
        assert_eq!(sizes(LIMITS), [8, 4, 2, 1, 1, 1]);
        let large = Limits {
            max_batch_size: usize::MAX,
            max_attempts: u32::MAX,
        };
        assert_eq!(sizes(large)[5], 1);
        assert_eq!(
            sizes(Limits {
                max_batch_size: 8,
                max_attempts: 1
            }),
            [1; 6]
        );
    }

    fn next(max: usize, alone: bool) -> NextLease {
        NextLease { max, alone }
    }

    #[test]
    fn fresh_jobs_make_one_batch() {
        for alone in [true, false] {
            let plan = plan(leased(&[1, 1, 1]), LIMITS, 1, alone);
            assert_eq!(plan.batches.len(), 1);
            assert_eq!(leases(&plan.batches[0]), [0, 1, 2]);
            assert!(plan.put_back.is_empty() && plan.spent.is_empty());
            assert_eq!(plan.next, next(8, false));
        }
    }

    #[test]
    fn attempts_are_kept_apart_and_what_does_not_fit_is_put_back() {
        let plan = plan(leased(&[1, 2, 1, 3, 3, 3, 5]), LIMITS, 1, true);
        assert_eq!(plan.batches.len(), 1);
        assert_eq!(leases(&plan.batches[0]), [0, 2]);
        assert_eq!(leases(&plan.put_back), [1, 3, 4, 5]);
        assert_eq!(leases(&plan.spent), [6]);
        assert_eq!(plan.next, next(4, true));
    }

    #[test]
    fn free_slots_take_further_batches() {
        let plan = plan(leased(&[3, 3, 3, 2, 2, 1]), LIMITS, 3, false);
        let batches: Vec<_> = plan.batches.iter().map(|batch| leases(batch)).collect();
        assert_eq!(batches, [vec![0, 1], vec![2], vec![3, 4]]);
        assert_eq!(leases(&plan.put_back), [5]);
        assert_eq!(plan.next, next(8, false));
    }

    #[test]
    fn the_last_attempt_waits_until_it_is_alone_and_so_does_what_is_spent() {
        let company = plan(leased(&[4, 1, 5]), LIMITS, 3, false);
        assert_eq!(leases(&company.batches[0]), [1]);
        assert_eq!(leases(&company.put_back), [0, 2]);
        assert!(company.spent.is_empty());
        assert_eq!(company.next, next(1, true));
        let alone = plan(leased(&[4, 5]), LIMITS, 1, true);
        assert_eq!(leases(&alone.batches[0]), [0]);
        assert_eq!(leases(&alone.spent), [1]);
        assert_eq!(alone.next, next(1, true));
    }

    #[test]
    fn a_drain_stays_alone_until_it_meets_what_is_far_from_its_last_attempt() {
        let alone_after = |max_attempts: u32| {
            let limits = Limits {
                max_attempts,
                ..LIMITS
            };
            [1, 2, 3, 4, 5].map(|attempt| plan(leased(&[attempt]), limits, 1, true).next.alone)
        };
        assert_eq!(alone_after(1), [true; 5]);
        assert_eq!(alone_after(2), [false, true, true, true, true]);
        assert_eq!(alone_after(3), [false, true, true, true, true]);
        assert_eq!(alone_after(5), [false, false, false, true, true]);
    }

    #[test]
    fn a_lease_of_spent_jobs_alone_makes_no_batch() {
        let plan = plan(leased(&[5, 6]), LIMITS, 1, true);
        assert!(plan.batches.is_empty() && plan.put_back.is_empty());
        assert_eq!(leases(&plan.spent), [0, 1]);
        assert_eq!(plan.next, next(1, true));
    }
}
