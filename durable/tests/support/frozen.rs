//! A worker that is stopped for longer than its lease while it processes a job. The child
//! is this test executable again.

use std::io::Write as _;
use std::time::Duration;

use microbatch_durable::{
    Appended, CancellationToken, DeadLetters as _, Drain, Durable, Settled, Store as _, Verdict,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::child::{self, Running, say};
use crate::engine::Engine;

const LONG: Duration = Duration::from_secs(60);

/// How a worker on an engine is frozen.
pub(crate) trait Freeze: Engine {
    /// How long its leases hold, and those of the worker that takes over.
    const LEASE_TIMES: [Duration; 2] = [Duration::from_millis(700), LONG];

    /// Does something at a moment when a process may be stopped for long without stopping
    /// others.
    fn between_transactions(&self, stop: impl FnOnce()) {
        stop();
    }
}

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
fn child<E: Freeze>() {
    let Some(orders) = child::orders() else {
        return;
    };
    let [place, notices, lease_time] = &orders[..] else {
        panic!("{orders:?}");
    };
    let by_extend = notices == "ByExtend";
    let lease_time = Duration::from_millis(lease_time.parse().unwrap());
    let mut runtime = match by_extend {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let drained = runtime.enable_all().build().unwrap().block_on(async move {
        let store = E::open(place, lease_time).await;
        let process = move |jobs: Vec<String>| async move {
            say(format!("processing {}", jobs.join(",")));
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
            say(format!("report {report:?}"));
            reported.cancel();
        });
        drain.build().unwrap().run(cancel).await.unwrap()
    });
    say(format!("drained {drained:?}"));
}

/// Waits for a line that starts so, and returns the rest of it.
fn line(worker: &Running, start: &str) -> String {
    loop {
        let line = worker.line().expect("the child ended early");
        if let Some(rest) = line.strip_prefix(start) {
            return rest.to_owned();
        }
    }
}

fn stop<E: Freeze>(worker: &Running, engine: &E) {
    let pid = Pid::from_child(&worker.child);
    engine.between_transactions(|| {
        kill_process(pid, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    });
}

fn go_on(worker: &Running) {
    // For a processor that waits for it.
    let mut orders = worker.child.stdin.as_ref().unwrap();
    orders.write_all(b"go on\n").unwrap();
    kill_process(Pid::from_child(&worker.child), Signal::CONT).unwrap();
}

async fn frozen<E: Freeze>(notices: Notices, second: Second) {
    let Some(engine) = E::make() else {
        return;
    };
    let place = engine.place();
    let store = E::open(&place, E::LEASE_TIMES[1]).await;
    let front = Durable::<String>::builder(store.clone())
        .build_running(CancellationToken::new())
        .unwrap();
    let appended = front.submit("a", "work".to_owned()).await.unwrap();
    assert_eq!(appended, Appended::New);

    let lease_time = E::LEASE_TIMES[0].as_millis().to_string();
    let orders = [format!("{notices:?}"), lease_time];
    let mut worker = Running::of::<E>("frozen", &place, &orders);
    assert_eq!(line(&worker, "processing "), "work");
    let depth = store.depth().await.unwrap();
    stop(&worker, &engine);
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

    go_on(&worker);
    let report = line(&worker, "report ");
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
    let drained = line(&worker, "drained ");
    for said in ["batches: 1", "done: 0", "lost: 1", "store_errors: 0"] {
        assert!(drained.contains(said), "{said} in {drained}");
    }
    assert!(worker.wait().success());

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
    assert!(store.list(None, 1).await.unwrap().is_empty());
    // It was done, so its id is taken.
    let again = front.submit("a", "work".to_owned()).await.unwrap();
    assert_eq!(again, Appended::Duplicate);
}

fn run<E: Freeze>(notices: Notices, second: Second) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(frozen::<E>(notices, second));
}

fn until_another_has_settled_and_told_by_extend<E: Freeze>() {
    run::<E>(Notices::ByExtend, Second::HasSettled);
}

fn until_another_has_settled_and_told_by_settle<E: Freeze>() {
    run::<E>(Notices::BySettle, Second::HasSettled);
}

fn until_another_has_a_lease_and_told_by_extend<E: Freeze>() {
    run::<E>(Notices::ByExtend, Second::HoldsALease);
}

fn until_another_has_a_lease_and_told_by_settle<E: Freeze>() {
    run::<E>(Notices::BySettle, Second::HoldsALease);
}

on_each_frozen! {
    tests: until_another_has_settled_and_told_by_extend,
        until_another_has_settled_and_told_by_settle,
        until_another_has_a_lease_and_told_by_extend,
        until_another_has_a_lease_and_told_by_settle;
    child: child;
}
