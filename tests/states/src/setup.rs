//! What is explored: a policy, and what its surroundings may do.

use std::time::Duration;

use crate::engine::schedule::Policy;
use crate::settings::Settings;

/// No run lasts that long, in milliseconds.
pub const END_OF_TIME: u8 = 200;

pub struct Setup {
    pub name: &'static str,
    pub policy: Policy,
    pub capacity: usize,
    pub cancel_on_drop: bool,
    /// The weights that a job may have.
    pub weights: &'static [u8],
    pub jobs: u8,
    /// What may be put in force, that of the policy first; how often; and how often
    /// the worker is paused.
    pub choices: Vec<Settings>,
    pub changes: u8,
    pub pauses: u8,
    /// How many permits there are at first, if batches need any, and how many the
    /// surroundings add and take.
    pub permits: Option<u8>,
    pub grants: u8,
    pub takes: u8,
    pub flushes: usize,
    /// How often a storage does not do as it is told.
    pub pranks: u8,
    /// Until when the clock goes on by the tick, and the worker may be late; from
    /// then on only where a timer is set. In milliseconds.
    pub horizon: u8,
}

impl Setup {
    fn new(name: &'static str, policy: Policy) -> Self {
        Self {
            name,
            choices: vec![policy.settings],
            changes: 0,
            pauses: 0,
            permits: None,
            grants: 0,
            takes: 0,
            policy,
            capacity: CAPACITY,
            cancel_on_drop: false,
            weights: &[0],
            jobs: 4,
            flushes: 1,
            pranks: 0,
            horizon: 5,
        }
    }

    fn weighing(mut self, limit: usize, weights: &'static [u8]) -> Self {
        self.policy.settings.max_batch_weight = limit;
        self.choices[0] = self.policy.settings;
        Self { weights, ..self }
    }

    /// Other settings may be put in force so often.
    fn changing(mut self, changes: u8, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.policy.settings;
        change(&mut settings);
        self.choices.push(settings);
        Self { changes, ..self }
    }

    fn pausing(self, pauses: u8) -> Self {
        Self { pauses, ..self }
    }

    fn permitting(self, permits: u8, grants: u8, takes: u8) -> Self {
        Self {
            permits: Some(permits),
            grants,
            takes,
            ..self
        }
    }

    /// Whether jobs have weights.
    pub fn weighs(&self) -> bool {
        let mut choices = self.choices.iter();
        choices.any(|choice| choice.max_batch_weight < usize::MAX)
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self.policy.queue_capacity = self.capacity;
        self.choices[0] = self.policy.settings;
        self
    }

    /// A storage of the user's, which is offered all that the queue holds.
    fn choosing(mut self, pranks: u8) -> Self {
        self.policy.custom_storage = true;
        Self { pranks, ..self }
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const CAPACITY: usize = 3;

fn batches(max_batch_size: usize, max_in_flight: usize) -> Policy {
    Policy {
        settings: Settings {
            max_batch_size,
            interval: ms(2),
            max_in_flight,
            ..Settings::DEFAULT
        },
        queue_capacity: CAPACITY,
        shutdown_timeout: ms(3),
        custom_storage: false,
    }
}

impl Policy {
    /// The policy with other settings.
    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }
}

/// Size and flights, with everything else that there is, one after the other
/// and some of it together.
pub fn all() -> Vec<Setup> {
    let policy = batches;
    let idle = |size, flights| batches(size, flights).set(|it| it.flush_when_idle = true);
    let cost = |size, flights, cost| {
        batches(size, flights).set(|it| {
            it.flush_cost = Some(ms(cost));
            it.interval = ms(9);
        })
    };
    let never = |size, flights| batches(size, flights).set(|it| it.interval = Duration::MAX);
    let patient = |policy: Policy| Policy {
        shutdown_timeout: Duration::MAX,
        ..policy
    };
    vec![
        Setup::new("1 job", policy(1, 1)),
        Setup::new("1 job, 2 in flight", policy(1, 2)),
        Setup::new("2 jobs", policy(2, 1)),
        Setup::new("2 jobs, 2 in flight", policy(2, 2)),
        Setup::new("3 jobs", policy(3, 1)).with(|setup| setup.jobs = 5),
        Setup::new("3 jobs, 2 in flight", policy(3, 2)),
        Setup::new("3 jobs, queue of 1", policy(3, 1)).with(|setup| setup.capacity = 1),
        Setup::new("2 jobs, 2 flushes", policy(2, 1)).with(|setup| setup.flushes = 2),
        Setup::new("weight 2, jobs of 0 and 1", policy(3, 1)).weighing(2, &[0, 1]),
        Setup::new("weight 3, jobs of 1 and 2", policy(3, 2)).weighing(3, &[1, 2]),
        Setup::new("weight 2, jobs of 1 and 2, idle", idle(3, 1)).weighing(2, &[1, 2]),
        Setup::new("idle, 2 jobs", idle(2, 1)),
        Setup::new("idle, 3 jobs, 2 in flight", idle(3, 2)),
        Setup::new(
            "idle, never",
            never(3, 1).set(|it| it.flush_when_idle = true),
        ),
        Setup::new("cost 2", cost(3, 1, 2)),
        Setup::new("cost 4, 2 in flight", cost(3, 2, 4)),
        Setup::new("cost 4 and a nanosecond", {
            cost(3, 1, 4).set(|it| it.flush_cost = Some(ms(4) + Duration::from_nanos(1)))
        }),
        Setup::new("cost 5 beyond the interval", {
            cost(3, 1, 5).set(|it| it.interval = ms(3))
        }),
        Setup::new("cost 3, idle, 2 in flight", {
            cost(2, 2, 3).set(|it| it.flush_when_idle = true)
        }),
        Setup::new("cost 4, weight 3", cost(3, 1, 4)).weighing(3, &[1, 2]),
        Setup::new("never", never(3, 1)),
        Setup::new("never, 2 in flight, weight 2", never(3, 2)).weighing(2, &[0, 1]),
        Setup::new("no end to a stop", patient(policy(2, 1))),
        Setup::new("no end to a stop, never", patient(never(2, 2))),
        Setup::new("cancel on drop", policy(2, 1)).with(|setup| setup.cancel_on_drop = true),
        Setup::new("cancel on drop, idle", idle(2, 2)).with(|setup| {
            setup.cancel_on_drop = true;
            setup.jobs = 3;
        }),
        Setup::new("cancel on drop, queue of 1, 2 flushes", policy(2, 1)).with(|setup| {
            setup.cancel_on_drop = true;
            setup.capacity = 1;
            setup.flushes = 2;
            setup.jobs = 3;
        }),
        Setup::new("cancel on drop, weight 3", policy(3, 1))
            .weighing(3, &[1, 2])
            .with(|setup| {
                setup.cancel_on_drop = true;
                setup.jobs = 3;
            }),
        Setup::new("cancel on drop, cost 4", cost(3, 1, 4)).with(|setup| {
            setup.cancel_on_drop = true;
            setup.jobs = 3;
        }),
        Setup::new("storage, 1 job", policy(1, 1)).choosing(1),
        Setup::new("storage, 2 jobs", policy(2, 1))
            .choosing(2)
            .with(|setup| setup.jobs = 3),
        Setup::new("storage, 2 in flight", policy(2, 2))
            .choosing(1)
            .with(|setup| setup.jobs = 3),
        Setup::new("storage, idle", idle(2, 1)).choosing(1),
        Setup::new("storage, cost 4", cost(3, 1, 4)).choosing(1),
        Setup::new("storage, weight 2", policy(3, 1))
            .choosing(1)
            .weighing(2, &[1, 2])
            .with(|setup| setup.jobs = 3),
        Setup::new("storage, never", never(2, 1)).choosing(1),
        Setup::new("storage, no end to a stop", patient(policy(2, 1))).choosing(1),
        Setup::new("never, then an interval and back", never(3, 1))
            .changing(2, |it| it.interval = ms(2))
            .with(|setup| setup.jobs = 3),
        Setup::new("3 jobs, then 1", policy(3, 1))
            .changing(1, |it| it.max_batch_size = 1)
            .with(|setup| setup.jobs = 3),
        Setup::new("1 job, then 3", policy(1, 1))
            .changing(1, |it| it.max_batch_size = 3)
            .with(|setup| setup.jobs = 3),
        Setup::new("never, 3 jobs or 2, paused", never(3, 1))
            .changing(1, |it| it.max_batch_size = 2)
            .pausing(1)
            .with(|setup| setup.jobs = 3),
        Setup::new("1 in flight or 2", policy(1, 1))
            .changing(2, |it| it.max_in_flight = 2)
            .with(|setup| setup.jobs = 3),
        Setup::new("never, then idle or a cost", never(3, 1))
            .changing(1, |it| it.flush_when_idle = true)
            .changing(1, |it| it.flush_cost = Some(ms(3)))
            .with(|setup| setup.jobs = 3),
        Setup::new("a cost, then none or another", cost(3, 1, 4))
            .changing(1, |it| it.flush_cost = None)
            .changing(1, |it| it.flush_cost = Some(ms(2)))
            .with(|setup| setup.jobs = 3),
        Setup::new("weight 3, then 1", policy(3, 1))
            .weighing(3, &[1, 2])
            .changing(1, |it| it.max_batch_weight = 1)
            .with(|setup| setup.jobs = 3),
        Setup::new("weight 1, then 3 and back", policy(3, 1))
            .weighing(1, &[1, 2])
            .changing(2, |it| it.max_batch_weight = 3)
            .with(|setup| {
                setup.jobs = 3;
                setup.flushes = 0;
            }),
        Setup::new("storage, weight 3, then 1", policy(2, 1))
            .choosing(1)
            .weighing(3, &[1, 2])
            .changing(1, |it| it.max_batch_weight = 1)
            .with(|setup| setup.jobs = 2),
        Setup::new("cancel on drop, weight 3, then 1", policy(3, 1))
            .weighing(3, &[1, 2])
            .changing(1, |it| it.max_batch_weight = 1)
            .with(|setup| {
                setup.cancel_on_drop = true;
                setup.jobs = 3;
                setup.flushes = 0;
            }),
        Setup::new("paused twice", policy(2, 1))
            .pausing(2)
            .with(|setup| setup.jobs = 3),
        Setup::new("paused, idle, 2 in flight", idle(2, 2))
            .pausing(1)
            .with(|setup| setup.jobs = 3),
        Setup::new("paused, storage", policy(2, 1))
            .choosing(1)
            .pausing(1)
            .with(|setup| setup.jobs = 2),
        Setup::new("paused, no end to a stop, never", patient(never(2, 1)))
            .pausing(1)
            .with(|setup| setup.jobs = 3),
        Setup::new("permits, none at first", policy(2, 1))
            .permitting(0, 2, 0)
            .with(|setup| setup.jobs = 3),
        Setup::new("1 permit, 2 in flight", policy(1, 2))
            .permitting(1, 1, 1)
            .with(|setup| {
                setup.jobs = 3;
                setup.flushes = 0;
            }),
        Setup::new("1 permit, idle, paused", idle(2, 1))
            .permitting(1, 1, 1)
            .pausing(1)
            .with(|setup| setup.jobs = 2),
        Setup::new("permits, never, no end to a stop", patient(never(2, 1)))
            .permitting(0, 2, 1)
            .with(|setup| setup.jobs = 3),
        Setup::new("permits, cancel on drop, idle", idle(2, 1))
            .permitting(0, 1, 1)
            .with(|setup| {
                setup.cancel_on_drop = true;
                setup.jobs = 2;
            }),
        Setup::new("permits, 2 jobs or 1, 2 in flight", policy(2, 2))
            .permitting(1, 1, 0)
            .changing(1, |it| it.max_batch_size = 1)
            .with(|setup| {
                setup.jobs = 3;
                setup.flushes = 0;
            }),
        Setup::new("permits, storage", policy(2, 1))
            .choosing(1)
            .permitting(0, 2, 0)
            .with(|setup| setup.jobs = 2),
    ]
}
