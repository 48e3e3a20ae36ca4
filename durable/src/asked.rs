//! Ids that a caller asks for, of which some may be no ids, or stand twice.

use std::collections::BTreeSet;

use crate::job::JobId;

/// The ids that can be of a job, each once.
pub(crate) fn first_of_each(ids: &[JobId]) -> Vec<JobId> {
    let mut seen = BTreeSet::new();
    ids.iter()
        .filter(|id| id.check().is_ok() && seen.insert((*id).clone()))
        .cloned()
        .collect()
}

/// Answers for each id whether it is in `found`; for one that comes twice, the first time.
pub(crate) fn answers(ids: &[JobId], found: &BTreeSet<JobId>) -> Vec<bool> {
    let mut left = found.clone();
    ids.iter().map(|id| left.remove(id)).collect()
}
