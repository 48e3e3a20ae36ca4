//! Flushing while the processor is idle (promise 9).

use std::time::Duration;

use microbatch::{BatchProcessor, FlushReason, MicroBatch, MicroBatchBuilder};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::{Gate, Reports, millis, results, run, secs, settle, submit};

fn eager(gate: &Gate) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone())
        .max_batch_size(10)
        .flush_when_idle(true)
}

#[tokio::test(start_paused = true)]
async fn a_lone_caller_pays_no_waiting() {
    let (gate, reports) = (Gate::open(), Reports::default());
    let batcher = run(eager(&gate).on_batch(reports.hook()));
    for job in 0..3 {
        batcher.submit(job).await.expect("succeeds");
    }
    assert_eq!(gate.batches(), [[0], [1], [2]]);
    assert_eq!(gate.times(), [Duration::ZERO; 3]);
    assert_eq!(reports.reasons(), [FlushReason::Idle; 3]);
}

#[tokio::test(start_paused = true)]
async fn without_it_a_lone_caller_waits_for_company() {
    let gate = Gate::open();
    let batcher = run(eager(&gate).flush_when_idle(false));
    batcher.submit(0).await.expect("succeeds");
    assert_eq!(gate.times(), [secs(1)]);
}

#[tokio::test(start_paused = true)]
async fn jobs_of_one_moment_share_a_batch() {
    let gate = Gate::open();
    let batcher = run(eager(&gate));
    results(submit(&batcher, 0..5)).await;
    assert_eq!(gate.batches(), [[0, 1, 2, 3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn batches_grow_while_the_processor_is_busy() {
    let gate = Gate::closed();
    let batcher = run(eager(&gate));
    let mut handles = submit(&batcher, [0]);
    for job in 1..5 {
        settle().await;
        handles.extend(submit(&batcher, [job]));
    }
    gate.pass(2);
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0], vec![1, 2, 3, 4]]);
    assert_eq!(gate.times()[1], millis(4), "as soon as the first is done");
}

#[tokio::test(start_paused = true)]
async fn an_idle_flush_keeps_the_limits() {
    let gate = Gate::closed();
    let batcher = run(eager(&gate).max_batch_size(3));
    let mut handles = submit(&batcher, [0]);
    settle().await;
    handles.extend(submit(&batcher, 1..6));
    gate.pass(3);
    results(handles).await;
    assert_eq!(gate.batches(), [vec![0], vec![1, 2, 3], vec![4, 5]]);
}

#[tokio::test(start_paused = true)]
async fn idle_means_no_batch_at_all_in_flight() {
    let (gate, reports) = (Gate::closed(), Reports::default());
    let batcher = run(eager(&gate).max_in_flight(2).on_batch(reports.hook()));
    let mut handles = submit(&batcher, [0]);
    settle().await;
    handles.extend(submit(&batcher, [1]));
    settle().await;
    assert_eq!(gate.inside(), 1);
    sleep(secs(1)).await;
    assert_eq!(gate.inside(), 2, "the interval still holds");
    gate.pass(2);
    results(handles).await;
    use FlushReason::{Idle, Interval};
    assert_eq!(reports.reasons(), [Idle, Interval]);
}

/// A repeatable source of random numbers (xorshift64).
struct Random(u64);

impl Random {
    /// Between 0 and 1, never 0.
    #[allow(clippy::cast_precision_loss)]
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A Poisson process of that many arrivals a second.
    fn arrivals(&mut self, rate: f64, count: usize) -> Vec<Duration> {
        let mut now = 0.0;
        let arrivals = (0..count).map(|_| {
            now -= self.uniform().ln() / rate;
            // Whole milliseconds, as the timer has them.
            Duration::from_secs_f64((now * 1e3).round() / 1e3)
        });
        arrivals.collect()
    }
}

/// What a batch takes: one second, and a tenth for each job.
fn service(jobs: usize) -> Duration {
    secs(1) + millis(100) * u32::try_from(jobs).expect("small")
}

/// The mean latency of a server that is never idle while a job waits, and
/// takes all that wait.
fn ideal_latency(arrivals: &[Duration]) -> Duration {
    let (mut free, mut total, mut next) = (Duration::ZERO, Duration::ZERO, 0);
    while next < arrivals.len() {
        let start = free.max(arrivals[next]);
        let waiting = arrivals[next..].iter().take_while(|at| **at <= start);
        let batch = &arrivals[next..next + waiting.count()];
        free = start + service(batch.len());
        total += batch.iter().map(|at| free - *at).sum::<Duration>();
        next += batch.len();
    }
    mean(total, arrivals.len())
}

async fn measured_latency(arrivals: &[Duration]) -> Duration {
    let batcher = run(MicroBatch::builder(|jobs: Vec<Instant>| async move {
        sleep(service(jobs.len())).await;
        Ok::<_, String>(jobs.iter().map(Instant::elapsed).collect())
    })
    .max_batch_size(usize::MAX)
    .queue_capacity(usize::MAX)
    .flush_when_idle(true));
    let began = Instant::now();
    let mut handles = Vec::new();
    for at in arrivals {
        sleep_until(began + *at).await;
        handles.push(batcher.submit(Instant::now()));
    }
    mean(results(handles).await.into_iter().sum(), arrivals.len())
}

fn mean(total: Duration, count: usize) -> Duration {
    total / u32::try_from(count).expect("small")
}

/// At most ten jobs a second fit, in batches without end; the loads are a
/// fraction of that.
#[tokio::test(start_paused = true)]
async fn under_load_the_latency_is_that_of_the_ideal_server() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for load in [0.02, 0.1, 0.3, 0.5, 0.8, 0.9] {
        let arrivals = random.arrivals(load * 10.0, 3_000);
        let (ideal, measured) = (ideal_latency(&arrivals), measured_latency(&arrivals).await);
        let ratio = measured.as_secs_f64() / ideal.as_secs_f64();
        assert!(
            (ratio - 1.0).abs() < 0.01,
            "{load}: {measured:?} against {ideal:?}"
        );
    }
}
