//! A process of its own: this test executable again, with one ignored test of it to run
//! and its orders in the environment. It says on its standard output what has happened,
//! a line each, before it does anything else.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::engine::Engine;

const ORDERS: &str = "MICROBATCH_CHILD";

/// How long a child may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the orders of this process, if it is a child: the place of the store, then words.
pub(crate) fn orders() -> Option<Vec<String>> {
    let orders = std::env::var(ORDERS).ok()?;
    say("here");
    Some(orders.split('\n').map(str::to_owned).collect())
}

/// Writes a line. A line is written at once, so a parent that reads it reads all of it.
pub(crate) fn say(line: impl std::fmt::Display) {
    let line = format!("\n{line}\n");
    let mut out = std::io::stdout().lock();
    // Without a parent there is nobody to tell, and nothing more to do.
    if out
        .write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// The child of a module that has tests for each engine.
pub(crate) fn child_of<E: Engine>(module: &str) -> String {
    format!("{module}::{}::child", E::NAME)
}

/// A child that runs. It is killed if it is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    /// Starts the child of a module that has tests for each engine.
    pub(crate) fn of<E: Engine>(module: &str, place: &str, orders: &[String]) -> Self {
        Self::start(&child_of::<E>(module), place, orders)
    }

    /// Starts a child with one test to run, on a store, with orders.
    pub(crate) fn start(test: &str, place: &str, orders: &[String]) -> Self {
        let mut all = vec![place.to_owned()];
        all.extend_from_slice(orders);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                test,
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ORDERS, all.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || read(out, &sender));
        Self { child, lines }
    }

    /// Returns the next line, or `None` at the end. Waits no longer than until then.
    pub(crate) fn line_until(&self, until: Instant) -> Result<Option<String>, Timeout> {
        let left = until.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Ok(Some(line)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Timeout),
        }
    }

    /// Returns the next line, or `None` at the end.
    pub(crate) fn line(&self) -> Option<String> {
        match self.line_until(Instant::now() + PATIENCE) {
            Ok(line) => line,
            Err(Timeout) => panic!("the child is silent"),
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The time was over.
#[derive(Debug)]
pub(crate) struct Timeout;

fn read(out: ChildStdout, sender: &mpsc::Sender<String>) {
    let mut out = BufReader::new(out);
    let mut line = String::new();
    // What has no end of a line was cut by the kill.
    while out.read_line(&mut line).is_ok_and(|len| len > 0) && line.ends_with('\n') {
        let text = line.trim_end();
        if !text.is_empty() && sender.send(text.to_owned()).is_err() {
            return;
        }
        line.clear();
    }
}
