//! What owns the file, on a thread of its own: one transaction and one fsync for all
//! commands of a batch.
//!
//! # Invariants
//!
//! - `held` is changed by this thread alone, after a commit. While it says that a lease holds, the job is
//!   in `leased` under the number of that lease, unless a commit failed: then the file is
//!   opened anew, and what it has is compared with `held` before anything else.
//! - An answer leaves the thread after the commit that makes it true.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redb::{Database, ReadableDatabase, WriteTransaction};
use tokio::sync::watch;

use super::error::RedbError;
use super::face::{RedbLease, Shared};
use super::holder::HolderNote;
use super::leases::Leases;
use super::tables::{Kind, Tables, VERSION, kind_of};
use super::unmade;
use crate::job::{DeadJob, Depth, JobId, Leased, NewJob};
use crate::memory::next_lease;
use crate::outcome::{Appended, Settled, Verdict};

/// A file of this size is worth shrinking once no job waits.
const COMPACT_FROM: u64 = 4 << 20;

/// What travels to the thread.
pub(super) enum Command {
    Append(Vec<NewJob>),
    Lease(usize),
    Settle(Vec<(RedbLease, Verdict)>),
    /// Releases what nobody received.
    Release,
    Depth,
    List(Option<JobId>, usize),
    Revive(Vec<JobId>),
    Discard(Vec<JobId>),
}

/// What comes back, each for the command of its name.
pub(super) enum Answer {
    Append(Vec<Appended>),
    Lease(Leases),
    Settle(Vec<Settled>),
    Release,
    Depth(Depth),
    List(Vec<DeadJob>),
    Found(Vec<bool>),
}

/// The leases that hold: number of the lease, number of its job.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<u64, u64>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of the job if the lease holds.
    pub(super) fn job_of(&self, lease: &RedbLease) -> Option<u64> {
        self.lock().get(&lease.0).copied()
    }
}

/// The file, and what was found out of it.
pub(super) struct Engine {
    /// `None` after an error: redb wants the file opened anew.
    file: Option<OpenFile>,
    shared: Arc<Shared>,
    /// Dropped last; whoever closes the store waits for that.
    _open: watch::Sender<()>,
}

struct OpenFile {
    database: Database,
    next: u64,
    _note: Option<HolderNote>,
}

impl Engine {
    /// Opens the file, as the first one of this store or again after a panic.
    pub(super) fn open(shared: Arc<Shared>, open: watch::Sender<()>) -> Result<Self, RedbError> {
        let file = Some(OpenFile::open(&shared)?);
        Ok(Self {
            file,
            shared,
            _open: open,
        })
    }

    /// Executes all commands in one transaction.
    pub(super) fn run(&mut self, commands: Vec<Command>) -> Result<Vec<Answer>, RedbError> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => OpenFile::open(&self.shared)?,
        };
        // Whatever fails, the file is dropped with it, and opened anew for the next batch.
        let answers = file
            .transact(&self.shared, commands)
            .map_err(|error| RedbError::from_redb(&self.shared.path, error))?;
        self.file = Some(file);
        Ok(answers)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(file) = &mut self.file {
            // Leases that reached nobody end uncounted, also if nothing comes after them.
            if let Err(error) = file.transact(&self.shared, Vec::new()) {
                let path = self.shared.path.display();
                tracing::warn!(%path, %error, "could not release what nobody received");
            }
            file.compact_if_empty(&self.shared);
        }
    }
}

impl OpenFile {
    fn open(shared: &Shared) -> Result<Self, RedbError> {
        let path = &*shared.path;
        let mut builder = ::redb::Builder::new();
        builder.set_cache_size(shared.options.cache_size);
        // Not after each error: while the disk is full, that is each call.
        builder.set_check_integrity_on_open(shared.options.check_integrity && !shared.opened());
        let on_repair = Arc::clone(&shared.options.on_repair);
        let shown = path.to_owned();
        builder.set_repair_callback(move |repair| {
            let progress = repair.progress();
            tracing::info!(path = %shown.display(), progress, "checking the file");
            on_repair(progress);
        });
        let from_redb = |error: ::redb::Error| RedbError::from_redb(path, error);
        let open = || (shared.open)(&builder).map_err(|error| from_redb(error.into()));
        let database = match open() {
            Err(RedbError::Foreign { .. })
                if shared.options.is_file && unmade::empty(path).unwrap_or(false) =>
            {
                tracing::info!(path = %path.display(), "it was left half made, and is begun anew");
                open()?
            }
            opened => opened?,
        };
        // Also of an older file: whoever made it may have been killed before this.
        if shared.options.is_file && !shared.opened() {
            sync_folder(path).map_err(|error| RedbError::io(path, error))?;
        }
        let note = shared.options.is_file.then(|| HolderNote::write(path));
        let mut file = Self {
            database,
            next: 0,
            _note: note,
        };
        file.check_kind(path)?;
        file.settle_leases(shared).map_err(from_redb)?;
        file.compact_if_empty(shared);
        Ok(file)
    }

    /// Makes a new file a store; refuses what is none of this version.
    fn check_kind(&self, path: &Path) -> Result<(), RedbError> {
        let from_redb = |error| RedbError::from_redb(path, error);
        let read = || kind_of(&self.database.begin_read()?);
        match read().map_err(from_redb)? {
            Kind::Store(VERSION) => Ok(()),
            Kind::Store(found) => Err(RedbError::Version {
                path: path.to_owned(),
                found,
                expected: VERSION,
            }),
            Kind::Foreign => Err(RedbError::Foreign {
                path: path.to_owned(),
                reason: "it has tables of another program".to_owned(),
            }),
            Kind::Empty => {
                let initialise = || {
                    let txn = self.database.begin_write()?;
                    Tables::initialise(&txn)?;
                    Ok(txn.commit()?)
                };
                initialise().map_err(from_redb)
            }
        }
    }

    /// Brings the leases in the file and those in memory together. Those of an earlier
    /// process end, their attempts counted. Of this one's, a commit whose answer was lost
    /// may have added some that nobody has, or ended some that are held.
    fn settle_leases(&mut self, shared: &Shared) -> Result<(), ::redb::Error> {
        let mut held = shared.held.lock();
        let txn = self.database.begin_write()?;
        let mut tables = Tables::open(&txn, None)?;
        let first = !shared.opened();
        tables.end_leases(first, |lease| held.contains_key(&lease))?;
        let in_file: HashSet<_> = tables.leases()?.into_iter().collect();
        held.retain(|lease, _| in_file.contains(lease));
        self.next = tables.next();
        let changed = tables.is_changed();
        drop(tables);
        match changed {
            true => txn.commit()?,
            false => txn.abort()?,
        }
        shared.set_opened();
        Ok(())
    }

    /// Gives room back to the disk; redb's files do not shrink by themselves.
    fn compact_if_empty(&mut self, shared: &Shared) {
        let compact = || -> Result<bool, ::redb::Error> {
            let large = shared.options.is_file
                && std::fs::metadata(&*shared.path).is_ok_and(|file| file.len() >= COMPACT_FROM);
            if !large {
                return Ok(false);
            }
            let txn = self.database.begin_write()?;
            let empty = Tables::open(&txn, Some(self.next))?.is_empty()?;
            txn.abort()?;
            Ok(empty && self.database.compact()?)
        };
        let mut compact = compact;
        if let Err(error) = compact() {
            tracing::warn!(path = %shared.path.display(), %error, "could not shrink the file");
        }
    }

    fn transact(
        &mut self,
        shared: &Shared,
        commands: Vec<Command>,
    ) -> Result<Vec<Answer>, ::redb::Error> {
        let unreceived = shared.unreceived.take();
        let outcome = self.execute(shared, &unreceived, commands);
        if outcome.is_err() {
            shared.unreceived.put_back(unreceived);
        }
        outcome
    }

    fn execute(
        &mut self,
        shared: &Shared,
        unreceived: &[RedbLease],
        commands: Vec<Command>,
    ) -> Result<Vec<Answer>, ::redb::Error> {
        let txn = self.database.begin_write()?;
        let done = Batch::execute_all(&txn, self.next, shared, unreceived, commands)?;
        if !done.changed {
            txn.abort()?;
            return Ok(done.answers);
        }
        txn.commit()?;
        self.next = done.next;
        let mut held = shared.held.lock();
        for lease in done.ended {
            held.remove(&lease);
        }
        held.extend(done.begun);
        drop(held);
        shared.changed.notify_waiters();
        Ok(done.answers)
    }
}

/// The commands of one transaction.
struct Batch<'a, 'txn> {
    tables: Tables<'txn>,
    shared: &'a Shared,
    /// Leases that held before this transaction, and that it ends.
    ended: HashSet<u64>,
    /// Leases that it begins, with the numbers of their jobs.
    begun: Vec<(u64, u64)>,
}

/// What becomes true with the commit.
struct Done {
    answers: Vec<Answer>,
    changed: bool,
    next: u64,
    ended: HashSet<u64>,
    begun: Vec<(u64, u64)>,
}

impl<'a, 'txn> Batch<'a, 'txn> {
    fn execute_all(
        txn: &'txn WriteTransaction,
        next: u64,
        shared: &'a Shared,
        unreceived: &[RedbLease],
        commands: Vec<Command>,
    ) -> Result<Done, ::redb::Error> {
        let tables = Tables::open(txn, Some(next))?;
        let mut batch = Self {
            tables,
            shared,
            ended: HashSet::new(),
            begun: Vec::new(),
        };
        for lease in unreceived {
            batch.settle(lease, &Verdict::Release)?;
        }
        let mut answers = Vec::with_capacity(commands.len());
        for command in commands {
            answers.push(batch.execute(command)?);
        }
        batch.tables.forget(shared.options.dedup_window)?;
        Ok(Done {
            answers,
            changed: batch.tables.is_changed(),
            next: batch.tables.next(),
            ended: batch.ended,
            begun: batch.begun,
        })
    }

    fn execute(&mut self, command: Command) -> Result<Answer, ::redb::Error> {
        Ok(match command {
            Command::Append(jobs) => {
                let max_payload = self.shared.options.max_payload;
                let answers = jobs.iter().map(|job| {
                    Ok(match job.check(max_payload) {
                        Err(refusal) => Appended::Refused(refusal),
                        Ok(()) if self.tables.append(job)? => Appended::New,
                        Ok(()) => Appended::Duplicate,
                    })
                });
                Answer::Append(answers.collect::<Result<_, ::redb::Error>>()?)
            }
            Command::Lease(max) => {
                let leased = self.tables.lease(max, next_lease)?;
                let due = match leased.is_empty() {
                    true => self.tables.next_due()?,
                    false => None,
                };
                let begun = &mut self.begun;
                let jobs = leased.into_iter().map(|job| {
                    begun.push(job.lease);
                    let Leased {
                        id,
                        attempt,
                        codec,
                        payload,
                        appended,
                        lease,
                    } = job;
                    Leased {
                        id,
                        attempt,
                        codec,
                        payload,
                        appended,
                        lease: RedbLease(lease.0),
                    }
                });
                let jobs = jobs.collect();
                Answer::Lease(Leases::new(jobs, due, &self.shared.unreceived))
            }
            Command::Settle(verdicts) => {
                let answers = verdicts
                    .iter()
                    .map(|(lease, verdict)| self.settle(lease, verdict));
                Answer::Settle(answers.collect::<Result<_, _>>()?)
            }
            Command::Release => Answer::Release,
            Command::Depth => Answer::Depth(self.tables.depth()?),
            Command::List(after, limit) => Answer::List(self.tables.list(after.as_deref(), limit)?),
            Command::Revive(ids) => {
                let answers = ids.iter().map(|id| self.tables.revive(id));
                Answer::Found(answers.collect::<Result<_, _>>()?)
            }
            Command::Discard(ids) => {
                let answers = ids.iter().map(|id| self.tables.discard(id));
                Answer::Found(answers.collect::<Result<_, _>>()?)
            }
        })
    }

    fn settle(&mut self, lease: &RedbLease, verdict: &Verdict) -> Result<Settled, ::redb::Error> {
        let number = match self.shared.held.job_of(lease) {
            Some(number) if !self.ended.contains(&lease.0) => number,
            _ => return Ok(Settled::Lost),
        };
        if *verdict != Verdict::Settled {
            self.tables.settle(number, verdict)?;
            self.ended.insert(lease.0);
        }
        Ok(Settled::Held)
    }
}

/// Makes the name of a new file as durable as what is in it.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}
