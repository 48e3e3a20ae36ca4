//! Worker processes: this benchmark again, with its orders in the environment.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use microbatch_durable::{CancellationToken, Drain, Store};
use tokio::time::sleep;

use crate::load::Raw;
use crate::{Error, progress};

const ORDERS: &str = "SERVERS_WORKER";

/// What this process is to do, if it is a worker: the engine, and how to reach it.
pub(crate) fn orders() -> Option<String> {
    std::env::var(ORDERS).ok()
}

pub(crate) async fn work(orders: &str) -> Result<(), Error> {
    match orders.split_once(' ') {
        Some(("nats", orders)) => drain(crate::jetstream::open(orders).await?).await,
        Some(("postgres", orders)) => drain(crate::postgres::open(orders).await?).await,
        _ => Err(format!("no such engine: {orders}").into()),
    }
}

/// Says that it is ready, waits for a line, and drains until it is killed. A batch takes a
/// millisecond.
async fn drain<S: Store>(store: S) -> Result<(), Error> {
    store.depth().await?;
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    let processor = |jobs: Vec<Vec<u8>>| async move {
        sleep(Duration::from_millis(1)).await;
        Ok::<_, Error>(vec![(); jobs.len()])
    };
    Drain::builder(store, processor)
        .codec(Raw)
        .on_batch(|batch| println!("{}", batch.done + batch.unknown))
        .build()?
        .run(CancellationToken::new())
        .await?;
    Ok(())
}

struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Jobs a second of so many workers on a queue with so many jobs.
pub(crate) fn race(orders: &str, workers: usize, jobs: u64) -> Result<f64, Error> {
    let (sender, done) = mpsc::channel();
    let mut running = Vec::new();
    for _ in 0..workers {
        let mut child = Command::new(std::env::current_exe()?)
            .env(ORDERS, orders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = BufReader::new(child.stdout.take().ok_or("no output")?);
        let worker = Worker(child);
        running.push((worker, ready(out)?));
    }
    let started = Instant::now();
    let mut workers = Vec::new();
    for (mut worker, mut out) in running {
        let go = worker.0.stdin.as_mut().ok_or("no input")?;
        go.write_all(b"go\n")?;
        workers.push(worker);
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            while out.read_line(&mut line).is_ok_and(|len| len > 0) {
                let count = line.trim().parse::<u64>().unwrap_or_default();
                if sender.send(count).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    drop(sender);
    let mut left = jobs;
    while left > 0 {
        let count = done.recv_timeout(Duration::from_secs(60));
        left -= count.map_err(|_| format!("the workers are silent; {left} jobs are left"))?;
        if left.is_multiple_of(1000) {
            progress(&format!("{} workers: {left} left", workers.len()));
        }
    }
    let rate = jobs as f64 / started.elapsed().as_secs_f64();
    progress("");
    Ok(rate)
}

fn ready(mut out: BufReader<ChildStdout>) -> Result<BufReader<ChildStdout>, Error> {
    let mut line = String::new();
    out.read_line(&mut line)?;
    match line.trim() {
        "ready" => Ok(out),
        line => Err(format!("a worker said {line:?}").into()),
    }
}
