//! Which leased jobs make a batch. No job is declared dead in company.
//!
//! # Invariants
//!
//! - A batch has jobs of one attempt only, so what was delivered before never shares a
//!   batch with what is fresh.
//! - Attempt `k` runs in batches of at most `max_batch_size / 2^(k-1)`, the last attempt
//!   alone. A job that fails its last attempt has failed without neighbours.
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
    /// Returns how many jobs may share a batch on this attempt.
    pub(super) fn batch_size(self, attempt: NonZeroU32) -> usize {
        if attempt.get() >= self.max_attempts {
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
    /// How many to lease next time.
    pub(super) next_lease: usize,
}

/// Sorts what was leased into at most `slots` batches, oldest first.
pub(super) fn plan<L>(leased: Vec<Leased<L>>, limits: Limits, slots: usize) -> Plan<L> {
    let mut batches: Vec<Vec<Leased<L>>> = Vec::new();
    let (mut put_back, mut spent) = (Vec::new(), Vec::new());
    let mut last = None;
    for job in leased {
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
    let next_lease = next.map_or(1, |attempt| limits.batch_size(attempt));
    Plan {
        batches,
        put_back,
        spent,
        next_lease,
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

    #[test]
    fn fresh_jobs_make_one_batch() {
        let plan = plan(leased(&[1, 1, 1]), LIMITS, 1);
        assert_eq!(plan.batches.len(), 1);
        assert_eq!(leases(&plan.batches[0]), [0, 1, 2]);
        assert!(plan.put_back.is_empty() && plan.spent.is_empty());
        assert_eq!(plan.next_lease, 8);
    }

    #[test]
    fn attempts_are_kept_apart_and_what_does_not_fit_is_put_back() {
        let plan = plan(leased(&[1, 2, 1, 3, 3, 3, 5]), LIMITS, 1);
        assert_eq!(plan.batches.len(), 1);
        assert_eq!(leases(&plan.batches[0]), [0, 2]);
        assert_eq!(leases(&plan.put_back), [1, 3, 4, 5]);
        assert_eq!(leases(&plan.spent), [6]);
        assert_eq!(plan.next_lease, 4);
    }

    #[test]
    fn free_slots_take_further_batches() {
        let plan = plan(leased(&[3, 3, 3, 4, 4, 1]), LIMITS, 3);
        let batches: Vec<_> = plan.batches.iter().map(|batch| leases(batch)).collect();
        assert_eq!(batches, [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(leases(&plan.put_back), [4, 5]);
        assert_eq!(plan.next_lease, 1);
    }

    #[test]
    fn a_lease_of_spent_jobs_alone_makes_no_batch() {
        let plan = plan(leased(&[5, 6]), LIMITS, 1);
        assert!(plan.batches.is_empty() && plan.put_back.is_empty());
        assert_eq!(leases(&plan.spent), [0, 1]);
        assert_eq!(plan.next_lease, 1);
    }
}
