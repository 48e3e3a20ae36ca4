//! The store and its calls.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use deadpool_postgres::Pool;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Transaction};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::builder::{Options, PostgresStoreBuilder, micros};
use super::error::PostgresError;
use super::leases::{Mark, PostgresLease, Unreceived};
use super::link::{Borrowed, Link, Listening};
use super::notices::listen;
use super::said::{Appending, STATEMENT_BYTES, Settling, answers, append_on, dead, leased};
use super::schema::migrate;
use super::statements::{Statement, Statements};
use crate::asked::{self, first_of_each};
use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::outcome::{Appended, Settled, Verdict};
use crate::store::{DeadLetters, Store};

/// The first pause between two looks where nothing is heard, and where what is due is locked
/// by somebody else.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The time between two removals of ids that are free.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

/// How much longer than a removal takes it is, at least, until the next.
const PURGES_APART: u32 = 50;

/// Beyond it there is more to remove.
const PURGE_LIMIT: i64 = 10_000;

/// A [`Store`] in a PostgreSQL database, for many machines. Clones are the same store.
///
/// Appended jobs survive the process and, as far as the server's disk keeps what it has synced,
/// the server; with a synchronous standby, the disk. Leases end with their time, on the server's
/// clock, and are fenced: who has lost one changes nothing. Attempts are counted exactly, and a
/// release does not count. Effects and their settlement can be one transaction
/// ([`settle_in`](Self::settle_in)), as can what a caller writes and the job that follows from
/// it ([`append_in`](Self::append_in)).
///
/// It hears of due jobs by `LISTEN`, and asks at least once in a
/// [`poll_interval`](PostgresStoreBuilder::poll_interval). What was long on its way to its
/// commit, or was given back by another process, may be found some seconds later where no
/// notice tells of it. Nothing is prepared, so PgBouncer in transaction mode may stand between,
/// and then no notice comes. Leave the isolation level at its default, `READ COMMITTED`: at
/// others, calls over the same jobs fail and have to be repeated. [`depth`](Store::depth)
/// counts rows, so it takes time in proportion to the backlog.
///
/// # Errors
///
/// Every call ends within the [`call_timeout`](PostgresStoreBuilder::call_timeout);
/// [`PostgresError`] says why. Jobs that a call leased whose answer was lost are due when that
/// lease has ended, their attempt counted.
///
/// # Examples
///
/// ```no_run
/// use microbatch_durable::{CancellationToken, Drain, Durable, PostgresStore};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::connect("postgres://app@localhost/app").await?;
/// store.migrate().await?; // as often as you like
///
/// let mails = Durable::<String>::builder(store.clone())
///     .build_running(CancellationToken::new())?;
/// mails.submit("welcome-7", "to: seven@example.org".to_owned()).await?;
///
/// // Here, or in any number of processes on other machines.
/// let drain = Drain::builder(store, |mails: Vec<String>| async move {
///     Ok::<_, std::io::Error>(vec![(); mails.len()])
/// })
/// .build()?;
/// drain.run(CancellationToken::new()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) link: Link,
    pub(super) queue: String,
    pub(super) statements: Statements,
    pub(super) options: Options,
    owns_pool: bool,
    mark: Mark,
    /// Told of everything that may make a job due.
    changed: Notify,
    /// How to hear of others' changes, until somebody waits for them.
    unheard: Mutex<Option<Listening>>,
    /// Whether they are heard.
    listening: AtomicBool,
    next_purge: Mutex<Instant>,
    /// Looks that may have leased something, and what gives it back.
    pub(super) looks: TaskTracker,
    closed: CancellationToken,
    _closed_on_drop: DropGuard,
}

impl Inner {
    /// Notes whether others' changes are heard. What was said before is not.
    pub(super) fn set_listening(&self, listening: bool) {
        if self.listening.swap(listening, Ordering::Relaxed) != listening {
            self.notice(None);
        }
    }

    pub(super) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    /// Something is due, from a time on or from nobody knows when.
    pub(super) fn notice(&self, due: Option<SystemTime>) {
        self.mark.lower(due.unwrap_or(SystemTime::UNIX_EPOCH));
        self.changed.notify_waiters();
    }

    async fn borrow(&self) -> Result<Borrowed<'_>, PostgresError> {
        match self.closed.is_cancelled() {
            true => Err(PostgresError::Closed),
            false => self.link.borrow().await,
        }
    }

    /// Settles, also while the store is being closed.
    pub(super) async fn settle(
        &self,
        verdicts: &[(PostgresLease, Verdict)],
    ) -> Result<Vec<Settled>, PostgresError> {
        let settling = Settling::new(verdicts);
        let connection = self.link.borrow().await?;
        let rows = connection
            .ask(|client| settling.query(&self.statements.settle, self, client))
            .await?;
        drop(connection);
        for (_, verdict) in verdicts {
            match verdict {
                // In its old place.
                Verdict::Release => self.mark.lower(SystemTime::UNIX_EPOCH),
                Verdict::Retry { .. } => {}
                _ => continue,
            }
            self.changed.notify_waiters();
        }
        Ok(settling.answers(&rows))
    }

    fn next_purge(&self) -> MutexGuard<'_, Instant> {
        self.next_purge
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn query(
        &self,
        statement: &Statement,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, PostgresError> {
        let connection = self.borrow().await?;
        connection
            .ask(|client| statement.query(client, values))
            .await
    }
}

impl PostgresStore {
    /// Connects by a URL or a string of `key=value`, without TLS, with the defaults of the
    /// [builder](Self::builder).
    ///
    /// # Errors
    ///
    /// As [`PostgresStoreBuilder::connect_tls`].
    pub async fn connect(url: &str) -> Result<Self, PostgresError> {
        Self::builder().connect(url).await
    }

    /// Starts to build one with other options.
    pub fn builder() -> PostgresStoreBuilder {
        PostgresStoreBuilder::new()
    }

    /// Makes the tables, or upgrades those of an earlier version. Changes nothing where they are
    /// up to date. Several processes may do it at once.
    ///
    /// # Errors
    ///
    /// [`Forbidden`](PostgresError::Forbidden) if the role may not make them, which needs
    /// `CREATE` on the database, or on the schema if it exists;
    /// [`Version`](PostgresError::Version) if a later version has made them.
    pub async fn migrate(&self) -> Result<(), PostgresError> {
        match self.inner.closed.is_cancelled() {
            true => Err(PostgresError::Closed),
            false => migrate(&self.inner.link).await,
        }
    }

    /// Settles leases in a transaction of yours, so that their effects and their settlement
    /// happen both or not at all. Keep it short: make it at the end of the processing, write the
    /// effects, settle, commit. Return [`Verdict::Settled`] for the jobs to the drain at once
    /// then, which takes leases that are gone for lost. In a savepoint it holds for what is in
    /// the savepoint, so write the effects there too.
    ///
    /// # Errors
    ///
    /// [`LeasesLost`](PostgresError::LeasesLost) if not every lease holds. After it, and after
    /// any other error, the transaction cannot be committed: the server rolls it back, also
    /// if this call is dropped or its time is over. (After a time that is over without an answer
    /// the server may still find that all leases hold, and commit if you go on.)
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::{CancellationToken, Delivery, Drain, PostgresLease, PostgresStore, Verdict};
    ///
    /// # async fn run(store: PostgresStore, pool: deadpool_postgres::Pool) -> Result<(), Box<dyn std::error::Error>> {
    /// let settling = store.clone();
    /// let drain = Drain::deliveries(store, move |batch: Vec<Delivery<i64, PostgresLease>>| {
    ///     let (store, pool) = (settling.clone(), pool.clone());
    ///     async move {
    ///         let amounts: Vec<_> = batch.iter().map(|delivery| delivery.job).collect();
    ///         let done: Vec<_> =
    ///             batch.into_iter().map(|delivery| (delivery.lease, Verdict::Done)).collect();
    ///         let mut client = pool.get().await?;
    ///         let transaction = client.transaction().await?;
    ///         let sql = "INSERT INTO payments (amount) SELECT unnest($1::bigint[])";
    ///         transaction.execute(sql, &[&amounts]).await?;
    ///         store.settle_in(&transaction, &done).await?;
    ///         transaction.commit().await?; // the payments and that they are done, or neither
    ///         Ok::<_, Box<dyn std::error::Error + Send + Sync>>(vec![Verdict::Settled; done.len()])
    ///     }
    /// })
    /// .build()?;
    /// drain.run(CancellationToken::new()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn settle_in(
        &self,
        transaction: &Transaction<'_>,
        verdicts: &[(PostgresLease, Verdict)],
    ) -> Result<(), PostgresError> {
        let link = &self.inner.link;
        let settling = Settling::new(verdicts);
        let settle = &self.inner.statements.settle_all;
        let rows = settling.query(settle, &self.inner, transaction.client());
        let lost = |place: usize| {
            verdicts
                .get(*settling.at.get(place)?)
                .map(|said| &said.0.id)
        };
        match link.in_time(rows).await {
            Ok(rows) => {
                let answers = settling.answers(&rows);
                let answers = answers.iter().zip(verdicts);
                // Only those that were told twice: the server ends the transaction for others.
                let twice = answers.filter(|(answer, _)| **answer == Settled::Lost);
                let jobs: Vec<_> = twice.map(|(_, (lease, _))| lease.id.clone()).collect();
                if jobs.is_empty() {
                    return Ok(());
                }
                let end = format!("SELECT {}.leases_lost('{{}}')", link.schema);
                let _ = link.in_time(transaction.batch_execute(&end)).await;
                Err(PostgresError::LeasesLost { jobs })
            }
            Err(error) => match error.lost_places() {
                Some(places) => {
                    let jobs = places.into_iter().filter_map(lost).cloned();
                    Err(PostgresError::LeasesLost {
                        jobs: jobs.collect(),
                    })
                }
                None => Err(error),
            },
        }
    }

    /// Appends jobs in a transaction of yours, so that they are there if and only if it is
    /// committed. Look at the answers: what is refused is not appended. Keep it short: who
    /// appends the same ids waits for it.
    ///
    /// # Errors
    ///
    /// After an error the transaction cannot be committed.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use microbatch_durable::{Json, NewJob, PostgresStore};
    ///
    /// # async fn run(store: &PostgresStore, client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let transaction = client.transaction().await?;
    /// transaction.execute("INSERT INTO users (name) VALUES ('seven')", &[]).await?;
    /// let welcome = NewJob::encode("welcome-seven", &"to: seven".to_owned(), &Json)?;
    /// store.append_in(&transaction, &[welcome]).await?;
    /// transaction.commit().await?; // the user and the mail, or neither
    /// # Ok(())
    /// # }
    /// ```
    pub async fn append_in(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[NewJob],
    ) -> Result<Vec<Appended>, PostgresError> {
        let mut appending = Appending::new(jobs, self.inner.options.max_payload);
        for chunk in std::mem::take(&mut appending.chunks) {
            let rows = append_on(&self.inner, transaction.client(), jobs, &chunk);
            let rows = self.inner.link.in_time(rows).await?;
            appending.answer(jobs, &chunk, &rows);
        }
        Ok(appending.answers)
    }

    pub(super) fn start(
        options: Options,
        pool: Pool,
        owns_pool: bool,
        listening: Option<Listening>,
    ) -> Self {
        let schema = format!("\"{}\"", options.schema.replace('"', "\"\""));
        let closed = CancellationToken::new();
        let inner = Arc::new(Inner {
            statements: Statements::new(&schema, options.notify),
            link: Link {
                pool,
                schema,
                call_timeout: options.call_timeout,
            },
            queue: options.queue.clone(),
            options,
            owns_pool,
            mark: Mark::default(),
            changed: Notify::new(),
            unheard: Mutex::new(listening),
            listening: AtomicBool::new(false),
            next_purge: Mutex::new(Instant::now()),
            looks: TaskTracker::new(),
            _closed_on_drop: closed.clone().drop_guard(),
            closed,
        });
        Self { inner }
    }

    /// Asks the server for an answer.
    pub(super) async fn check(&self) -> Result<(), PostgresError> {
        let connection = self.inner.borrow().await?;
        connection.ask(|client| client.batch_execute("")).await
    }

    /// Looks for jobs that are due. If there is none, says when there will be one.
    async fn look(
        inner: Arc<Inner>,
        max: i64,
    ) -> Result<(Unreceived, Option<Duration>), PostgresError> {
        let lease_time = micros(inner.options.lease_time);
        let connection = inner.borrow().await?;
        // After the wait for a connection, which says nothing of the line.
        let look = inner.mark.look(inner.is_listening());
        let bytes = STATEMENT_BYTES as i64;
        let values: [&(dyn ToSql + Sync); 5] =
            [&inner.queue, &look.from, &max, &lease_time, &bytes];
        let lease = &inner.statements.lease;
        let rows = connection
            .ask(|client| lease.query(client, &values))
            .await?;
        let mut due = None;
        if rows.is_empty() {
            let next = &inner.statements.next_due;
            let next = connection
                .ask(|client| next.query(client, &values[..2]))
                .await?;
            due = next.first().map(|row| row.get::<_, i64>(0));
        }
        drop(connection);
        let first = rows.first().map(|row| row.get("place"));
        inner.mark.looked(&look, first);
        let jobs = rows.iter().map(leased).collect();
        let due = due.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
        Ok((Unreceived::new(jobs, inner), due))
    }

    /// Begins to listen, once.
    fn listen(&self) {
        let unheard = self.inner.unheard.lock();
        let listening = unheard.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listening) = listening {
            let inner = Arc::downgrade(&self.inner);
            tokio::spawn(listen(listening, inner, self.inner.closed.clone()));
        }
    }

    /// Now and then, removes ids that are free again.
    fn purge_if_due(&self) {
        let now = Instant::now();
        if *self.inner.next_purge() > now {
            return;
        }
        // Not all processes at once.
        *self.inner.next_purge() = now + PURGE_INTERVAL.mul_f64(0.5 + fastrand::f64());
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let purge = &inner.statements.purge;
            match inner.query(purge, &[&inner.queue]).await {
                Ok(rows) => {
                    let gone = rows.first().map_or(0, |row| row.get::<_, i64>(0));
                    let pause = now.elapsed() * PURGES_APART;
                    let mut next = inner.next_purge();
                    *next = match gone < PURGE_LIMIT {
                        true => (*next).max(Instant::now() + pause),
                        false => Instant::now(),
                    };
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "ids that are free were not removed; again later");
                }
            }
        });
    }
}

impl Store for PostgresStore {
    type Lease = PostgresLease;
    type Error = PostgresError;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, PostgresError> {
        let mut appending = Appending::new(jobs, self.inner.options.max_payload);
        let chunks = std::mem::take(&mut appending.chunks);
        if chunks.is_empty() {
            return Ok(appending.answers);
        }
        let connection = self.inner.borrow().await?;
        let is_one = chunks.len() == 1;
        if !is_one {
            // If an error ends this here, the connection ends, and the transaction with it.
            connection
                .ask(|client| client.batch_execute(super::schema::BEGIN))
                .await?;
        }
        let mut due = None;
        for chunk in chunks {
            let rows = connection
                .ask(|client| append_on(&self.inner, client, jobs, &chunk))
                .await?;
            let appended = appending.answer(jobs, &chunk, &rows);
            due = due.or(appended);
        }
        if !is_one {
            connection
                .ask(|client| client.batch_execute("COMMIT"))
                .await?;
        }
        drop(connection);
        if due.is_some() {
            self.inner.notice(due);
        }
        Ok(appending.answers)
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<PostgresLease>>, PostgresError> {
        let max = i64::try_from(max.max(1)).unwrap_or(i64::MAX);
        let longest = self.inner.options.poll_interval;
        let mut pause = FIRST_PAUSE;
        self.listen();
        loop {
            let mut changed = pin!(self.inner.changed.notified());
            // Listens before it asks, so that no change is missed.
            changed.as_mut().enable();
            self.purge_if_due();
            // In a task of its own: what a dropped call brings is released.
            let look = Self::look(Arc::clone(&self.inner), max);
            let look = self.inner.looks.spawn(look).await;
            let (found, due) = look.unwrap_or(Err(PostgresError::Closed))?;
            let jobs = found.receive();
            if !jobs.is_empty() {
                return Ok(jobs);
            }
            let unheard = match self.inner.is_listening() {
                true => longest,
                false => pause.min(longest),
            };
            let sleep = match due {
                // It is locked by somebody.
                Some(Duration::ZERO) => pause.min(longest),
                Some(due) => due.min(unheard),
                None => unheard.mul_f64(0.5 + fastrand::f64() / 2.0),
            };
            pause = (pause * 2).min(longest);
            tokio::select! {
                () = changed => pause = FIRST_PAUSE,
                () = tokio::time::sleep(sleep) => {}
                () = self.inner.closed.cancelled() => return Err(PostgresError::Closed),
            }
        }
    }

    async fn settle(
        &self,
        verdicts: &[(PostgresLease, Verdict)],
    ) -> Result<Vec<Settled>, PostgresError> {
        if verdicts.is_empty() {
            return Ok(Vec::new());
        }
        match self.inner.closed.is_cancelled() {
            true => Err(PostgresError::Closed),
            false => self.inner.settle(verdicts).await,
        }
    }

    async fn extend(&self, leases: &[PostgresLease]) -> Result<Vec<Settled>, PostgresError> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let mut at: Vec<_> = (0..leases.len()).collect();
        at.sort_by_key(|at| leases[*at].seq);
        let jobs: Vec<_> = at.iter().map(|at| leases[*at].seq).collect();
        let numbers: Vec<_> = at.iter().map(|at| leases[*at].number).collect();
        let lease_time = micros(self.inner.options.lease_time);
        let values: [&(dyn ToSql + Sync); 4] = [&self.inner.queue, &jobs, &numbers, &lease_time];
        let rows = self
            .inner
            .query(&self.inner.statements.extend, &values)
            .await?;
        Ok(answers(leases.len(), &rows, |place| at.get(place)))
    }

    fn lease_time(&self) -> Option<Duration> {
        Some(self.inner.options.lease_time)
    }

    async fn depth(&self) -> Result<Depth, PostgresError> {
        let depth = &self.inner.statements.depth;
        let rows = self.inner.query(depth, &[&self.inner.queue]).await?;
        let Some(row) = rows.first() else {
            return Ok(Depth::default());
        };
        let count = |name: &str| u64::try_from(row.get::<_, i64>(name)).unwrap_or_default();
        Ok(Depth {
            ready: count("ready"),
            leased: count("leased"),
            delayed: count("delayed"),
            dead: count("dead"),
            oldest: row.get("oldest"),
        })
    }

    async fn close(&self) {
        self.inner.closed.cancel();
        // What was leased by calls that were dropped is given back, in the time of two calls.
        self.inner.looks.close();
        let longest = self.inner.link.call_timeout.saturating_mul(2);
        let _ = timeout(longest, self.inner.looks.wait()).await;
        if self.inner.owns_pool {
            self.inner.link.pool.close();
        }
    }
}

impl DeadLetters for PostgresStore {
    async fn list(
        &self,
        after: Option<&JobId>,
        limit: usize,
    ) -> Result<Vec<DeadJob>, PostgresError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let after = after.map_or("", |after| after);
        let list = &self.inner.statements.list;
        let rows = (self.inner)
            .query(list, &[&self.inner.queue, &after, &limit])
            .await?;
        Ok(rows.iter().map(dead).collect())
    }

    async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>, PostgresError> {
        let found = self
            .among_the_dead(&self.inner.statements.revive, ids)
            .await?;
        if found.contains(&true) {
            self.inner.notice(None);
        }
        Ok(found)
    }

    async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>, PostgresError> {
        self.among_the_dead(&self.inner.statements.discard, ids)
            .await
    }
}

impl PostgresStore {
    /// Does something to dead jobs, and says which there were. An id counts once.
    async fn among_the_dead(
        &self,
        statement: &Statement,
        ids: &[JobId],
    ) -> Result<Vec<bool>, PostgresError> {
        // What cannot be an id cannot be asked for.
        let asked = first_of_each(ids);
        if asked.is_empty() {
            return Ok(vec![false; ids.len()]);
        }
        let asked: Vec<&str> = asked.iter().map(|id| &**id).collect();
        let rows = self
            .inner
            .query(statement, &[&self.inner.queue, &asked])
            .await?;
        let found = rows.iter().map(|row| row.get::<_, &str>("id").into());
        Ok(asked::answers(ids, &found.collect()))
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("schema", &self.inner.options.schema)
            .field("queue", &self.inner.queue)
            .finish_non_exhaustive()
    }
}
