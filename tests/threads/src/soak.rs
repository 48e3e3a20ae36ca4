//! One batcher under the same load again and again. Between two rounds nothing
//! is left to do, and what is on the heap then must not grow.

use std::time::{Duration, Instant};

use crate::flood::Flood;
use crate::progress::Progress;
use crate::{HEAP, runtime};

const ROUND: u32 = 200_000;

/// Jobs of a batcher that lives for one round.
const MAYFLY: u32 = 1_000;

/// Part of the time after which everything has its size.
const WARM_UP: f64 = 0.1;

/// By how many bytes the heap may grow after that.
const TOLERANCE: i64 = 64 * 1024;

/// What is on the heap.
#[derive(Clone, Copy)]
struct Live {
    bytes: i64,
    blocks: i64,
}

impl Live {
    async fn measure() -> Self {
        // The threads drop the last of what they held.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let heap = HEAP.stats();
        Self {
            bytes: heap.bytes_allocated as i64 - heap.bytes_deallocated as i64,
            blocks: heap.allocations as i64 - heap.deallocations as i64,
        }
    }
}

pub fn run(minutes: f64, tasks: u32) -> bool {
    let began = Instant::now();
    let minute = move || began.elapsed().as_secs_f64() / 60.0;
    let progress = Progress::every(Duration::from_secs(10), move |done| {
        format!("{:.1} of {minutes} minutes, {done} jobs", minute())
    });
    let mut readings: Vec<Live> = Vec::with_capacity(1 << 16);
    let mut warm = 0;
    let (checks, mayflies_hold) = runtime().block_on(async {
        let mut flood = Flood::start(ROUND);
        let mut mayflies_hold = true;
        while minute() < minutes || readings.len() < warm + 2 {
            flood.pour(ROUND, tasks, &progress).await;
            let mut mayfly = Flood::start(MAYFLY);
            mayfly.pour(MAYFLY, tasks, &progress).await;
            mayflies_hold &= mayfly.finish().await.0.hold();
            readings.push(Live::measure().await);
            if minute() < minutes * WARM_UP {
                warm = readings.len();
            }
        }
        (flood.finish().await.0, mayflies_hold)
    });
    drop(progress);
    checks.print();
    let after = &readings[warm..];
    let (first, last) = (after[0], after[after.len() - 1]);
    let highest = after.iter().map(|live| live.bytes).max().unwrap_or(0);
    println!(
        "\n{:<30}{:>14}{:>10}",
        "heap, with nothing to do", "bytes", "blocks"
    );
    println!(
        "{:<30}{:>14}{:>10}",
        "after the warm-up", first.bytes, first.blocks
    );
    println!("{:<30}{:>14}{:>10}", "at the end", last.bytes, last.blocks);
    println!("{:<30}{highest:>14}", "at the highest");
    let flat = highest - first.bytes <= TOLERANCE;
    println!(
        "\n{} rounds of {ROUND} jobs in {:.1} minutes, {} of them for warm-up; the heap {} \
         ({TOLERANCE} bytes are allowed)",
        readings.len(),
        minute(),
        warm,
        if flat { "is flat" } else { "GROWS" },
    );
    println!(
        "counts: {}",
        if checks.hold() && mayflies_hold {
            "all match"
        } else {
            "they do not match"
        }
    );
    flat && checks.hold() && mayflies_hold
}
