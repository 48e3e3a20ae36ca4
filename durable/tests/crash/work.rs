//! Tasks that append, lease and settle on a disk in memory, and tell a ledger of it.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use microbatch_durable::{
    CancellationToken, DeadLetters, NewJob, RedbError, RedbStore, Settled, Store, Verdict,
};
use tokio::task::yield_now;

use crate::disk::Disk;
use crate::ledger::{self, Ledger};

/// What an error of the store means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errors {
    /// The power is off. It is the last answer of this life.
    End,
    /// It passes: the call is repeated.
    Pass,
}

/// The power is off.
struct Off;

pub(crate) fn job(id: &str) -> NewJob {
    NewJob {
        id: id.into(),
        codec: "text".into(),
        payload: id.to_owned().into(),
    }
}

/// A job that is a text in JSON, which is its id as well.
pub(crate) fn json_job(text: &str) -> NewJob {
    NewJob {
        codec: "json".into(),
        ..job(text)
    }
}

/// One opening of the store, until its work is done or the power is off.
pub(crate) async fn live(disk: &Disk, ledger: &Ledger, rng: &mut Rng) {
    let cache_size = [0, 64 << 10, 1 << 20][rng.usize(..3)];
    let store = match open_with(disk, cache_size).await {
        Ok(store) => store,
        Err(error) => return assert!(disk.is_cut(), "{error:?}"),
    };
    on(&store, disk, ledger, rng, Errors::End).await;
    if rng.bool() {
        store.close().await;
    }
}

pub(crate) async fn open(disk: &Disk) -> RedbStore {
    open_with(disk, 64 << 10).await.unwrap()
}

pub(crate) async fn open_with(disk: &Disk, cache_size: usize) -> Result<RedbStore, RedbError> {
    let disk = disk.clone();
    RedbStore::builder()
        .cache_size(cache_size)
        .open_on(move || disk.clone())
        .await
}

/// A few tasks on an open store.
pub(crate) async fn on(
    store: &RedbStore,
    disk: &Disk,
    ledger: &Ledger,
    rng: &mut Rng,
    errors: Errors,
) {
    let life = Life {
        disk,
        ledger,
        errors,
        name: rng.u32(..),
    };
    // With the answer that says that the power is off, the rest of the work is dropped.
    let _ = life.work(store, rng).await;
}

struct Life<'a> {
    disk: &'a Disk,
    ledger: &'a Ledger,
    errors: Errors,
    /// Begins the ids of its jobs.
    name: u32,
}

impl Life<'_> {
    async fn work(&self, store: &RedbStore, rng: &mut Rng) -> Result<(), Off> {
        let appended = CancellationToken::new();
        let [a, b, c, x, y] = std::array::from_fn(|_| rng.fork());
        let appenders = async {
            let outcome = tokio::try_join!(
                self.append(store, "a", a),
                self.append(store, "b", b),
                self.append(store, "c", c),
            );
            outcome?;
            // Until the workers have taken all that is due, and a little more.
            for _ in 0..20 {
                let (depth, _) = self.until_answered(|| store.depth()).await?;
                if depth.ready == 0 {
                    break;
                }
                yield_now().await;
            }
            appended.cancel();
            Ok(())
        };
        tokio::try_join!(
            appenders,
            self.take(store, x, &appended),
            self.take(store, y, &appended),
        )?;
        Ok(())
    }

    /// Appends a few jobs at a time; now and then one that is there already, or may be.
    async fn append(&self, store: &RedbStore, caller: &str, mut rng: Rng) -> Result<(), Off> {
        let mut mine: Vec<String> = self.ledger.unacknowledged();
        for turn in 0..rng.usize(1..6) {
            let mut ids: BTreeSet<String> = BTreeSet::new();
            for n in 0..rng.usize(1..5) {
                ids.insert(format!("{:x}-{caller}-{turn}-{n}", self.name));
            }
            if rng.bool() && !mine.is_empty() {
                ids.insert(mine.swap_remove(rng.usize(..mine.len())));
            }
            let ids = Vec::from_iter(ids);
            let known: Vec<_> = ids.iter().map(|id| self.ledger.submitted(id)).collect();
            let jobs: Vec<_> = ids.iter().map(|id| job(id)).collect();
            let (answers, _) = self.until_answered(|| store.append(&jobs)).await?;
            assert_eq!(answers.len(), ids.len());
            for ((id, answer), known) in ids.iter().zip(&answers).zip(known) {
                self.ledger.appended(id, answer, known);
            }
            mine.extend(ids);
            if rng.bool() {
                yield_now().await;
            }
        }
        Ok(())
    }

    /// Leases, and settles most of it.
    async fn take(
        &self,
        store: &RedbStore,
        mut rng: Rng,
        appended: &CancellationToken,
    ) -> Result<(), Off> {
        // Leases are held for a while; some for ever.
        let mut held = Vec::new();
        loop {
            let max = rng.usize(1..7);
            let leased = tokio::select! {
                biased;
                leased = self.until_answered(|| store.lease(max)) => leased?.0,
                // What the dropped call has leased is released.
                () = appended.cancelled() => return Ok(()),
            };
            for job in &leased {
                assert_eq!(&*job.payload, job.id.as_bytes());
                self.ledger.leased(&job.id, job.attempt.get());
            }
            held.extend(leased);
            let mut verdicts = Vec::new();
            let mut sent = Vec::new();
            let mut kept = Vec::new();
            for job in held {
                let verdict = match rng.u32(..20) {
                    0..9 => Verdict::Done,
                    9..11 => Verdict::Dead {
                        reason: ledger::reason(&job.id),
                    },
                    11..14 => Verdict::Retry {
                        after: Duration::from_millis(rng.u64(..2)),
                        reason: "again".to_owned(),
                    },
                    14..16 if !appended.is_cancelled() => Verdict::Release,
                    _ => {
                        kept.push(job);
                        continue;
                    }
                };
                sent.push(self.ledger.settling(&job.id, verdict.clone()));
                verdicts.push((job.lease, verdict));
            }
            held = kept;
            if verdicts.is_empty() {
                continue;
            }
            let (answers, repeated) = self.until_answered(|| store.settle(&verdicts)).await?;
            assert_eq!(answers.len(), verdicts.len());
            for (answer, sent) in answers.into_iter().zip(&sent) {
                match answer {
                    Settled::Held => {}
                    // By the call whose answer was an error.
                    Settled::Lost if repeated => {}
                    answer => panic!("{answer:?} for a lease that holds: {sent:?}"),
                }
                self.ledger.settled(sent);
            }
        }
    }

    /// Calls, until there is an answer or the power is off. Says whether it was called
    /// more than once.
    async fn until_answered<T, F>(&self, call: impl Fn() -> F) -> Result<(T, bool), Off>
    where
        F: Future<Output = Result<T, RedbError>>,
    {
        for repeated in 0..100 {
            match call().await {
                Ok(answer) => return Ok((answer, repeated > 0)),
                Err(_) if self.disk.is_cut() => return Err(Off),
                Err(error) if self.errors == Errors::Pass && self.disk.faults() > 0 => {
                    assert!(!matches!(error, RedbError::Closed { .. }), "{error:?}");
                }
                Err(error) => panic!("nothing failed but the store: {error:?}"),
            }
        }
        panic!("the store does not go on");
    }
}

/// Opens the store and judges all that is in it.
pub(crate) async fn check(disk: &Disk, ledger: &Ledger) {
    let store = open(disk).await;
    let mut live = BTreeSet::new();
    loop {
        let depth = store.depth().await.unwrap();
        assert_eq!(depth.leased, live.len() as u64);
        if depth.pending() == depth.leased {
            break;
        }
        for job in store.lease(1000).await.unwrap() {
            assert_eq!(&*job.payload, job.id.as_bytes());
            ledger.leased(&job.id, job.attempt.get());
            live.insert(job.id.to_string());
        }
    }
    let dead = store.list(None, usize::MAX).await.unwrap();
    ledger.check(&live, &dead);
    store.close().await;
}
