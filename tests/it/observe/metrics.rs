//! What is told through the `metrics` facade.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use microbatch::{BatchStorage, CancellationToken, MicroBatch, MicroBatchBuilder, PendingJob};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::queue::crowded;
use crate::support::{Fate, Gate, answers, decide, idle, results, run, settle, soon, submit};

/// Sums of counters and gauges, and the values of histograms, under names such as
/// `jobs{words,outcome=failed}`. The recorder forgets what it has shown, so limits are
/// right after they were told again.
#[derive(Default)]
struct Seen {
    numbers: BTreeMap<String, f64>,
    values: BTreeMap<String, Vec<f64>>,
}

struct Watch {
    recorder: DebuggingRecorder,
    snapshotter: Snapshotter,
    seen: Seen,
}

impl Watch {
    fn new() -> Self {
        let recorder = DebuggingRecorder::new();
        Self {
            snapshotter: recorder.snapshotter(),
            recorder,
            seen: Seen::default(),
        }
    }

    /// Builds a micro-batcher that tells this recorder.
    fn tells<T>(&self, build: impl FnOnce() -> T) -> T {
        with_local_recorder(&self.recorder, build)
    }

    fn look(&mut self) -> &Seen {
        let seen = &mut self.seen;
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let name = short(key.key());
            match value {
                DebugValue::Counter(more) => {
                    *seen.numbers.entry(name).or_default() += more as f64;
                }
                DebugValue::Gauge(value) if is_limit(&name) => {
                    seen.numbers.insert(name, *value);
                }
                DebugValue::Gauge(more) => {
                    *seen.numbers.entry(name).or_default() += *more;
                }
                DebugValue::Histogram(more) => {
                    let values = seen.values.entry(name).or_default();
                    values.extend(more.into_iter().map(|value| *value));
                }
            }
        }
        seen
    }

    fn number(&mut self, name: &str) -> f64 {
        self.numbers([name])[0]
    }

    fn numbers<const N: usize>(&mut self, names: [&str; N]) -> [f64; N] {
        let numbers = &self.look().numbers;
        names.map(|name| {
            let number = numbers.get(name);
            *number.unwrap_or_else(|| panic!("no {name} in {numbers:?}"))
        })
    }

    fn values(&mut self, name: &str) -> Vec<f64> {
        self.look().values[name].clone()
    }

    /// Jobs that have not ended, by where they are, and batches in flight.
    fn levels(&mut self) -> [f64; 5] {
        self.numbers([
            "jobs{default,state=waiting}",
            "jobs{default,state=queued}",
            "jobs{default,state=pending}",
            "jobs{default,state=processing}",
            "batches_in_flight{default}",
        ])
    }
}

fn is_limit(name: &str) -> bool {
    let limits = [
        "queue_capacity",
        "batch_size_limit",
        "interval_",
        "in_flight_limit",
    ];
    limits.iter().any(|limit| name.starts_with(limit))
}

fn short(key: &Key) -> String {
    let name = key.name().strip_prefix("microbatch_").expect("ours");
    let mut labels = key.labels();
    let batcher = labels.next().expect("a label");
    assert_eq!(batcher.key(), "batcher");
    let others = labels.map(|label| format!(",{}={}", label.key(), label.value()));
    format!(
        "{name}{{{}{}}}",
        batcher.value(),
        others.collect::<String>()
    )
}

#[tokio::test(start_paused = true)]
async fn everything_is_registered_at_build_with_its_unit() {
    let watch = Watch::new();
    let _idle = watch.tells(|| idle(MicroBatch::builder(Gate::open()).name("words")));
    let all = watch.snapshotter.snapshot().into_vec();
    let mut names: Vec<_> = all.iter().map(|(key, ..)| short(key.key())).collect();
    names.sort();
    let expected = [
        "batch_duration_seconds{words}",
        "batch_failures_total{words,kind=error}",
        "batch_failures_total{words,kind=panic}",
        "batch_failures_total{words,kind=result_count}",
        "batch_size_limit{words}",
        "batch_size{words}",
        "batch_wait_seconds{words}",
        "batches_in_flight{words}",
        "batches_total{words,reason=cost}",
        "batches_total{words,reason=idle}",
        "batches_total{words,reason=interval}",
        "batches_total{words,reason=requested}",
        "batches_total{words,reason=shutdown}",
        "batches_total{words,reason=size}",
        "batches_total{words,reason=weight}",
        "in_flight_limit{words}",
        "interval_seconds{words}",
        "jobs_accepted_total{words}",
        "jobs_refused_total{words,why=closed}",
        "jobs_refused_total{words,why=full}",
        "jobs_refused_total{words,why=too_heavy}",
        "jobs_total{words,outcome=abandoned}",
        "jobs_total{words,outcome=completed}",
        "jobs_total{words,outcome=failed}",
        "jobs_total{words,outcome=withdrawn}",
        "jobs{words,state=pending}",
        "jobs{words,state=processing}",
        "jobs{words,state=queued}",
        "jobs{words,state=waiting}",
        "queue_capacity{words}",
    ];
    assert_eq!(names, expected);
    for (key, unit, text, _) in all {
        let name = key.key().name();
        let expected = match name.ends_with("_seconds") {
            true => Unit::Seconds,
            false => Unit::Count,
        };
        assert_eq!(unit, Some(expected), "{name}");
        assert!(text.is_some_and(|text| !text.is_empty()), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_finished_batch_is_told_whole() {
    let mut watch = Watch::new();
    let slow = |jobs: Vec<u32>| async move {
        sleep(Duration::from_millis(250)).await;
        Ok::<_, String>(jobs)
    };
    let batcher = watch.tells(|| run(MicroBatch::builder(slow).name("words")));
    results(submit(&batcher, 0..4)).await;
    let [size, interval] = watch.numbers([
        "batches_total{words,reason=size}",
        "batches_total{words,reason=interval}",
    ]);
    assert_eq!((size, interval), (1.0, 1.0));
    let [accepted, completed] = watch.numbers([
        "jobs_accepted_total{words}",
        "jobs_total{words,outcome=completed}",
    ]);
    assert_eq!((accepted, completed), (4.0, 4.0));
    assert_eq!(watch.values("batch_size{words}"), [3.0, 1.0]);
    assert_eq!(watch.values("batch_duration_seconds{words}"), [0.25, 0.25]);
    let waits = watch.values("batch_wait_seconds{words}");
    assert_eq!(waits, [0.0, 1.0]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_is_told_by_how_it_failed() {
    let mut watch = Watch::new();
    let batcher = watch.tells(|| run(MicroBatch::builder(decide).max_batch_size(1)));
    let fates = [
        Fate::Fail(1),
        Fate::Panic,
        Fate::PanicEarly,
        Fate::Short,
        Fate::Long,
        Fate::Long,
        Fate::Answer(1),
    ];
    answers(submit(&batcher, fates)).await;
    let kinds = watch.numbers([
        "batch_failures_total{default,kind=error}",
        "batch_failures_total{default,kind=panic}",
        "batch_failures_total{default,kind=result_count}",
    ]);
    assert_eq!(kinds, [1.0, 2.0, 3.0]);
    let outcomes = watch.numbers([
        "jobs_total{default,outcome=failed}",
        "jobs_total{default,outcome=completed}",
    ]);
    assert_eq!(outcomes, [6.0, 1.0]);
}

/// A semaphore that is closed fails the batch before the processor is called.
#[tokio::test(start_paused = true)]
async fn a_batch_without_a_permit_is_told_as_an_error() {
    let mut watch = Watch::new();
    let semaphore = Arc::new(Semaphore::new(0));
    let builder = MicroBatch::builder(Gate::open()).permits(Arc::clone(&semaphore));
    let batcher = watch.tells(|| run(builder));
    semaphore.close();
    answers(submit(&batcher, 0..3)).await;
    assert_eq!(
        watch.number("batch_failures_total{default,kind=error}"),
        1.0
    );
    assert_eq!(watch.values("batch_duration_seconds{default}"), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_hung_processor_shows_when_asked() {
    let mut watch = Watch::new();
    let gate = Gate::closed();
    let guard = metrics::set_default_local_recorder(&watch.recorder);
    let (batcher, handles) = crowded(&gate).await;
    drop(guard);
    let waiting = submit(&batcher, 3..5);
    settle().await;
    assert_eq!(watch.levels(), [0.0; 5], "no batch has finished");
    batcher.record_metrics();
    assert_eq!(watch.levels(), [2.0, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(watch.number("jobs_accepted_total{default}"), 3.0);
    batcher.record_metrics();
    assert_eq!(watch.levels(), [2.0, 1.0, 1.0, 1.0, 1.0], "not twice");
    assert_eq!(watch.number("jobs_accepted_total{default}"), 3.0);

    gate.pass(1);
    settle().await;
    assert_eq!(watch.number("jobs_total{default,outcome=completed}"), 1.0);
    gate.pass(9);
    answers(handles).await;
    answers(waiting).await;
    assert_eq!(watch.levels(), [0.0; 5]);
    assert_eq!(watch.number("jobs_total{default,outcome=completed}"), 5.0);
}

#[tokio::test(start_paused = true)]
async fn refused_jobs_are_told_by_the_reason() {
    let mut watch = Watch::new();
    let builder = MicroBatch::builder(Gate::open()).queue_capacity(1);
    let batcher = watch.tells(|| idle(builder.max_batch_weight(10, |job| *job as usize)));
    let _queued = batcher.submit(1);
    let waiting = batcher.submit(2);
    assert!(batcher.try_submit(3).is_err());
    assert!(batcher.try_submit(3).is_err());
    assert!(batcher.try_submit(11).is_err());
    assert!(soon(batcher.submit(11)).await.is_err());
    assert!(soon(batcher.submit(11)).await.is_err());
    let names = ["full", "closed", "too_heavy"]
        .map(|why| format!("jobs_refused_total{{default,why={why}}}"));
    let names = [&*names[0], &*names[1], &*names[2]];
    batcher.record_metrics();
    assert_eq!(watch.numbers(names), [2.0, 0.0, 3.0]);
    // The one that waits, and one that comes too late.
    let _ = soon(batcher.shutdown()).await;
    assert!(soon(waiting).await.is_err());
    assert!(batcher.try_submit(4).is_err());
    drop(batcher);
    assert_eq!(watch.numbers(names), [2.0, 2.0, 3.0]);
    assert_eq!(watch.number("jobs_total{default,outcome=abandoned}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn micro_batchers_of_one_name_add_up() {
    let mut watch = Watch::new();
    let gates = [Gate::closed(), Gate::closed()];
    let built = |gate: &Gate| {
        let builder = MicroBatch::builder(gate.clone()).max_batch_size(2);
        watch.tells(|| run(builder.name("default")))
    };
    let [one, other] = [built(&gates[0]), built(&gates[1])];
    let handles = submit(&one, 0..2);
    let mut more = submit(&other, 0..2);
    more.extend(submit(&other, 2..3));
    settle().await;
    one.record_metrics();
    other.record_metrics();
    assert_eq!(watch.levels(), [0.0, 0.0, 1.0, 4.0, 2.0]);
    gates[0].pass(1);
    results(handles).await;
    assert_eq!(watch.levels(), [0.0, 0.0, 1.0, 2.0, 1.0]);
    assert_eq!(watch.number("jobs_total{default,outcome=completed}"), 2.0);
    // The end of one takes back its own.
    drop(one);
    settle().await;
    assert_eq!(watch.levels(), [0.0, 0.0, 1.0, 2.0, 1.0]);
    gates[1].pass(2);
    let results = tokio::join!(other.shutdown(), results(more));
    results.0.expect("drains");
    assert_eq!(watch.levels(), [0.0; 5]);
    assert_eq!(watch.number("jobs_accepted_total{default}"), 5.0);
    assert_eq!(watch.number("jobs_total{default,outcome=completed}"), 5.0);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_settings_shows_in_the_limits() {
    let mut watch = Watch::new();
    let builder = MicroBatch::builder(Gate::open()).queue_capacity(50);
    let batcher = watch.tells(|| run(builder));
    let limits = [
        "queue_capacity{default}",
        "batch_size_limit{default}",
        "interval_seconds{default}",
        "in_flight_limit{default}",
    ];
    assert_eq!(watch.numbers(limits), [50.0, 3.0, 1.0, 1.0], "at build");
    let changed = batcher.reconfigure(|settings| {
        settings.max_batch_size = 100;
        settings.interval = Duration::from_millis(5);
        settings.max_in_flight = 4;
    });
    changed.expect("valid");
    batcher.record_metrics();
    let expected = [50.0, 100.0, 0.005, 4.0];
    assert_eq!(watch.numbers(limits), expected);
    // The recorder has forgotten them. A finished batch tells them, too.
    assert_eq!(watch.numbers(limits), [0.0; 4]);
    results(submit(&batcher, 0..1)).await;
    assert_eq!(watch.numbers(limits), expected);
}

/// Whatever becomes of the jobs, nothing is left in the gauges.
#[tokio::test(start_paused = true)]
async fn after_the_end_every_gauge_of_jobs_is_zero() {
    for end in ["timeout", "dropped", "unstarted"] {
        let mut watch = Watch::new();
        let builder = MicroBatch::builder(Gate::closed()).max_batch_size(2);
        let builder = builder.queue_capacity(2).cancel_on_drop(true);
        let batcher = watch.tells(|| idle(builder));
        let start = match end {
            "unstarted" => None,
            _ => Some(tokio::spawn(batcher.start(CancellationToken::new()))),
        };
        let mut handles = submit(&batcher, 0..5);
        settle().await;
        handles.extend(submit(&batcher, 5..8));
        drop(handles.pop());
        batcher.record_metrics();
        let open = watch.levels()[..4].iter().sum::<f64>();
        assert_eq!(open, 7.0, "{end}");
        match start {
            Some(start) if end == "dropped" => {
                start.abort();
                assert!(start.await.is_err());
            }
            _ => {
                let _ = soon(batcher.shutdown()).await;
            }
        }
        assert_eq!(watch.levels(), [0.0; 5], "{end}");
        let stats = batcher.stats();
        let ended = watch.numbers([
            "jobs_accepted_total{default}",
            "jobs_total{default,outcome=abandoned}",
        ]);
        assert_eq!(
            ended,
            [stats.accepted as f64, stats.abandoned as f64],
            "{end}"
        );
        assert!(stats.abandoned > 0, "{end}");
        drop(batcher);
        assert_eq!(watch.levels(), [0.0; 5], "{end}");
        drop(handles);
    }
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_job_is_told() {
    let mut watch = Watch::new();
    let builder = MicroBatch::builder(Gate::open()).cancel_on_drop(true);
    let batcher = watch.tells(|| run(builder));
    drop(batcher.submit(1));
    results(submit(&batcher, 2..3)).await;
    assert_eq!(watch.number("jobs_total{default,outcome=withdrawn}"), 1.0);
    assert_eq!(watch.number("jobs_accepted_total{default}"), 2.0);
    assert_eq!(watch.levels(), [0.0; 5]);
}

/// A storage that takes no job in.
struct Refusing;

impl BatchStorage<u32, u32> for Refusing {
    fn len(&self) -> usize {
        0
    }

    fn append(&mut self, _: PendingJob<u32, u32>) {}

    fn take(&mut self, _: usize, _: usize) -> Vec<PendingJob<u32, u32>> {
        Vec::new()
    }
}

/// No batch finishes, so this is told when it is asked for.
#[tokio::test(start_paused = true)]
async fn what_a_storage_drops_is_told_as_abandoned() {
    let mut watch = Watch::new();
    let builder = MicroBatch::builder(Gate::open()).storage(Refusing);
    let batcher = watch.tells(|| run(builder));
    answers(submit(&batcher, 0..3)).await;
    batcher.record_metrics();
    assert_eq!(watch.number("jobs_total{default,outcome=abandoned}"), 3.0);
    assert_eq!(watch.levels(), [0.0; 5]);
}

#[tokio::test(start_paused = true)]
async fn without_a_recorder_all_goes_well() {
    let batcher = run(MicroBatch::builder(Gate::open()));
    results(submit(&batcher, 0..3)).await;
    batcher.record_metrics();
}

/// A recorder whose every part panics while it is armed.
#[derive(Clone, Default)]
struct Jumpy(Arc<AtomicBool>);

impl Jumpy {
    fn jump(&self) {
        assert!(!self.0.load(Ordering::SeqCst), "the recorder panics");
    }
}

impl metrics::CounterFn for Jumpy {
    fn increment(&self, _: u64) {
        self.jump();
    }

    fn absolute(&self, _: u64) {
        self.jump();
    }
}

impl metrics::GaugeFn for Jumpy {
    fn increment(&self, _: f64) {
        self.jump();
    }

    fn decrement(&self, _: f64) {
        self.jump();
    }

    fn set(&self, _: f64) {
        self.jump();
    }
}

impl metrics::HistogramFn for Jumpy {
    fn record(&self, _: f64) {
        self.jump();
    }
}

impl Recorder for Jumpy {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        self.jump();
    }

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        self.jump();
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        self.jump();
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> metrics::Counter {
        self.jump();
        metrics::Counter::from_arc(Arc::new(self.clone()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        self.jump();
        metrics::Gauge::from_arc(Arc::new(self.clone()))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        self.jump();
        metrics::Histogram::from_arc(Arc::new(self.clone()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_panics_costs_no_job() {
    for (at_build, later) in [(true, true), (true, false), (false, true)] {
        let jumpy = Jumpy::default();
        jumpy.0.store(at_build, Ordering::SeqCst);
        let builder: MicroBatchBuilder<u32, u32, _> = MicroBatch::builder(Gate::open());
        let batcher = with_local_recorder(&jumpy, || run(builder));
        jumpy.0.store(later, Ordering::SeqCst);
        assert_eq!(results(submit(&batcher, 0..7)).await, [0, 1, 2, 3, 4, 5, 6]);
        batcher.record_metrics();
        soon(batcher.shutdown()).await.expect("drains");
        assert_eq!(batcher.stats().completed, 7);
    }
}
