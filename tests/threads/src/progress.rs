//! How far it is, and a watch over that: where nothing is done any more, the
//! process ends.

use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const STUCK: Duration = Duration::from_secs(60);

/// Counts what is done. The watch ends with the last clone.
#[derive(Clone)]
pub struct Progress {
    done: Arc<AtomicU64>,
    _watch: mpsc::Sender<()>,
}

impl Progress {
    /// Shows the count as often as that.
    pub fn every(period: Duration, show: impl Fn(u64) -> String + Send + 'static) -> Self {
        let (watch, over) = mpsc::channel();
        let done = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&done);
        thread::spawn(move || {
            let (mut last, mut idle) = (0, Duration::ZERO);
            while over.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                let now = count.load(Relaxed);
                idle = if now == last {
                    idle + period
                } else {
                    Duration::ZERO
                };
                last = now;
                say(&show(now));
                if idle >= STUCK {
                    eprintln!("\nstuck: nothing was done for {STUCK:?}");
                    std::process::exit(1);
                }
            }
        });
        Self {
            done,
            _watch: watch,
        }
    }

    pub fn add(&self, jobs: u64) {
        self.done.fetch_add(jobs, Relaxed);
    }
}

/// Rewrites the line of a terminal. Progress that cannot be shown is no reason
/// to stop.
fn say(what: &str) {
    let mut stderr = stderr();
    let _ = match stderr.is_terminal() {
        true => write!(stderr, "\r\x1b[K{what}").and_then(|()| stderr.flush()),
        false => writeln!(stderr, "{what}"),
    };
}
