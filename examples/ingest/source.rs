//! The file of records, read as a stream. It is read several times, by the
//! passes and by the check, and never held in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use csv::{ByteRecord, Position, Reader, ReaderBuilder};
use microbatch::CancellationToken;

use crate::problems::Problems;
use crate::record::{Header, Page};

/// No line of records is that long, and no other file should fill the memory.
const LONGEST_LINE: u64 = 1 << 20;

/// Records on a page.
pub(crate) const PAGE: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct Source {
    path: PathBuf,
    limit: u64,
}

/// What there is to load.
pub(crate) struct Survey {
    pub(crate) rows: u64,
    pub(crate) bad: Problems,
}

impl Source {
    pub(crate) fn new(path: &Path, limit: Option<u64>) -> Self {
        Self {
            path: path.to_owned(),
            limit: limit.unwrap_or(u64::MAX),
        }
    }

    /// Reads the file once to count its good lines and to find the bad ones,
    /// so that both passes may skip them without a word.
    pub(crate) fn survey(&self, stop: &CancellationToken) -> anyhow::Result<Survey> {
        let mut bad = Problems::default();
        let mut rows = 0;
        let mut records = self.records()?;
        let mut page = Page::new(1);
        while !stop.is_cancelled() {
            page.clear();
            match records.next_line(&mut page)? {
                None => break,
                Some(Ok(())) => rows += 1,
                Some(Err(why)) => bad.add(format!("{}: {why}", self.at(records.lines.line))),
            }
        }
        Ok(Survey { rows, bad })
    }

    /// Returns the good records, up to the limit, by the page.
    pub(crate) fn records(&self) -> anyhow::Result<Records> {
        Records::open(&self.path, self.limit)
    }

    /// Names a line of the file.
    pub(crate) fn at(&self, line: i64) -> String {
        at(&self.path, line)
    }
}

fn at(path: &Path, line: i64) -> String {
    format!("{}:{line}", path.display())
}

/// The good records of the file.
pub(crate) struct Records {
    lines: Lines,
    header: Header,
    left: u64,
}

impl Records {
    fn open(path: &Path, limit: u64) -> anyhow::Result<Self> {
        let mut lines = Lines::open(path)?;
        let header = match lines.advance()? {
            Some(Ok(())) => Header::parse(&lines.fields),
            Some(Err(why)) => Err(why),
            None => Err("the file is empty; expected a header".into()),
        };
        match header {
            Ok(header) => Ok(Self {
                lines,
                header,
                left: limit,
            }),
            Err(why) => bail!("{}: {why}", at(path, lines.line)),
        }
    }

    /// Copies the record of the next line to the page, or says what is wrong
    /// with that line.
    fn next_line(&mut self, page: &mut Page) -> anyhow::Result<Option<Result<(), String>>> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(line) = self.lines.advance()? else {
            return Ok(None);
        };
        let lines = &self.lines;
        let record = line.and_then(|()| self.header.copy(lines.line, &lines.fields, page));
        self.left -= u64::from(record.is_ok());
        Ok(Some(record))
    }
}

impl Iterator for Records {
    type Item = anyhow::Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut page = Page::new(PAGE);
        while page.len() < PAGE {
            match self.next_line(&mut page) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    self.left = 0;
                    return Some(Err(error));
                }
            }
        }
        (page.len() > 0).then_some(Ok(page))
    }
}

/// Reads line by line and gives every line to the CSV parser on its own. So a
/// line has the number that an editor shows, whatever ends it, and a quote
/// that is never closed spoils one line and not the rest of the file.
struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    csv: Reader<Cursor<Vec<u8>>>,
    /// The number of the current line, from one, and its fields.
    line: i64,
    fields: ByteRecord,
}

impl Lines {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let name = || format!("cannot read {}", path.display());
        let metadata = path.metadata().with_context(name)?;
        // A pipe could be read only once.
        ensure!(metadata.is_file(), "{}: it is not a regular file", name());
        let csv = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(Cursor::default());
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::new(File::open(path).with_context(name)?),
            csv,
            line: 0,
            fields: ByteRecord::new(),
        })
    }

    /// Moves to the next line that is not blank, if there is one; says what is
    /// wrong with it if it has no fields to speak of.
    fn advance(&mut self) -> anyhow::Result<Option<Result<(), String>>> {
        loop {
            self.line += 1;
            let name = || format!("cannot read {}", at(&self.path, self.line));
            let text = self.csv.get_mut().get_mut();
            text.clear();
            let mut start = (&mut self.file).take(LONGEST_LINE);
            if start.read_until(b'\n', text).with_context(name)? == 0 {
                return Ok(None);
            }
            if start.limit() == 0 && !text.ends_with(b"\n") {
                self.file.skip_until(b'\n').with_context(name)?;
                return Ok(Some(Err("the line is too long".into())));
            }
            self.csv.seek_raw(SeekFrom::Start(0), Position::new())?;
            if self.csv.read_byte_record(&mut self.fields)? {
                return Ok(Some(Ok(())));
            }
        }
    }
}
