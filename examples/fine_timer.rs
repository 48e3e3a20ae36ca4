//! What an interval of 200 µs costs a lone caller on either timer, and how often
//! the process wakes up (on Linux) while nothing is pending.

use std::time::{Duration, Instant};
use std::{convert::Infallible, error::Error, fs, thread};

use hdrhistogram::Histogram;
use microbatch::{CancellationToken, MicroBatch};
use tokio::runtime::{Builder, Runtime};
use tokio::time;

const INTERVAL: Duration = Duration::from_micros(200);
const JOBS: u64 = 2_000;
const IDLE: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn Error>> {
    let current = || Builder::new_current_thread().enable_all().build();
    let pool = Builder::new_multi_thread().enable_all().build()?;

    println!("{JOBS} jobs, one at a time, interval {INTERVAL:?}; in µs:");
    println!("{:<26}{:>8}{:>8}{:>8}", "", "median", "p99", "idle");
    let coarse = measure("Tokio's timer", &current()?, true)?;
    let fine = measure("fine timer", &current()?, false)?;
    measure("fine timer, thread pool", &pool, false)?;
    println!("ratio of the medians: {:.1}", coarse / fine);
    Ok(())
}

/// Prints the latency and the wake-ups in `IDLE`, and returns the median.
fn measure(what: &str, runtime: &Runtime, coarse: bool) -> Result<f64, Box<dyn Error>> {
    let (latencies, idle) = runtime.block_on(async {
        if coarse {
            // Where the clock was paused, the loop leaves all to Tokio's timer.
            time::pause();
            thread::sleep(Duration::from_millis(1));
            time::resume();
        }
        let same = |jobs: Vec<u64>| async { Ok::<_, Infallible>(jobs) };
        let batcher = MicroBatch::builder(same)
            .max_batch_size(100)
            .interval(INTERVAL)
            .build_running(CancellationToken::new())?;
        let mut latencies = Histogram::<u64>::new(3)?;
        for job in 0..JOBS {
            let began = Instant::now();
            batcher.submit(job).await?;
            latencies.record(began.elapsed().as_nanos() as u64)?;
        }
        let before = wake_ups();
        time::sleep(IDLE).await;
        let idle = wake_ups().zip(before).map(|(after, before)| after - before);
        Ok::<_, Box<dyn Error>>((latencies, idle))
    })?;
    let [median, p99] = [0.5, 0.99].map(|q| latencies.value_at_quantile(q) as f64 / 1e3);
    let idle = idle.map_or("?".into(), |idle| idle.to_string());
    println!("{what:<26}{median:>8.0}{p99:>8.0}{idle:>8}");
    Ok(median)
}

/// How often the threads of the process have gone to sleep, which is as often
/// as they were woken.
fn wake_ups() -> Option<u64> {
    let threads = fs::read_dir("/proc/self/task").ok()?;
    let of = |status: String| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with("voluntary"))?;
        line.split_whitespace().last()?.parse().ok()
    };
    let statuses = threads.filter_map(|thread| {
        let path = thread.ok()?.path().join("status");
        of(fs::read_to_string(path).ok()?)
    });
    Some(statuses.sum())
}
