//! A [`Store`] in an SQLite file that several processes share; `schema.sql` says what is in
//! it. Every call is one transaction. A process that is stopped in the middle of one keeps the
//! others waiting, up to `BUSY_TIMEOUT`; anywhere else, its leases lapse.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use microbatch_durable::{
    Appended, DeadJob, DeadLetters, Depth, JobId, Leased, NewJob, Refusal, Settled, Store, Verdict,
};
use rusqlite::{Connection, ErrorCode, Params, Result, Row, TransactionBehavior, ffi, params};
use tokio::sync::{Notify, oneshot};

/// How long the id of a job stays taken once the job is done.
const DEDUP_WINDOW: Duration = Duration::from_secs(120);
/// The most bytes of an encoded job.
const MAX_PAYLOAD: usize = 16 << 20;
/// How long to wait while another process writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause between two looks for a due job, which another process may have
/// appended. The first is 1 ms, and each is twice the last.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Clones are the same store.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    connection: Arc<Mutex<Connection>>,
    lease_time: Duration,
    /// Told of everything that this process changes.
    changed: Arc<Notify>,
}

/// One delivery of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteLease(i64);

impl SqliteStore {
    /// Opens the file, or creates it in a folder that exists; blocks meanwhile. A lease holds
    /// for `lease_time` without being extended.
    pub fn open(path: impl AsRef<std::path::Path>, lease_time: Duration) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let deadline = Instant::now() + BUSY_TIMEOUT;
        // Does not wait by itself for another that makes the same new file.
        while let Err(error) = connection.execute_batch(include_str!("schema.sql")) {
            let busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
            if !busy || Instant::now() > deadline {
                return Err(error);
            }
        }
        // A transaction has the lock before it looks at the clock, however long it waits.
        connection.set_transaction_behavior(TransactionBehavior::Immediate);
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            lease_time,
            changed: Arc::default(),
        })
    }

    /// Does `work` in one transaction, at a time that holds for all of it.
    async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, i64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (connection, changed) = (Arc::clone(&self.connection), Arc::clone(&self.changed));
        let transact = move || {
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let changes = connection.total_changes();
            let transaction = connection.transaction()?;
            let now = micros(UNIX_EPOCH.elapsed().unwrap_or_default());
            let answer = work(&transaction, now)?;
            transaction.commit()?;
            if connection.total_changes() > changes {
                changed.notify_waiters();
            }
            Ok(answer)
        };
        let answer = tokio::task::spawn_blocking(transact).await;
        answer.unwrap_or_else(|_| Err(interrupted()))
    }

    /// Does the same with each of `items`, in one transaction.
    async fn each<I: Clone + Send + 'static, T: Send + 'static>(
        &self,
        items: &[I],
        work: impl Fn(&Connection, i64, &I) -> Result<T> + Send + 'static,
    ) -> Result<Vec<T>> {
        let items = items.to_vec();
        self.transact(move |db, now| items.iter().map(|item| work(db, now, item)).collect())
            .await
    }

    /// Leases what is due, in a task that outlives a dropped call: what it got is released
    /// unless it was received.
    async fn try_lease(&self, max: usize) -> Result<Vec<Leased<SqliteLease>>> {
        let (store, time) = (self.clone(), micros(self.lease_time));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let lease = move |db: &_, now| lease(db, now, now + time, max);
            let leased = store.transact(lease).await;
            let leases = leased.iter().flatten().map(|job| job.lease.clone());
            let releases: Vec<_> = leases.map(|lease| (lease, Verdict::Release)).collect();
            let (receive, received) = oneshot::channel();
            let _ = answer.send((leased, receive));
            if received.await.is_err() {
                // Should this fail, the leases lapse.
                let _ = store.settle(&releases).await;
            }
        });
        let (leased, receive) = answered.await.map_err(|_| interrupted())?;
        // Nothing can drop this call between here and its return.
        let _ = receive.send(());
        leased
    }
}

/// The runtime ends.
fn interrupted() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None)
}

fn run(db: &Connection, statement: &str, params: impl Params) -> Result<usize> {
    db.prepare_cached(statement)?.execute(params)
}

fn append(db: &Connection, now: i64, job: &NewJob) -> Result<Appended> {
    let (size, limit) = (job.payload.len(), MAX_PAYLOAD);
    if let Err(refusal) = job.id.check() {
        return Ok(Appended::Refused(refusal));
    } else if size > limit {
        return Ok(Appended::Refused(Refusal::TooLarge { size, limit }));
    }
    let forget = "DELETE FROM settled_ids WHERE at <= ?1";
    run(db, forget, [now - micros(DEDUP_WINDOW)])?;
    let add = "INSERT INTO jobs (id, codec, payload, appended, due) SELECT ?1, ?2, ?3, ?4, ?4
        WHERE ?1 NOT IN (SELECT id FROM dead_jobs) AND ?1 NOT IN (SELECT id FROM settled_ids)
        ON CONFLICT (id) DO NOTHING";
    match run(db, add, params![&*job.id, job.codec, &*job.payload, now])? {
        0 => Ok(Appended::Duplicate),
        _ => Ok(Appended::New),
    }
}

fn lease(db: &Connection, now: i64, end: i64, max: usize) -> Result<Vec<Leased<SqliteLease>>> {
    let take = "UPDATE jobs SET lease = random(), attempt = attempt + 1, place = due, due = ?2
        WHERE seq IN (SELECT seq FROM jobs WHERE due <= ?1 ORDER BY due, seq LIMIT ?3)
        RETURNING id, attempt, codec, payload, appended, lease, place, seq";
    let mut take = db.prepare_cached(take)?;
    let jobs = take.query_map(params![now, end, max.min(1 << 16)], |row| {
        let job = Leased {
            id: row.get::<_, Arc<str>>(0)?.into(),
            attempt: NonZeroU32::new(row.get(1)?).unwrap_or(NonZeroU32::MIN),
            codec: row.get(2)?,
            payload: row.get::<_, Vec<u8>>(3)?.into(),
            appended: time(row.get(4)?),
            lease: SqliteLease(row.get(5)?),
        };
        Ok(((row.get(6)?, row.get(7)?), job))
    })?;
    // SQLite returns them in any order; this is that of the line.
    let jobs: std::collections::BTreeMap<(i64, i64), _> = jobs.collect::<Result<_>>()?;
    Ok(jobs.into_values().collect())
}

/// Changes nothing unless the number is that of a lease that has not lapsed.
fn settle(db: &Connection, now: i64, lease: i64, verdict: &Verdict) -> Result<usize> {
    let held = "WHERE lease = ?1 AND due > ?2";
    let update = |columns| format!("UPDATE jobs SET {columns} {held}");
    let insert = |table, columns| format!("INSERT INTO {table} SELECT {columns} FROM jobs {held}");
    match verdict {
        Verdict::Done => run(db, &insert("settled_ids", "id, ?2"), [lease, now]),
        Verdict::Retry { after, .. } => {
            let delay = update("lease = NULL, due = ?2 + ?3");
            run(db, &delay, [lease, now, micros(*after)])
        }
        Verdict::Dead { reason } => {
            let bury = insert("dead_jobs", "id, attempt, codec, payload, appended, ?2, ?3");
            run(db, &bury, params![lease, now, reason])
        }
        Verdict::Release => {
            let put_back = update("lease = NULL, due = place, attempt = attempt - 1");
            run(db, &put_back, [lease, now])
        }
        Verdict::Settled => run(db, &update("lease = lease"), [lease, now]),
    }
}

impl Store for SqliteStore {
    type Lease = SqliteLease;
    type Error = rusqlite::Error;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>> {
        self.each(jobs, append).await
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<SqliteLease>>> {
        let mut pause = Duration::from_millis(1);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Listens before it looks, so that no change is missed.
            changed.as_mut().enable();
            let leased = self.try_lease(max).await?;
            if !leased.is_empty() {
                return Ok(leased);
            }
            let _ = tokio::time::timeout(pause, changed).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    async fn settle(&self, verdicts: &[(SqliteLease, Verdict)]) -> Result<Vec<Settled>> {
        let settle = |db: &_, now, (lease, verdict): &(SqliteLease, _)| {
            settle(db, now, lease.0, verdict).map(settled)
        };
        self.each(verdicts, settle).await
    }

    async fn extend(&self, leases: &[SqliteLease]) -> Result<Vec<Settled>> {
        let extend = "UPDATE jobs SET due = ?2 + ?3 WHERE lease = ?1 AND due > ?2";
        let time = micros(self.lease_time);
        let extend = move |db: &_, now, lease: &SqliteLease| {
            run(db, extend, [lease.0, now, time]).map(settled)
        };
        self.each(leases, extend).await
    }

    fn lease_time(&self) -> Option<Duration> {
        Some(self.lease_time)
    }

    async fn depth(&self) -> Result<Depth> {
        let count = "SELECT count(*) FILTER (WHERE due <= ?1),
            count(*) FILTER (WHERE due > ?1 AND lease IS NOT NULL),
            count(*) FILTER (WHERE due > ?1 AND lease IS NULL),
            (SELECT count(*) FROM dead_jobs), min(appended) FROM jobs";
        let depth = |row: &Row<'_>| {
            Ok(Depth {
                ready: row.get(0)?,
                leased: row.get(1)?,
                delayed: row.get(2)?,
                dead: row.get(3)?,
                oldest: row.get::<_, Option<_>>(4)?.map(time),
            })
        };
        self.transact(move |db, now| db.query_one(count, [now], depth))
            .await
    }
}

impl DeadLetters for SqliteStore {
    async fn list(&self, after: Option<&JobId>, limit: usize) -> Result<Vec<DeadJob>> {
        // No id is empty, so all come after that.
        let after = after.map_or_else(String::new, ToString::to_string);
        let list = "SELECT * FROM dead_jobs WHERE id > ?1 ORDER BY id LIMIT ?2";
        let job = |row: &Row<'_>| {
            Ok(DeadJob {
                id: row.get::<_, Arc<str>>(0)?.into(),
                attempt: row.get(1)?,
                codec: row.get(2)?,
                payload: row.get::<_, Vec<u8>>(3)?.into(),
                appended: time(row.get(4)?),
                died: time(row.get(5)?),
                reason: row.get(6)?,
            })
        };
        self.transact(move |db, _| {
            let mut list = db.prepare_cached(list)?;
            list.query_map(params![after, limit.min(1 << 16)], job)?
                .collect()
        })
        .await
    }

    async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>> {
        let revive = "INSERT INTO jobs (id, codec, payload, appended, due)
            SELECT id, codec, payload, appended, ?2 FROM dead_jobs WHERE id = ?1";
        let revive = |db: &_, now, id: &JobId| Ok(run(db, revive, params![&**id, now])? > 0);
        self.each(ids, revive).await
    }

    async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>> {
        let discard = "DELETE FROM dead_jobs WHERE id = ?1";
        self.each(ids, |db, _, id| Ok(run(db, discard, [&**id])? > 0))
            .await
    }
}

fn settled(changed: usize) -> Settled {
    match changed {
        0 => Settled::Lost,
        _ => Settled::Held,
    }
}

/// Capped, so that the sum of two is a number, too.
fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).map_or(i64::MAX / 4, |micros| micros.min(i64::MAX / 4))
}

fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs())
}
