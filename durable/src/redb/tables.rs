//! What is in the file, and how a transaction changes it.
//!
//! # Invariants
//!
//! - A live job is in `jobs`, in `ids`, and in exactly one of `ready`, `delayed` and
//!   `leased`. A dead one is in `dead` and `ids`. A settled one is in `settled` and `ids`
//!   until the deduplication window has passed.
//! - The line is ordered by place. A new job's place is its number; a job that is tried
//!   again gets a new place when it becomes due, one that is released its old one.
//! - Only delays and the deduplication window depend on the clock.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redb::{
    Error, ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    TableHandle, WriteTransaction,
};
use bytes::Bytes;

use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::outcome::Verdict;

/// The version of what is described here.
pub(super) const VERSION: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("microbatch/meta");
/// Number of a job: the job.
const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("microbatch/jobs");
/// Place in line: number, attempts so far.
const READY: TableDefinition<'_, u64, (u64, u32)> = TableDefinition::new("microbatch/ready");
/// Milliseconds since the epoch at which it is due, number: attempts so far.
const DELAYED: TableDefinition<'_, (u64, u64), u32> = TableDefinition::new("microbatch/delayed");
/// Number: place in line, attempt, number of the lease.
const LEASED: TableDefinition<'_, u64, (u64, u32, u64)> = TableDefinition::new("microbatch/leased");
const IDS: TableDefinition<'_, &str, ()> = TableDefinition::new("microbatch/ids");
/// Milliseconds since the epoch at which it was settled, number: id.
const SETTLED: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("microbatch/settled");
const DEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("microbatch/dead");

const VERSION_KEY: &str = "version";

/// Ids to forget per commit, besides as many again as were settled in it.
const FORGET_AT_LEAST: usize = 64;

/// What a file is, before anything in it is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Empty,
    /// A store of this version.
    Store(u64),
    /// Tables of somebody else.
    Foreign,
}

pub(super) fn kind_of(txn: &ReadTransaction) -> Result<Kind, Error> {
    let mut names = txn.list_tables()?.map(|table| table.name().to_owned());
    let Some(first) = names.next() else {
        return Ok(Kind::Empty);
    };
    if first != META.name() && !names.any(|name| name == META.name()) {
        return Ok(Kind::Foreign);
    }
    let version = txn
        .open_table(META)?
        .get(VERSION_KEY)?
        .map(|version| version.value());
    Ok(version.map_or(Kind::Foreign, Kind::Store))
}

/// The tables, open in one write transaction.
pub(super) struct Tables<'txn> {
    jobs: Table<'txn, u64, &'static [u8]>,
    ready: Table<'txn, u64, (u64, u32)>,
    delayed: Table<'txn, (u64, u64), u32>,
    leased: Table<'txn, u64, (u64, u32, u64)>,
    ids: Table<'txn, &'static str, ()>,
    settled: Table<'txn, (u64, u64), &'static str>,
    dead: Table<'txn, &'static str, &'static [u8]>,
    /// The next place in line, which is also the number of a new job.
    next: u64,
    /// The time of this transaction.
    now: u64,
    forget: usize,
    /// Whether what is due has its place.
    promoted: bool,
    changed: bool,
}

impl<'txn> Tables<'txn> {
    /// Opens them; creates those that are missing. `next` is as an earlier transaction
    /// left it, or `None` for it to be found.
    pub(super) fn open(txn: &'txn WriteTransaction, next: Option<u64>) -> Result<Self, Error> {
        let mut tables = Self {
            jobs: txn.open_table(JOBS)?,
            ready: txn.open_table(READY)?,
            delayed: txn.open_table(DELAYED)?,
            leased: txn.open_table(LEASED)?,
            ids: txn.open_table(IDS)?,
            settled: txn.open_table(SETTLED)?,
            dead: txn.open_table(DEAD)?,
            next: 0,
            now: to_millis(SystemTime::now()),
            forget: FORGET_AT_LEAST,
            promoted: false,
            changed: false,
        };
        tables.next = match next {
            Some(next) => next,
            None => tables.find_next()?,
        };
        Ok(tables)
    }

    /// Marks the file as a store of this version.
    pub(super) fn initialise(txn: &WriteTransaction) -> Result<(), Error> {
        txn.open_table(META)?.insert(VERSION_KEY, VERSION)?;
        Tables::open(txn, Some(0))?;
        Ok(())
    }

    /// The next place in line.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether there is anything to commit.
    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Finds a number that no job and no place has.
    fn find_next(&self) -> Result<u64, Error> {
        let mut next = 0;
        if let Some((number, _)) = self.jobs.last()? {
            next = next.max(number.value() + 1);
        }
        if let Some((place, _)) = self.ready.last()? {
            next = next.max(place.value() + 1);
        }
        for row in self.leased.iter()? {
            next = next.max(row?.1.value().0 + 1);
        }
        Ok(next)
    }

    /// Takes the end of the line, behind what has become due before.
    fn take_next(&mut self) -> Result<u64, Error> {
        self.promote()?;
        Ok(self.take_number())
    }

    fn take_number(&mut self) -> u64 {
        let next = self.next;
        self.next += 1;
        next
    }

    /// Ends leases without a settlement. `is_held` says of the number of a lease whether
    /// somebody still has it; what nobody ever had does not count as an attempt.
    pub(super) fn end_leases(
        &mut self,
        counted: bool,
        is_held: impl Fn(u64) -> bool,
    ) -> Result<(), Error> {
        let mut ended = Vec::new();
        for row in self.leased.iter()? {
            let (number, lease) = row?;
            let (place, attempt, lease) = lease.value();
            if !is_held(lease) {
                ended.push((number.value(), place, attempt));
            }
        }
        for (number, place, attempt) in ended {
            self.leased.remove(number)?;
            let attempts = if counted {
                attempt
            } else {
                attempt.saturating_sub(1)
            };
            self.ready.insert(place, (number, attempts))?;
            self.changed = true;
        }
        Ok(())
    }

    /// Returns the leases that the file has.
    pub(super) fn leases(&self) -> Result<Vec<u64>, Error> {
        self.leased
            .iter()?
            .map(|row| Ok(row?.1.value().2))
            .collect()
    }

    /// Appends a job unless its id is taken.
    pub(super) fn append(&mut self, job: &NewJob) -> Result<bool, Error> {
        if self.ids.get(&*job.id)?.is_some() {
            return Ok(false);
        }
        self.ids.insert(&*job.id, ())?;
        let record = JobRecord::encode(self.now, job);
        self.queue_new(&record)?;
        Ok(true)
    }

    fn queue_new(&mut self, record: &[u8]) -> Result<(), Error> {
        let number = self.take_next()?;
        self.jobs.insert(number, record)?;
        self.ready.insert(number, (number, 0))?;
        self.changed = true;
        Ok(())
    }

    /// Gives the end of the line to what has become due. Within a transaction the time
    /// stands still, so once is enough.
    fn promote(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.promoted, true) {
            return Ok(());
        }
        loop {
            let Some((key, attempts)) = self.delayed.first()?.map(|(k, a)| (k.value(), a.value()))
            else {
                return Ok(());
            };
            if key.0 > self.now {
                return Ok(());
            }
            self.delayed.remove(key)?;
            let place = self.take_number();
            self.ready.insert(place, (key.1, attempts))?;
            self.changed = true;
        }
    }

    /// Leases the first in line, each under a number of its own.
    pub(super) fn lease(
        &mut self,
        max: usize,
        mut lease_number: impl FnMut() -> u64,
    ) -> Result<Vec<Leased<(u64, u64)>>, Error> {
        self.promote()?;
        let mut leased = Vec::new();
        while leased.len() < max {
            let first = self
                .ready
                .pop_first()?
                .map(|(place, row)| (place.value(), row.value()));
            let Some((place, (number, attempts))) = first else {
                break;
            };
            let record = self.jobs.get(number)?;
            let record = record.ok_or_else(|| corrupted("a job in line is missing"))?;
            let JobRecord {
                appended,
                id,
                codec,
                payload,
            } = JobRecord::decode(record.value())?;
            let attempt = NonZeroU32::MIN.saturating_add(attempts);
            let lease = lease_number();
            leased.push(Leased {
                id: id.into(),
                attempt,
                codec: codec.into(),
                payload: Bytes::copy_from_slice(payload),
                appended: from_millis(appended),
                lease: (lease, number),
            });
            self.leased.insert(number, (place, attempt.get(), lease))?;
            self.changed = true;
        }
        Ok(leased)
    }

    /// When the next delayed job is due.
    pub(super) fn next_due(&self) -> Result<Option<SystemTime>, Error> {
        let first = self
            .delayed
            .first()?
            .map(|(key, _)| from_millis(key.value().0));
        Ok(first)
    }

    /// Does what a verdict says with the job of a lease that holds.
    pub(super) fn settle(&mut self, number: u64, verdict: &Verdict) -> Result<(), Error> {
        let row = self.leased.remove(number)?.map(|row| row.value());
        let (place, attempt, _) = row.ok_or_else(|| corrupted("a leased job is missing"))?;
        self.changed = true;
        match verdict {
            Verdict::Done => {
                let record = self.jobs.remove(number)?;
                let record = record.ok_or_else(|| corrupted("a leased job is missing"))?;
                let id = JobRecord::decode(record.value())?.id;
                // The number of a job of an earlier opening may be the same.
                let mut key = (self.now, number);
                while self.settled.get(key)?.is_some() {
                    key.1 += 1;
                }
                self.settled.insert(key, id)?;
                self.forget += 2;
            }
            Verdict::Retry { after, .. } => {
                let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                match self.now.checked_add(after) {
                    Some(due) if after > 0 => {
                        // Rounded up: it is not due before its time.
                        self.delayed
                            .insert((due.saturating_add(1), number), attempt)?;
                    }
                    Some(_) => {
                        let place = self.take_next()?;
                        self.ready.insert(place, (number, attempt))?;
                    }
                    None => {
                        self.delayed.insert((u64::MAX, number), attempt)?;
                    }
                }
            }
            Verdict::Dead { reason } => {
                let record = self.jobs.remove(number)?;
                let record = record.ok_or_else(|| corrupted("a leased job is missing"))?;
                let dead = DeadRecord::encode(attempt, self.now, reason, record.value());
                let id = JobRecord::decode(record.value())?.id;
                self.dead.insert(id, &*dead)?;
            }
            Verdict::Release => {
                self.ready
                    .insert(place, (number, attempt.saturating_sub(1)))?;
            }
            Verdict::Settled => {}
        }
        Ok(())
    }

    /// Forgets ids whose time as duplicates is over.
    pub(super) fn forget(&mut self, dedup_window: Duration) -> Result<(), Error> {
        let window = u64::try_from(dedup_window.as_millis()).unwrap_or(u64::MAX);
        for _ in 0..self.forget {
            let Some((oldest, _)) = self.settled.first()? else {
                break;
            };
            if oldest.value().0.saturating_add(window) > self.now {
                break;
            }
            drop(oldest);
            if let Some((_, id)) = self.settled.pop_first()? {
                self.ids.remove(id.value())?;
            }
            self.changed = true;
        }
        Ok(())
    }

    pub(super) fn revive(&mut self, id: &str) -> Result<bool, Error> {
        let Some(dead) = self.dead.remove(id)? else {
            return Ok(false);
        };
        let record = DeadRecord::decode(dead.value())?.job.to_vec();
        drop(dead);
        self.queue_new(&record)?;
        Ok(true)
    }

    pub(super) fn discard(&mut self, id: &str) -> Result<bool, Error> {
        let found = self.dead.remove(id)?.is_some();
        if found {
            self.ids.remove(id)?;
            self.changed = true;
        }
        Ok(found)
    }

    pub(super) fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadJob>, Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let rows = self.dead.range::<&str>((from, Unbounded))?;
        rows.take(limit)
            .map(|row| DeadRecord::decode(row?.1.value())?.to_job())
            .collect()
    }

    pub(super) fn depth(&self) -> Result<Depth, Error> {
        let oldest = match self.jobs.first()? {
            Some((_, record)) => Some(from_millis(JobRecord::decode(record.value())?.appended)),
            None => None,
        };
        // By `count` it would not end: after an error, the next row is an error again.
        let mut rows = self.delayed.range(..=(self.now, u64::MAX))?;
        let due = rows.try_fold(0, |due, row| row.map(|_| due + 1))?;
        Ok(Depth {
            ready: self.ready.len()? + due,
            leased: self.leased.len()?,
            delayed: self.delayed.len()? - due,
            dead: self.dead.len()?,
            oldest,
        })
    }

    /// Whether no job waits, so that the file may shrink.
    pub(super) fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.jobs.is_empty()?)
    }
}

/// A job as it is written: a version, then each field with its length before it.
struct JobRecord<'a> {
    appended: u64,
    id: &'a str,
    codec: &'a str,
    payload: &'a [u8],
}

const RECORD_VERSION: u8 = 1;

impl<'a> JobRecord<'a> {
    fn encode(appended: u64, job: &NewJob) -> Vec<u8> {
        let mut record = vec![RECORD_VERSION];
        record.extend(appended.to_be_bytes());
        for field in [job.id.as_bytes(), job.codec.as_bytes()] {
            put(&mut record, field);
        }
        record.extend_from_slice(&job.payload);
        record
    }

    fn decode(record: &'a [u8]) -> Result<Self, Error> {
        let mut fields = Fields(record);
        fields.version()?;
        Ok(Self {
            appended: fields.number()?,
            id: fields.text()?,
            codec: fields.text()?,
            payload: fields.0,
        })
    }
}

/// A dead letter as it is written: what killed it, and the job as it was.
struct DeadRecord<'a> {
    attempt: u64,
    died: u64,
    reason: &'a str,
    job: &'a [u8],
}

impl<'a> DeadRecord<'a> {
    fn encode(attempt: u32, died: u64, reason: &str, job: &[u8]) -> Vec<u8> {
        let mut record = vec![RECORD_VERSION];
        record.extend(u64::from(attempt).to_be_bytes());
        record.extend(died.to_be_bytes());
        put(&mut record, reason.as_bytes());
        record.extend_from_slice(job);
        record
    }

    fn decode(record: &'a [u8]) -> Result<Self, Error> {
        let mut fields = Fields(record);
        fields.version()?;
        Ok(Self {
            attempt: fields.number()?,
            died: fields.number()?,
            reason: fields.text()?,
            job: fields.0,
        })
    }

    fn to_job(&self) -> Result<DeadJob, Error> {
        let job = JobRecord::decode(self.job)?;
        Ok(DeadJob {
            id: JobId::from(job.id),
            attempt: u32::try_from(self.attempt).unwrap_or(u32::MAX),
            codec: Arc::from(job.codec),
            payload: Bytes::copy_from_slice(job.payload),
            appended: from_millis(job.appended),
            died: from_millis(self.died),
            reason: self.reason.to_owned(),
        })
    }
}

fn put(record: &mut Vec<u8>, field: &[u8]) {
    record.extend((field.len() as u64).to_be_bytes());
    record.extend_from_slice(field);
}

/// Reads fields from the front of a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (field, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| corrupted("a record is too short"))?;
        self.0 = rest;
        Ok(field)
    }

    fn version(&mut self) -> Result<(), Error> {
        match self.take(1)? {
            [RECORD_VERSION] => Ok(()),
            version => Err(corrupted(format!("a record is of version {version:?}"))),
        }
    }

    fn number(&mut self) -> Result<u64, Error> {
        let bytes = self
            .take(8)?
            .try_into()
            .map_err(|_| corrupted("a number is too short"))?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn text(&mut self) -> Result<&'a str, Error> {
        let len = self.number()?;
        let len = usize::try_from(len).map_err(|_| corrupted("a field is too long"))?;
        str::from_utf8(self.take(len)?).map_err(|_| corrupted("a text is not UTF-8"))
    }
}

fn corrupted(reason: impl Into<String>) -> Error {
    Error::Corrupted(reason.into())
}

fn to_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn from_millis(millis: u64) -> SystemTime {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(millis));
    // A number that no clock can show is written by a damaged file only.
    time.unwrap_or(UNIX_EPOCH)
}
