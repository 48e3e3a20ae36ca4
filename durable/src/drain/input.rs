//! What a processor gets of a job.

use std::num::NonZeroU32;

use crate::job::{JobId, Leased};

/// A job with the lease that it was delivered by, for a processor that settles it.
///
/// # Examples
///
/// ```
/// use microbatch_durable::Delivery;
///
/// /// Tells apart what was tried before.
/// fn is_fresh<L>(delivery: &Delivery<String, L>) -> bool {
///     delivery.attempt.get() == 1
/// }
///
/// let delivery = Delivery { id: "a".into(), attempt: 2.try_into().unwrap(), job: "hello".to_owned(), lease: () };
/// assert!(!is_fresh(&delivery));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery<J, L> {
    /// The job's name.
    pub id: JobId,
    /// The number of this delivery: 1 is the first.
    pub attempt: NonZeroU32,
    /// The job.
    pub job: J,
    /// What to settle.
    pub lease: L,
}

/// What a processor takes for a job: the job, or its [`Delivery`]. No other type can be it.
pub trait Input<J, L>: sealed::Sealed<J, L> + Send + 'static {}

impl<J: Send + 'static, L> Input<J, L> for J {}

impl<J: Send + 'static, L: Send + Clone + 'static> Input<J, L> for Delivery<J, L> {}

mod sealed {
    use super::{Delivery, Leased};

    pub trait Sealed<J, L> {
        fn new(job: J, leased: &Leased<L>) -> Self;
    }

    impl<J, L> Sealed<J, L> for J {
        fn new(job: J, _: &Leased<L>) -> Self {
            job
        }
    }

    impl<J, L: Clone> Sealed<J, L> for Delivery<J, L> {
        fn new(job: J, leased: &Leased<L>) -> Self {
            Self {
                id: leased.id.clone(),
                attempt: leased.attempt,
                job,
                lease: leased.lease.clone(),
            }
        }
    }
}
