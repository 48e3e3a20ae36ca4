//! A process that submits and drains is killed at any moment and started again on the
//! same file; what it said before is held against what the file has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backon::ConstantBuilder;
use fastrand::Rng;
use microbatch_durable::{
    CancellationToken, DeadLetters, Drain, Durable, RedbError, RedbStore, RedbStoreBuilder, Store,
    Verdict,
};

use crate::by_seed::{BySeed, MAX_ATTEMPTS, is_reason};
use crate::child::{self, Running, say};
use crate::seeds;
use crate::setup::runtime;

const CALLERS: u64 = 12;

fn options() -> RedbStoreBuilder {
    // Longer than the test lasts, so that an id is appended once.
    RedbStore::builder().dedup_window(Duration::from_secs(86_400))
}

/// Submits and drains until it is killed, or, if there is nothing to submit, until the
/// store is empty.
#[test]
#[ignore = "the child of the tests beside it"]
fn child() {
    let Some(orders) = child::orders() else {
        return;
    };
    let [path, round, jobs, seed, again @ ..] = &orders[..] else {
        panic!("{orders:?}");
    };
    let jobs: u64 = jobs.parse().unwrap();
    let mut rng = Rng::with_seed(seed.parse().unwrap());
    runtime().block_on(async {
        say("opening");
        let store = options().open(path).await.unwrap();
        say("open");
        let durable = Durable::<String>::builder(store.clone())
            .build_running(CancellationToken::new())
            .unwrap();
        let stop = CancellationToken::new();
        let max_in_flight = rng.usize(1..4);
        let processor = BySeed::new(rng.fork(), Duration::from_millis(2));
        let drain = Drain::builder(store.clone(), processor)
            .max_batch_size(16)
            .max_attempts(MAX_ATTEMPTS)
            .max_in_flight(max_in_flight)
            .backoff(ConstantBuilder::new().with_delay(Duration::from_millis(2)))
            .build()
            .unwrap();
        let draining = tokio::spawn(drain.run(stop.clone()));
        let left = Arc::new(AtomicU64::new(jobs));
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..CALLERS {
            let (durable, left, round) = (durable.clone(), Arc::clone(&left), round.clone());
            let mine = again.iter().skip(caller as usize).step_by(CALLERS as usize);
            let mut mine: Vec<_> = mine.cloned().collect();
            callers.spawn(async move {
                loop {
                    let id = match mine.pop() {
                        Some(id) => id,
                        None => match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                            n.checked_sub(1)
                        }) {
                            Ok(n) => format!("{round}-{n}"),
                            Err(_) => return,
                        },
                    };
                    say(format!("submit {id}"));
                    let answer = durable.submit(id.clone(), id.clone()).await.unwrap();
                    assert!(answer.is_accepted());
                    say(format!("acked {id} {answer:?}"));
                }
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller.unwrap();
        }
        while store.depth().await.unwrap().pending() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        say("idle");
        if jobs > 0 {
            // Until the kill.
            std::future::pending::<()>().await;
        }
        stop.cancel();
        draining.await.unwrap().unwrap();
        durable.shutdown().await.unwrap();
        store.close().await;
        say("end");
    });
}

/// What the children said.
#[derive(Debug, Default)]
struct Said {
    submitted: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
    /// How often an id was answered as new.
    new: BTreeMap<String, u32>,
    /// How often a job reached the processor.
    begun: BTreeMap<String, u32>,
    /// The last attempt of each job.
    attempts: BTreeMap<String, u32>,
    done: BTreeSet<String>,
    deliveries: u64,
}

impl Said {
    /// Notes a line. Judges what can be judged by it alone.
    fn hear(&mut self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["submit", id] => {
                self.submitted.insert(id.to_owned());
            }
            ["acked", id, answer] => {
                self.acknowledged.insert(id.to_owned());
                let new = self.new.entry(id.to_owned()).or_default();
                *new += u32::from(answer == "New");
                assert!(*new <= 1, "{id} was appended twice");
            }
            ["begin", id] => {
                assert!(self.submitted.contains(id), "{id} was never submitted");
                *self.begun.entry(id.to_owned()).or_default() += 1;
                self.deliveries += 1;
            }
            ["did", id, attempt, verdict] => {
                let attempt: u32 = attempt.parse().unwrap();
                let earlier = self.attempts.insert(id.to_owned(), attempt);
                assert!(
                    earlier < Some(attempt),
                    "{id} is processed as attempt {attempt}, after {earlier:?}",
                );
                let begun = self.begun[id];
                assert!(
                    attempt >= begun,
                    "{id}: attempt {attempt}, begun {begun} times"
                );
                if verdict == "done" {
                    self.done.insert(id.to_owned());
                }
            }
            _ => {}
        }
    }

    /// Opens the file, and finds in it what was acknowledged and is not done. Leaves all
    /// as it was.
    async fn check(&mut self, path: &Path) {
        let store = options().open(path).await.unwrap();
        let mut leased = Vec::new();
        loop {
            let depth = store.depth().await.unwrap();
            assert_eq!(depth.leased, leased.len() as u64);
            if depth.pending() == depth.leased {
                break;
            }
            leased.extend(store.lease(10_000).await.unwrap());
        }
        let dead = store.list(None, usize::MAX).await.unwrap();
        let mut found = BTreeSet::new();
        for job in &leased {
            assert!(self.submitted.contains(&*job.id));
            assert_eq!(&*job.payload, format!("{:?}", &*job.id).as_bytes());
            assert!(found.insert(job.id.clone()), "{} is there twice", job.id);
            let begun = self.begun.get(&*job.id).copied().unwrap_or_default();
            let attempt = job.attempt.get();
            assert!(
                attempt > begun,
                "{}: attempt {attempt}, begun {begun} times",
                job.id
            );
            let last = self.attempts.get(&*job.id).copied();
            assert!(
                Some(attempt) > last,
                "{}: attempt {attempt} after {last:?}",
                job.id
            );
        }
        for job in &dead {
            assert!(found.insert(job.id.clone()), "{} is there twice", job.id);
            assert!(is_reason(&job.reason), "{}: {:?}", job.id, job.reason);
        }
        for id in &self.acknowledged {
            assert!(
                found.contains(&**id) || self.done.contains(id),
                "{id} is lost: it was acknowledged, is not done, and is not in the store",
            );
        }
        let released: Vec<_> = leased
            .iter()
            .map(|job| (job.lease.clone(), Verdict::Release))
            .collect();
        store.settle(&released).await.unwrap();
        store.close().await;
    }

    fn unacknowledged(&self) -> Vec<String> {
        self.submitted
            .difference(&self.acknowledged)
            .cloned()
            .collect()
    }
}

/// When a child is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Started,
    Opening,
    Working,
    Idle,
}

/// Lets a child run until a moment, and a little longer; then kills it.
fn run_and_kill(child: &mut Running, said: &mut Said, moment: Moment, longer: Duration) {
    let awaited = match moment {
        Moment::Started => "here",
        Moment::Opening => "opening",
        Moment::Working => "open",
        Moment::Idle => "idle",
    };
    loop {
        let line = child.line().expect("it runs until it is killed");
        said.hear(&line);
        if line == awaited {
            break;
        }
    }
    let until = Instant::now() + longer;
    while let Ok(line) = child.line_until(until) {
        said.hear(&line.expect("it runs until it is killed"));
    }
    child.child.kill().unwrap();
    // What it said before is in the pipe.
    while let Some(line) = child.line() {
        said.hear(&line);
    }
    child.wait();
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let rounds = seeds::count("CRASH_ROUNDS", 20);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let runtime = runtime();
    let mut rng = Rng::with_seed(seeds::count("CRASH_FIRST", 7));
    let mut said = Said::default();
    let started = Instant::now();
    let mut moments = BTreeMap::<_, u32>::new();
    for round in 0..rounds {
        let (moment, longest) = [
            (Moment::Started, 4000),
            (Moment::Opening, 6000),
            (Moment::Working, 120_000),
            (Moment::Working, 300_000),
            (Moment::Idle, 3000),
        ][rng.usize(..5)];
        let jobs = match moment {
            Moment::Idle => rng.u64(1..200),
            _ => 1_000_000,
        };
        let mut orders = vec![
            format!("{round}"),
            jobs.to_string(),
            rng.u64(..).to_string(),
        ];
        // Whether these are in the store, nobody knows.
        orders.extend(said.unacknowledged());
        let mut child = Running::start("kill::child", path.to_str().unwrap(), &orders);
        let longer = Duration::from_micros(rng.u64(..longest));
        run_and_kill(&mut child, &mut said, moment, longer);
        *moments.entry(format!("{moment:?}")).or_default() += 1;
        // Not always: the next child is to find the file as the kill left it.
        let checked = rng.bool();
        if checked {
            runtime.block_on(said.check(&path));
        }
        println!(
            "round {round}: {moment:?} + {longer:?}, checked: {checked}; {} jobs acknowledged, \
             {} done, {} deliveries, {:?}",
            said.acknowledged.len(),
            said.done.len(),
            said.deliveries,
            started.elapsed(),
        );
    }
    runtime.block_on(said.check(&path));
    let mut orders = vec!["end".to_owned(), "0".to_owned(), "0".to_owned()];
    orders.extend(said.unacknowledged());
    let mut child = Running::start("kill::child", path.to_str().unwrap(), &orders);
    let mut last = String::new();
    while let Some(line) = child.line() {
        said.hear(&line);
        if line == "end" {
            last = line;
        }
    }
    assert_eq!(last, "end", "all is drained and closed");
    assert!(child.wait().success());
    assert!(said.unacknowledged().is_empty());
    runtime.block_on(said.check(&path));
    runtime.block_on(async {
        let store = options().open(&path).await.unwrap();
        assert_eq!(store.depth().await.unwrap().pending(), 0);
        store.close().await;
    });
    let names = std::fs::read_dir(folder.path()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["jobs.redb"], "nothing is left but the file");
    println!(
        "{rounds} rounds, killed {moments:?}, {} jobs, {} deliveries, {:?}",
        said.submitted.len(),
        said.deliveries,
        started.elapsed(),
    );
}

/// A store that was never open whole: the process is killed while it makes the file.
#[test]
fn a_kill_while_the_file_is_made_leaves_a_folder_that_can_be_used() {
    let rounds = seeds::count("CRASH_ROUNDS", 20);
    let runtime = runtime();
    let mut rng = Rng::with_seed(seeds::count("CRASH_FIRST", 7));
    for round in 0..rounds {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.redb");
        let orders = ["0", "1000000", "0"].map(str::to_owned);
        let mut child = Running::start("kill::child", path.to_str().unwrap(), &orders);
        let mut said = Said::default();
        let longer = Duration::from_micros(rng.u64(..5000));
        run_and_kill(&mut child, &mut said, Moment::Opening, longer);
        println!("round {round}: {longer:?}");
        runtime.block_on(said.check(&path));
    }
}

/// Story: redb marks a database last of all when it makes one; a process that was killed
/// before that left a file that was refused for ever.
#[test]
fn a_file_that_was_left_half_made_is_begun_anew_and_another_is_left_alone() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let open = || runtime.block_on(options().open(&path));
    let mut half_made = vec![0; 1 << 20];
    // The header may be there, but for the mark.
    half_made[9..300].fill(7);
    std::fs::write(&path, &half_made).unwrap();
    runtime.block_on(open().unwrap().close());
    runtime.block_on(open().unwrap().close());
    for (at, byte) in [(0, 1), (8, 1), (512, 1), ((1 << 20) - 1, 1)] {
        let mut foreign = half_made.clone();
        foreign[at] = byte;
        std::fs::write(&path, &foreign).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, RedbError::Foreign { .. }), "{error:?}");
        assert!(std::fs::read(&path).unwrap() == foreign, "it is left alone");
    }
    std::fs::write(&path, [0; 511]).unwrap();
    assert!(matches!(open(), Err(RedbError::Foreign { .. })));
}
