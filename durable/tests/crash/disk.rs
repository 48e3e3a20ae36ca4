//! A disk in memory that loses power, and one that fails now and then.
//!
//! It has two images: what a reader sees, and what has been synced. A power cut keeps any
//! part of what was written since the last sync: each sector of 512 bytes by itself, and
//! each change of the length.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use redb::StorageBackend;

const SECTOR: usize = 512;

/// What redb writes last when it makes a database, and at the front of it.
const MAGIC_LEN: usize = 9;

/// Clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    seen: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
    /// Writes, syncs and changes of the length so far.
    operations: u64,
    /// The operation that does not happen any more, nor anything after it.
    cut_at: Option<u64>,
    is_cut: bool,
    fault: Option<Fault>,
    faults: u64,
    ignores_sync: bool,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Sync,
    Length,
}

/// Operations that fail: some of a kind, or of any, one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) kind: Option<Kind>,
    /// How many of the kind succeed before.
    pub(crate) after: u64,
    pub(crate) times: u64,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::with_image(Vec::new(), false)
    }

    /// A disk that says it has synced, and has not.
    pub(crate) fn lying() -> Self {
        Self::with_image(Vec::new(), true)
    }

    fn with_image(image: Vec<u8>, ignores_sync: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            seen: image.clone(),
            synced: image,
            unsynced: Vec::new(),
            operations: 0,
            cut_at: None,
            is_cut: false,
            fault: None,
            faults: 0,
            ignores_sync,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power instead of the `n`-th operation from now.
    pub(crate) fn cut_after(&self, operations: u64) {
        let mut state = self.lock();
        state.cut_at = Some(state.operations + operations);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.lock().is_cut
    }

    /// Whether the power failed while redb made a database of an empty file. redb refuses
    /// that; of a file, `RedbStore` begins it anew.
    pub(crate) fn is_unborn(&self) -> bool {
        let state = self.lock();
        state.seen.len() >= MAGIC_LEN && state.seen[..MAGIC_LEN] == [0; MAGIC_LEN]
    }

    pub(crate) fn emptied(&self) -> Self {
        Self::with_image(Vec::new(), self.lock().ignores_sync)
    }

    /// Lets operations fail.
    pub(crate) fn fail(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// Lets nothing fail any more.
    pub(crate) fn mend(&self) {
        self.lock().fault = None;
    }

    /// How many operations have failed by [`fail`](Self::fail).
    pub(crate) fn faults(&self) -> u64 {
        self.lock().faults
    }

    /// Cuts the power now, if that has not happened, and returns the disk as it comes up
    /// again.
    pub(crate) fn restart(&self, rng: &mut Rng) -> Self {
        let mut state = self.lock();
        state.is_cut = true;
        let mut image = std::mem::take(&mut state.synced);
        // Nothing, all, or any part of the rest.
        let kept = [0.0, 1.0, 0.5, rng.f64()][rng.usize(..4)];
        let lengths_kept = [0.0, 1.0, 0.5][rng.usize(..3)];
        for change in state.unsynced.drain(..) {
            match change {
                Change::Length(len) if rng.f64() < lengths_kept => image.resize(len, 0),
                Change::Length(_) => {}
                Change::Write { offset, data } => {
                    keep_sectors(&mut image, offset, &data, || rng.f64() < kept)
                }
            }
        }
        Self::with_image(image, state.ignores_sync)
    }
}

/// Writes as to a file, which grows.
fn write_at(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(data);
}

/// Writes those sectors that are kept, as far as there is room for them.
fn keep_sectors(image: &mut [u8], offset: usize, data: &[u8], mut is_kept: impl FnMut() -> bool) {
    let mut at = 0;
    while at < data.len() {
        let end = data.len().min(at + SECTOR - (offset + at) % SECTOR);
        let from = offset + at;
        let room = image.len().saturating_sub(from).min(end - at);
        if is_kept() && room > 0 {
            image[from..from + room].copy_from_slice(&data[at..at + room]);
        }
        at = end;
    }
}

impl State {
    /// Counts an operation. Says whether it happens.
    fn begin(&mut self, kind: Kind) -> io::Result<()> {
        if kind != Kind::Read {
            self.operations += 1;
            self.is_cut |= self.cut_at.is_some_and(|cut_at| self.operations >= cut_at);
        }
        if self.is_cut {
            return Err(io::Error::other("the power is off"));
        }
        let Some(fault) = &mut self.fault else {
            return Ok(());
        };
        if fault.kind.is_some_and(|only| only != kind) {
            return Ok(());
        }
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        fault.times -= 1;
        if fault.times == 0 {
            self.fault = None;
        }
        self.faults += 1;
        Err(io::Error::other("a fault of the disk"))
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        write_at(&mut self.seen, offset, data);
        let data = data.to_vec();
        self.unsynced.push(Change::Write { offset, data });
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.begin(Kind::Read)?;
        let offset = offset as usize;
        let found = state.seen.get(offset..offset + out.len());
        let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.begin(Kind::Length)?;
        state.seen.resize(len as usize, 0);
        state.unsynced.push(Change::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.begin(Kind::Sync)?;
        if state.ignores_sync {
            return Ok(());
        }
        let State {
            synced, unsynced, ..
        } = &mut *state;
        for change in unsynced.drain(..) {
            match change {
                Change::Length(len) => synced.resize(len, 0),
                Change::Write { offset, data } => write_at(synced, offset, &data),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let offset = offset as usize;
        let begun = state.begin(Kind::Write);
        if begun.is_err() && !state.is_cut {
            // What fails may have happened in part.
            state.write(offset, &data[..data.len() / 2]);
        }
        begun?;
        state.write(offset, data);
        Ok(())
    }
}

#[test]
fn a_cut_keeps_what_was_synced_and_any_sectors_of_the_rest() {
    let disk = Disk::new();
    disk.set_len(4 * SECTOR as u64).unwrap();
    disk.write(0, &[1; 4 * SECTOR]).unwrap();
    disk.sync_data().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut rng = Rng::with_seed(0);
    for _ in 0..2000 {
        let disk = Disk::with_image(disk.lock().synced.clone(), false);
        disk.write(SECTOR as u64 / 2, &[2; 2 * SECTOR]).unwrap();
        disk.set_len(6 * SECTOR as u64).unwrap();
        let mut out = [0];
        disk.read(SECTOR as u64, &mut out).unwrap();
        assert_eq!(out, [2], "a reader sees what was written");
        let again = disk.restart(&mut rng);
        assert!(disk.sync_data().is_err(), "the power is off");
        let state = again.lock();
        let at = |offset| state.seen[offset];
        assert_eq!((at(0), at(3 * SECTOR)), (1, 1));
        let half = SECTOR / 2;
        assert_eq!(at(half), at(SECTOR - 1), "a sector is whole");
        seen.insert((
            state.seen.len() / SECTOR,
            at(half),
            at(SECTOR),
            at(2 * SECTOR),
        ));
    }
    assert_eq!(seen.len(), 2 * 8, "each combination: {seen:?}");
}
