//! What the callers of one pass saw: which row id they got for which line, and
//! how long that took. Kept in a file, because there is one for every row.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use microbatch::JobError;

use crate::pass::Method;
use crate::problems::Problems;
use crate::progress::Progress;
use crate::source::Source;

/// What one caller saw.
pub(crate) struct Receipt {
    pub(crate) line: i64,
    /// The row id, or why there is none.
    pub(crate) id: Result<i64, JobError>,
    pub(crate) latency: Duration,
}

pub(crate) struct Ledger {
    source: Source,
    ids: File,
    progress: Progress,
    /// In microseconds.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) stored: u64,
    pub(crate) refused: Problems,
}

/// The file has a slot of so many bytes for every line. One that nobody wrote
/// to reads as zero, which is no row's id.
const SLOT: i64 = size_of::<i64>() as i64;

impl Ledger {
    pub(crate) fn new(
        source: &Source,
        path: &Path,
        method: Method,
        rows: u64,
    ) -> anyhow::Result<Self> {
        let name = || format!("cannot write to {}", path.display());
        let ids = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path);
        let minute = 60_000_000;
        Ok(Self {
            source: source.clone(),
            ids: ids.with_context(name)?,
            progress: Progress::new(method.name(), rows)?,
            latencies: Histogram::new_with_bounds(1, minute, 3)?,
            stored: 0,
            refused: Problems::default(),
        })
    }

    pub(crate) fn enter(&mut self, mut receipts: Vec<Receipt>) -> io::Result<()> {
        receipts.sort_unstable_by_key(|receipt| receipt.line);
        let mut ids = Vec::new();
        let mut next = 0;
        for Receipt { line, id, latency } in receipts {
            let id = match id {
                Ok(id) => id,
                Err(error) => {
                    self.refuse(line, &error);
                    continue;
                }
            };
            // Lines that follow one another are written together, which is
            // most of them.
            if line != next {
                self.ids.write_all(&mem::take(&mut ids))?;
                self.ids
                    .seek(SeekFrom::Start((line * SLOT).unsigned_abs()))?;
            }
            ids.extend(id.to_ne_bytes());
            next = line + 1;
            let micros = latency.as_micros().try_into().unwrap_or(u64::MAX);
            self.latencies.saturating_record(micros);
            self.stored += 1;
            self.progress.advance();
        }
        self.ids.write_all(&ids)
    }

    fn refuse(&mut self, line: i64, error: &JobError) {
        let line = self.source.at(line);
        self.refused.add(match error {
            // What the database says; of which batch does not matter here.
            JobError::Failed(cause) => format!("{line}: {cause}"),
            other => format!("{line}: {other}"),
        });
    }

    pub(crate) fn close(&self) {
        self.progress.finish();
    }

    /// Returns the row ids, to be asked for in the order of lines.
    pub(crate) fn ids(&self) -> io::Result<Ids> {
        let mut file = self.ids.try_clone()?;
        file.rewind()?;
        Ok(Ids {
            file: BufReader::new(file),
            line: 0,
        })
    }
}

pub(crate) struct Ids {
    file: BufReader<File>,
    /// Whose slot comes next.
    line: i64,
}

impl Ids {
    pub(crate) fn of(&mut self, line: i64) -> io::Result<Option<i64>> {
        self.file.seek_relative((line - self.line) * SLOT)?;
        self.line = line + 1;
        let mut id = [0; size_of::<i64>()];
        match self.file.read_exact(&mut id) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(|()| Some(i64::from_ne_bytes(id)).filter(|id| *id != 0)),
        }
    }
}
