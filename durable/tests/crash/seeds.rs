//! How many seeds or rounds a test has, and how they are run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};

pub(crate) use crate::setup::count;

/// Returns how many seeds it ran, each on one of a few threads, each with a runtime of its own. A seed that
/// fails is named with the command that runs it alone; the order in which its tasks run
/// is the system's.
pub(crate) fn run(
    name: &str,
    variable: &str,
    default: u64,
    seed: impl Fn(&Runtime, u64) + Sync,
) -> u64 {
    let first = count("CRASH_FIRST", 0);
    let seeds = count(variable, default);
    let next = AtomicU64::new(first);
    let started = Instant::now();
    let work = || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= first + seeds {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| seed(&runtime, at))) {
                next.store(u64::MAX / 2, Ordering::Relaxed);
                eprintln!(
                    "seed {at} failed; again: CRASH_FIRST={at} {variable}=1 cargo test -p \
                     microbatch-durable --test crash {name}",
                );
                resume_unwind(panic);
            }
            let done = at + 1 - first;
            if done.is_multiple_of(10_000) {
                println!("{name}: {done} seeds in {:?}", started.elapsed());
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                resume_unwind(panic);
            }
        }
    });
    println!("{name}: {seeds} seeds in {:?}", started.elapsed());
    seeds
}
