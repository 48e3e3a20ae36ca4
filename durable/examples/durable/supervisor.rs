//! Starts workers, listens to them, and kills them.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};
use microbatch_durable::CancellationToken;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::flights::Flight;
use crate::ledger::Ledger;
use crate::options::Options;
use crate::output::{grouped, say};
use crate::progress::Progress;

/// Starts workers until one has come to its end, or `stop` is cancelled.
pub(crate) async fn run(
    options: &Options,
    folder: &Path,
    flights: &[Flight],
    stop: &CancellationToken,
) -> anyhow::Result<Ledger> {
    let started = Instant::now();
    let mut ledger = Ledger::default();
    let mut progress = Progress::new(flights.len() as u64)?;
    let mut kills = moments(options.kills, flights.len() as u64).into_iter();
    loop {
        let kill_at = kills.next();
        let mut worker = Worker::start(options, folder, &ledger).await?;
        let ended = worker
            .watch(&mut ledger, &mut progress, kill_at, stop)
            .await;
        progress.leave();
        let ended = ended?;
        ledger.end_worker(ended == End::Killed);
        ledger.took = started.elapsed();
        if ended == End::Done || stop.is_cancelled() {
            return Ok(ledger);
        }
        let acknowledged = grouped(ledger.acknowledged());
        say(&format!(
            "killed the worker after {acknowledged} acknowledged; starting the next"
        ));
    }
}

/// How many records are acknowledged when a worker is killed: with one kill 40 to 60 % of
/// them, and with several as evenly spread.
fn moments(kills: u32, records: u64) -> Vec<u64> {
    let moment = |kill: u32| {
        let share = (f64::from(kill) + 0.8 + 0.4 * fastrand::f64()) / f64::from(kills + 1);
        ((records as f64 * share) as u64).clamp(1, records)
    };
    (0..kills).map(moment).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Killed,
}

struct Worker {
    child: Child,
    /// The worker stops when this is closed.
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts this program once more, and tells it what is acknowledged.
    async fn start(options: &Options, folder: &Path, ledger: &Ledger) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.arg("--worker").arg("--folder").arg(folder);
        command.arg("--callers").arg(options.callers.to_string());
        command.arg("--kills").arg(options.kills.to_string());
        if let Some(rows) = options.rows {
            command.arg("--rows").arg(rows.to_string());
        }
        command.arg("--").arg(&options.file);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the worker")?;
        let input = child.stdin.take().context("the worker has no input")?;
        let output = child.stdout.take().context("the worker has no output")?;
        let mut worker = Self {
            child,
            input: Some(input),
            output: BufReader::new(output).lines(),
        };
        let acknowledged = serde_json::to_string(&ledger.lines)? + "\n";
        if let Some(input) = &mut worker.input {
            let written = input.write_all(acknowledged.as_bytes()).await;
            written.context("cannot write to the worker")?;
        }
        Ok(worker)
    }

    /// Listens until the worker ends. Kills it once so many records are acknowledged.
    async fn watch(
        &mut self,
        ledger: &mut Ledger,
        progress: &mut Progress,
        kill_at: Option<u64>,
        stop: &CancellationToken,
    ) -> anyhow::Result<End> {
        let mut killed = false;
        loop {
            let line = tokio::select! {
                line = self.output.next_line() => line.context("cannot read from the worker")?,
                () = stop.cancelled(), if self.input.is_some() => {
                    self.input = None;
                    continue;
                }
            };
            // What it had said before it died counts.
            let Some(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(message) => ledger.note(message)?,
                // It may die in the middle of a line.
                Err(_) if killed => continue,
                Err(error) => bail!("the worker said {line:?}: {error}"),
            }
            progress.show(ledger);
            if !killed && kill_at.is_some_and(|moment| ledger.acknowledged() >= moment) {
                // SIGKILL where there is one: no handler, no destructor, no farewell.
                self.child.start_kill().context("cannot kill the worker")?;
                killed = true;
            }
        }
        let status = self.child.wait().await?;
        match status.success() {
            true => Ok(End::Done),
            false if killed => Ok(End::Killed),
            false => bail!("the worker ended with {status}"),
        }
    }
}
