//! Starts the workers, listens to them, and kills one of them.

use std::cell::Cell;
use std::pin::pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use microbatch_durable::{CancellationToken, Store};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{MissedTickBehavior, interval};

use super::engine::{Engine, Place};
use super::flights::Flight;
use super::ledger::Ledger;
use super::message::Message;
use super::options::Options;
use super::producer;
use super::progress::Progress;

/// Between two looks whether the store is empty.
const LOOK: Duration = Duration::from_millis(50);

/// Runs the producer and the workers until every job is done, or `stop` is cancelled.
pub(crate) async fn run<E: Engine>(
    options: &Options,
    place: &Place,
    store: E::Store,
    flights: &[Flight],
    stop: &CancellationToken,
) -> anyhow::Result<Ledger> {
    let started = Instant::now();
    let mut crew = Crew::start::<E>(options.workers, place).await?;
    let mut ledger = Ledger::new(options.workers);
    let mut progress = Progress::new(flights.len() as u64, options.workers)?;
    let submitted = Cell::new(0);
    let mut producing = pin!(producer::run(store.clone(), flights, &submitted));
    let mut is_producing = true;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            produced = &mut producing, if is_producing => {
                produced?;
                is_producing = false;
            }
            Some((worker, line)) = crew.lines.recv() => {
                let half_done = ledger.done() >= flights.len() as u64 / 2;
                match crew.understand(worker, line, &ledger).await? {
                    // It has a batch in its hands.
                    Some(Message::Begun) if half_done && ledger.killed.is_none() => {
                        // SIGKILL: no handler, no destructor, no farewell.
                        crew.workers[worker].child.start_kill().context("cannot kill a worker")?;
                        ledger.killed = Some((worker, Instant::now()));
                        progress.say(&format!("killed worker {}", worker + 1));
                    }
                    Some(message) => note(&mut ledger, &progress, worker, message)?,
                    None => {}
                }
            }
            _ = looks.tick() => {
                progress.show(submitted.get(), &ledger);
                if !is_producing && store.depth().await?.pending() == 0 {
                    break;
                }
            }
        }
    }
    ledger.took = started.elapsed();
    // Workers stop when there is no more input; until then they may have something to say.
    for worker in &mut crew.workers {
        worker.input = None;
    }
    while let Some((worker, line)) = crew.lines.recv().await {
        if let Some(message) = crew.understand(worker, line, &ledger).await? {
            note(&mut ledger, &progress, worker, message)?;
        }
    }
    progress.show(submitted.get(), &ledger);
    progress.leave();
    store.close().await;
    Ok(ledger)
}

fn note(
    ledger: &mut Ledger,
    progress: &Progress,
    worker: usize,
    message: Message,
) -> anyhow::Result<()> {
    let number = worker + 1;
    match message {
        Message::Begun => {}
        Message::Settled {
            done,
            attempt,
            error,
        } => {
            ledger.note(worker, done, attempt);
            if let Some(error) = error {
                progress.say(&format!("worker {number}: a batch failed: {error}"));
            }
        }
        Message::Failed { why } => bail!("worker {number}: {why}"),
    }
    Ok(())
}

/// The workers, and what they say.
struct Crew {
    workers: Vec<Worker>,
    /// Of which worker; none is its last word.
    lines: UnboundedReceiver<(usize, Option<String>)>,
}

struct Worker {
    child: Child,
    /// The worker stops when this is closed.
    input: Option<ChildStdin>,
}

impl Crew {
    /// Starts this program so many times, and tells each where the jobs are.
    async fn start<E: Engine>(workers: usize, place: &Place) -> anyhow::Result<Self> {
        let (speak, lines) = mpsc::unbounded_channel();
        let mut crew = Self {
            workers: Vec::new(),
            lines,
        };
        for number in 0..workers {
            let (worker, output) = Worker::start::<E>(place).await?;
            crew.workers.push(worker);
            tokio::spawn(listen(number, output, speak.clone()));
        }
        Ok(crew)
    }

    /// Reads the line. Fails if the worker ended in another way than it should.
    async fn understand(
        &mut self,
        worker: usize,
        line: Option<String>,
        ledger: &Ledger,
    ) -> anyhow::Result<Option<Message>> {
        let (number, is_killed) = (worker + 1, ledger.is_killed(worker));
        if let Some(line) = line {
            return match serde_json::from_str(&line) {
                Ok(message) => Ok(Some(message)),
                // It may die in the middle of a line.
                Err(_) if is_killed => Ok(None),
                Err(error) => bail!("worker {number} said {line:?}: {error}"),
            };
        }
        let worker = &mut self.workers[worker];
        let status = worker.child.wait().await?;
        let is_asked_to = worker.input.is_none();
        match status.success() {
            true if is_asked_to => Ok(None),
            false if is_killed => Ok(None),
            _ => bail!("worker {number} ended with {status}"),
        }
    }
}

impl Worker {
    async fn start<E: Engine>(place: &Place) -> anyhow::Result<(Self, ChildStdout)> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        if let Some(store) = E::WHICH.to_possible_value() {
            command.arg("--store").arg(store.get_name());
        }
        let mut child = command
            .arg("--worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a worker")?;
        let mut input = child.stdin.take().context("a worker has no input")?;
        let output = child.stdout.take().context("a worker has no output")?;
        let line = serde_json::to_string(place)? + "\n";
        let written = input.write_all(line.as_bytes()).await;
        written.context("cannot write to a worker")?;
        let input = Some(input);
        Ok((Self { child, input }, output))
    }
}

/// Passes on what a worker says, to its end.
async fn listen(
    number: usize,
    output: ChildStdout,
    speak: UnboundedSender<(usize, Option<String>)>,
) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = speak.send((number, Some(line)));
    }
    let _ = speak.send((number, None));
}
