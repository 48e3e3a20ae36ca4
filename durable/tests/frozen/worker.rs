//! A worker that is stopped for longer than its lease while it processes a job. The child
//! is this test executable again.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microbatch::CancellationToken;
use microbatch_durable::{Appended, Drain, Durable, JobId, Settled, Store as _, Verdict};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::store::SqliteStore;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

const FILE: &str = "MICROBATCH_FROZEN_FILE";
const NOTICES: &str = "MICROBATCH_FROZEN_NOTICES";

/// How the first worker comes to know that its lease is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notices {
    /// Its next `extend` says so, while the processor is still at work.
    ByExtend,
    /// Its processor keeps the runtime from extending, so that the settlement says so.
    BySettle,
}

/// What the second worker has done when the first goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    HasSettled,
    HoldsALease,
}

/// The first worker: leases and processes one batch, tells of it, and ends.
#[test]
fn child() {
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let by_extend = std::env::var_os(NOTICES).is_some_and(|value| value == "ByExtend");
    let mut runtime = match by_extend {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let drained = runtime.enable_all().build().unwrap().block_on(async move {
        let store = SqliteStore::open(&file, SHORT).unwrap();
        let process = move |jobs: Vec<String>| async move {
            println!("\nprocessing {}", jobs.join(","));
            if by_extend {
                return std::future::pending().await;
            }
            // The runtime has one thread, and this blocks it.
            std::io::stdin().lines().next().unwrap().unwrap();
            Ok::<_, std::io::Error>(vec![(); jobs.len()])
        };
        let cancel = CancellationToken::new();
        let reported = cancel.clone();
        let drain = Drain::builder(store, process).on_batch(move |report| {
            println!("\nreport {report:?}");
            reported.cancel();
        });
        drain.build().unwrap().run(cancel).await.unwrap()
    });
    println!("\ndrained {drained:?}");
}

struct Worker {
    process: Child,
    lines: Arc<Mutex<Lines<BufReader<ChildStdout>>>>,
}

impl Worker {
    fn start(file: &Path, notices: Notices) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker::child", "--nocapture"])
            .env(FILE, file)
            .env(NOTICES, format!("{notices:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let lines = Arc::new(Mutex::new(lines));
        Self { process, lines }
    }

    /// Waits for a line that starts so, and returns the rest of it.
    async fn line(&self, start: &'static str) -> String {
        let lines = Arc::clone(&self.lines);
        let find = move || {
            let mut lines = lines.lock().unwrap();
            let mut found = lines.by_ref().map(Result::unwrap);
            let line = found.find_map(|line| line.strip_prefix(start).map(str::to_owned));
            line.expect("the child ended early")
        };
        tokio::time::timeout(LONG, tokio::task::spawn_blocking(find))
            .await
            .expect("the child is silent")
            .unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Stops it outside a transaction: this process is in one.
    fn stop(&self, file: &Path) {
        let sql = rusqlite::Connection::open(file).unwrap();
        sql.busy_timeout(LONG).unwrap();
        sql.execute_batch("BEGIN IMMEDIATE").unwrap();
        kill_process(self.pid(), Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED)
            .unwrap()
            .unwrap();
        assert!(status.stopped(), "{status:?}");
        sql.execute_batch("ROLLBACK").unwrap();
    }

    fn go_on(&mut self) {
        // For a processor that waits for it.
        self.process
            .stdin
            .as_ref()
            .unwrap()
            .write_all(b"go on\n")
            .unwrap();
        kill_process(self.pid(), Signal::CONT).unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn frozen_worker(notices: Notices, second: Second) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jobs.sqlite");
    let store = SqliteStore::open(&file, LONG).unwrap();
    let front = Durable::<String>::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    let appended = front.submit("a", "work".to_owned()).await.unwrap();
    assert_eq!(appended, Appended::New);

    let mut worker = Worker::start(&file, notices);
    assert_eq!(worker.line("processing ").await, "work");
    let depth = store.depth().await.unwrap();
    worker.stop(&file);
    assert_eq!((depth.leased + depth.ready, depth.delayed), (1, 0));

    // The second worker waits until the lease has lapsed, and takes over.
    let leased = tokio::time::timeout(LONG, store.lease(1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((&*leased[0].id, leased[0].attempt.get()), ("a", 2));
    let done = [(leased[0].lease.clone(), Verdict::Done)];
    if second == Second::HasSettled {
        assert_eq!(store.settle(&done).await.unwrap(), [Settled::Held]);
    }

    worker.go_on();
    let report = worker.line("report ").await;
    for said in [
        "size: 1",
        "attempt: 1",
        "done: 0",
        "retried: 0",
        "dead: 0",
        "lost: 1",
    ] {
        assert!(report.contains(said), "{said} in {report}");
    }
    let by_extend = report.contains("all leases were lost while it was processed");
    assert_eq!(by_extend, notices == Notices::ByExtend, "{report}");
    let drained = worker.line("drained ").await;
    for said in ["batches: 1", "done: 0", "lost: 1", "store_errors: 0"] {
        assert!(drained.contains(said), "{said} in {drained}");
    }
    assert!(worker.process.wait().unwrap().success());

    let depth = store.depth().await.unwrap();
    if second == Second::HoldsALease {
        assert_eq!(
            (depth.leased, depth.pending()),
            (1, 1),
            "the first changed nothing"
        );
        assert_eq!(store.settle(&done).await.unwrap(), [Settled::Held]);
    } else {
        assert_eq!(depth.pending(), 0);
    }
    let depth = store.depth().await.unwrap();
    assert_eq!((depth.pending(), depth.dead), (0, 0));
    assert_eq!(settled_ids(&file), ["a".into()]);
}

/// The ids that were settled, by the file itself.
fn settled_ids(file: &Path) -> Vec<JobId> {
    let sql = rusqlite::Connection::open(file).unwrap();
    let mut ids = sql.prepare("SELECT id FROM settled_ids").unwrap();
    let ids = ids.query_map([], |row| row.get::<_, String>(0)).unwrap();
    ids.map(|id| id.unwrap().into()).collect()
}

#[tokio::test]
async fn frozen_until_another_has_settled_and_told_by_extend() {
    frozen_worker(Notices::ByExtend, Second::HasSettled).await;
}

#[tokio::test]
async fn frozen_until_another_has_settled_and_told_by_settle() {
    frozen_worker(Notices::BySettle, Second::HasSettled).await;
}

#[tokio::test]
async fn frozen_until_another_has_a_lease_and_told_by_extend() {
    frozen_worker(Notices::ByExtend, Second::HoldsALease).await;
}

#[tokio::test]
async fn frozen_until_another_has_a_lease_and_told_by_settle() {
    frozen_worker(Notices::BySettle, Second::HoldsALease).await;
}
