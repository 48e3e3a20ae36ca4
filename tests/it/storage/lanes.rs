//! Lanes of different urgency. A job is in the lane of its hundreds.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use microbatch::{CancellationToken, Keyed, KeyedJob, Lanes, MicroBatch};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use super::watched::{Event, any_script, fitting, kind};
use crate::support::{Gate, Reports, idle, millis, results, run, secs, settle, soon, submit};

fn lanes(lanes: usize) -> Lanes<u32, u32> {
    Lanes::new(lanes, |job| (*job / 100) as usize)
}

/// The batches that the storage makes of jobs that are all there at the start.
async fn batches(storage: Lanes<u32, u32>, jobs: &[u32]) -> Vec<Vec<u32>> {
    let gate = Gate::open();
    let batcher = idle(MicroBatch::builder(gate.clone()).storage(storage));
    let handles = submit(&batcher, jobs.iter().copied());
    tokio::spawn(batcher.start(CancellationToken::new()));
    assert_eq!(results(handles).await, jobs);
    gate.batches()
}

#[tokio::test(start_paused = true)]
async fn the_most_urgent_lane_goes_first_and_the_oldest_job_in_a_lane() {
    let jobs = [200, 101, 1, 102, 2, 201, 3, 4];
    let expected = [vec![1, 2, 3], vec![4, 101, 102], vec![200, 201]];
    assert_eq!(batches(lanes(3), &jobs).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_lane_beyond_the_last_is_the_last() {
    let jobs = [900, 100, 200, 1];
    let expected = [vec![1, 900, 100], vec![200]];
    assert_eq!(batches(lanes(2), &jobs).await, expected);
}

#[tokio::test(start_paused = true)]
async fn there_is_always_one_lane_and_there_may_be_any_number() {
    let jobs = [300, 100, 200, 1];
    let in_order = [vec![300, 100, 200], vec![1]];
    assert_eq!(batches(lanes(0), &jobs).await, in_order);
    assert_eq!(batches(lanes(1), &jobs).await, in_order);
    let by_lane = [vec![1, 100, 200], vec![300]];
    assert_eq!(batches(lanes(usize::MAX), &jobs).await, by_lane);
    let far = Lanes::new(usize::MAX, |job: &u32| usize::MAX - *job as usize);
    let expected = [vec![300, 200, 100], vec![1]];
    assert_eq!(batches(far, &jobs).await, expected);
}

/// Has urgent jobs fill every batch, one batch a second, and returns when each other job
/// was in a batch.
async fn flood(storage: Lanes<u32, u32>, others: &[u32]) -> BTreeMap<u32, Duration> {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .queue_capacity(1_000)
        .flush_when_idle(true)
        .storage(storage));
    let mut handles = submit(&batcher, [1, 1, 1]);
    settle().await;
    handles.extend(submit(&batcher, others.iter().copied()));
    for _ in 0..60 {
        handles.extend(submit(&batcher, [1, 1, 1]));
        sleep(secs(1)).await;
        gate.pass(1);
    }
    gate.pass(1_000);
    results(handles).await;
    let batches = gate.batches().into_iter().zip(gate.times());
    let jobs = batches.flat_map(|(batch, at)| batch.into_iter().map(move |job| (job, at)));
    jobs.filter(|(job, _)| *job >= 100).collect()
}

#[tokio::test(start_paused = true)]
async fn urgent_jobs_pass_over_the_others_for_as_long_as_they_come() {
    for storage in [lanes(3), lanes(3).age(Duration::MAX)] {
        let times = flood(storage, &[100, 200]).await;
        assert!(times.values().all(|at| *at >= secs(60)), "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_was_passed_over_for_its_age_comes_first() {
    let others = [100, 101, 102, 103, 200];
    let times = flood(lanes(3).age(secs(10)), &others).await;
    let at = |job: u32| times[&job].as_secs();
    // A whole batch of the lane, and the rest of it ten seconds later; the last lane
    // comes as soon as the lane before it has had its turn.
    assert_eq!([at(100), at(101), at(102), at(103)], [10, 10, 10, 20]);
    assert_eq!(at(200), 11);
}

/// The storage cleared of withdrawn jobs is as good as new; the time of the others went on
/// only because it is that of their acceptance.
#[tokio::test(start_paused = true)]
async fn a_lane_ages_on_while_other_jobs_are_withdrawn() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .flush_when_idle(true)
        .cancel_on_drop(true)
        .storage(lanes(2).age(secs(10))));
    let mut handles = submit(&batcher, [1]);
    settle().await;
    handles.extend(submit(&batcher, [100]));
    for _ in 0..3 {
        let withdrawn = submit(&batcher, [2, 3, 4, 5]);
        sleep(secs(4)).await;
        drop(withdrawn);
        settle().await;
        assert_eq!(batcher.stats().pending, 1);
    }
    handles.extend(submit(&batcher, [6, 7, 8]));
    settle().await;
    gate.pass(9);
    results(handles).await;
    assert_eq!(gate.batches()[1], [100, 6, 7]);
}

/// A batch that takes withdrawn jobs alone from a lane is no turn of that lane.
#[tokio::test(start_paused = true)]
async fn a_lane_whose_oldest_jobs_were_withdrawn_keeps_its_turn() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .flush_when_idle(true)
        .cancel_on_drop(true)
        .storage(lanes(2).age(secs(10))));
    let mut handles = submit(&batcher, [1]);
    settle().await;
    let withdrawn = submit(&batcher, [100, 101, 102]);
    handles.extend(submit(&batcher, [103, 104]));
    sleep(secs(11)).await;
    handles.extend(submit(&batcher, [2, 3, 4]));
    settle().await;
    drop(withdrawn);
    settle().await;
    gate.pass(9);
    results(handles).await;
    assert_eq!(gate.batches()[1], [103, 104, 2]);
}

#[tokio::test(start_paused = true)]
async fn with_an_age_of_zero_lanes_take_turns() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(2)
        .storage(lanes(3).age(Duration::ZERO)));
    let mut handles = Vec::new();
    for job in [1, 2, 3, 4, 100, 101, 102, 200, 201, 202] {
        handles.extend(submit(&batcher, [job]));
        settle().await;
    }
    gate.pass(9);
    results(handles).await;
    let expected = [[1, 2], [3, 4], [100, 101], [200, 201], [102, 202]];
    assert_eq!(gate.batches(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_heavy_job_is_not_passed_over_for_lighter_ones() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = idle(
        MicroBatch::builder(gate.clone())
            .max_batch_weight(10, |job| (*job % 100) as usize)
            .on_batch(reports.hook())
            .storage(lanes(2)),
    );
    let handles = submit(&batcher, [101, 4, 8, 3, 102]);
    tokio::spawn(batcher.start(CancellationToken::new()));
    results(handles).await;
    assert_eq!(gate.batches(), [vec![4], vec![8], vec![3, 101, 102]]);
    assert_eq!(reports.weights(), [4, 8, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_lane_panics_goes_to_the_last() {
    let storage = Lanes::new(3, |job: &u32| {
        assert!(*job != 13, "lane");
        (*job / 100) as usize
    });
    let expected = [vec![1, 2, 100], vec![13, 200]];
    assert_eq!(batches(storage, &[13, 200, 100, 1, 2]).await, expected);
}

#[tokio::test(start_paused = true)]
async fn the_queue_in_front_of_the_lanes_is_first_come_first_served() {
    let gate = Gate::closed();
    let batcher = run(MicroBatch::builder(gate.clone())
        .queue_capacity(4)
        .storage(lanes(2)));
    let mut handles = submit(&batcher, 101..104);
    settle().await;
    // Four in the storage, and one more in the queue before the urgent job.
    for job in (104..109).chain([1]) {
        handles.extend(submit(&batcher, [job]));
        settle().await;
    }
    gate.pass(9);
    results(handles).await;
    let expected = [vec![101, 102, 103], vec![104, 105, 106], vec![1, 107, 108]];
    assert_eq!(gate.batches(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_stop_empties_the_lanes() {
    let gate = Gate::open();
    let batcher = run(MicroBatch::builder(gate.clone())
        .max_batch_size(4)
        .interval(Duration::MAX)
        .storage(lanes(3).age(secs(1))));
    let handles = submit(&batcher, [200, 1, 100, 2, 201]);
    soon(batcher.shutdown()).await.expect("drains");
    results(handles).await;
    assert_eq!(gate.batches(), [vec![1, 2, 100, 200], vec![201]]);
}

#[tokio::test(start_paused = true)]
async fn lanes_go_under_keys() {
    let (log, mut batches) = tokio::sync::mpsc::unbounded_channel();
    let processor = move |_key: u8, jobs: Vec<u32>| {
        log.send(jobs.clone()).expect("received");
        async move { Ok::<_, Infallible>(jobs) }
    };
    let keyed = Keyed::builder(processor)
        .options(|options| {
            let lane = |entry: &KeyedJob<u8, u32>| (*entry.job() / 100) as usize;
            options.storage(Lanes::new(2, lane)).max_batch_size(4)
        })
        .build_running(CancellationToken::new())
        .expect("valid options");
    let handles = [100, 101, 1].map(|job| keyed.submit(7, job)).into();
    results(handles).await;
    assert_eq!(batches.recv().await, Some(vec![1, 100, 101]));
}

#[cfg(feature = "tracked")]
#[tokio::test(start_paused = true)]
async fn lanes_go_under_ids() {
    use microbatch::{Tracked, TrackedJob};

    let gate = Gate::open();
    let tracked = Tracked::builder(gate.clone())
        .options(|options| {
            let lane = |entry: &TrackedJob<u32, u32, u32>| (*entry.job() / 100) as usize;
            options.storage(Lanes::new(2, lane)).max_batch_size(4)
        })
        .build_running(CancellationToken::new())
        .expect("valid options");
    let handles = [100, 101, 1].map(|job| tracked.submit(job, job)).into();
    results(handles).await;
    assert_eq!(gate.batches(), [[1, 100, 101]]);
}

#[test]
fn lanes_show_their_options() {
    let shown = format!("{:?}", lanes(2).age(secs(3)));
    assert_eq!(shown, "Lanes { lanes: 2, age: Some(3s), len: 0, .. }");
}

/// The jobs that a storage of so many lanes holds, in the order in which they came, and
/// when a batch last took from each lane and left something, with the number of the batch.
struct Model {
    last: u32,
    age: Option<Duration>,
    held: Vec<(u32, Instant)>,
    served: BTreeMap<u32, (Instant, u32)>,
    taken: u32,
    /// How many batches have passed over a lane since its age.
    overdue: BTreeMap<u32, u32>,
}

impl Model {
    fn lane(&self, job: u32) -> u32 {
        kind(job).min(self.last)
    }

    fn since(&self, lane: u32) -> Option<(Instant, u32)> {
        let mut held = self.held.iter();
        let (_, oldest) = held.find(|(job, _)| self.lane(*job) == lane)?;
        let oldest = (*oldest, 0);
        Some(self.served.get(&lane).map_or(oldest, |at| oldest.max(*at)))
    }

    fn is_overdue(&self, lane: u32, at: Instant) -> bool {
        let since = self.since(lane);
        self.age
            .zip(since)
            .is_some_and(|(age, (since, _))| at - since >= age)
    }

    fn take(&self, max_jobs: usize, max_weight: usize, at: Instant) -> Vec<u32> {
        let mut lanes: Vec<u32> = (0..=self.last).collect();
        lanes.sort_by_key(|lane| match self.is_overdue(*lane, at) {
            true => (false, self.since(*lane)),
            false => (true, None),
        });
        let in_lane = |lane: u32| {
            let held = self.held.iter().map(|(job, _)| *job);
            held.filter(move |job| self.lane(*job) == lane)
        };
        let order = lanes.into_iter().flat_map(in_lane);
        fitting(order, max_jobs, max_weight)
    }

    /// Lets the batch go, and fails if a lane has been passed over for too long.
    fn served(&mut self, batch: &[u32], at: Instant) -> Result<(), TestCaseError> {
        self.taken += 1;
        for lane in 0..=self.last {
            let served = batch.iter().any(|job| self.lane(*job) == lane);
            if served || !self.is_overdue(lane, at) {
                self.overdue.remove(&lane);
                continue;
            }
            let batches = self.overdue.entry(lane).or_default();
            *batches += 1;
            prop_assert!(*batches <= self.last, "lane {lane} starves");
        }
        self.held.retain(|(job, _)| !batch.contains(job));
        for lane in 0..=self.last {
            let left = self.held.iter().any(|(job, _)| self.lane(*job) == lane);
            if !left {
                self.served.remove(&lane);
            } else if batch.iter().any(|job| self.lane(*job) == lane) {
                self.served.insert(lane, (at, self.taken));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_lane_is_passed_over_for_longer_than_its_age_and_a_batch_a_lane(
        script in any_script(5),
        lanes in 1..5_u32,
        age in prop::option::of((0..60_u64).prop_map(millis)),
    ) {
        let storage = Lanes::new(lanes as usize, |job| kind(*job) as usize);
        let storage = match age {
            Some(age) => storage.age(age),
            None => storage,
        };
        let mut model = Model {
            last: lanes - 1,
            age,
            held: Vec::new(),
            served: BTreeMap::new(),
            taken: 0,
            overdue: BTreeMap::new(),
        };
        for event in script.play(storage)? {
            match event {
                Event::Append(job, at) => model.held.push((job, at)),
                Event::Take { max_jobs, max_weight, at, batch } => {
                    prop_assert_eq!(&batch, &model.take(max_jobs, max_weight, at));
                    model.served(&batch, at)?;
                }
            }
        }
        prop_assert!(model.held.is_empty());
    }
}
