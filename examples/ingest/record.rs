//! One record: which columns it has, and how it is read from a line.

use std::ops::Range;
use std::str;
use std::sync::Arc;

use csv::ByteRecord;
use rusqlite::types::ValueRef;

pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Whether `NA` may stand for a value that nobody knows.
    pub(crate) optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Integer,
    Text,
}

pub(crate) const COLUMNS: [Column; 19] = [
    required("year", Kind::Integer),
    required("month", Kind::Integer),
    required("day", Kind::Integer),
    optional("dep_time", Kind::Integer),
    required("sched_dep_time", Kind::Integer),
    optional("dep_delay", Kind::Integer),
    optional("arr_time", Kind::Integer),
    required("sched_arr_time", Kind::Integer),
    optional("arr_delay", Kind::Integer),
    required("carrier", Kind::Text),
    required("flight", Kind::Integer),
    optional("tailnum", Kind::Text),
    required("origin", Kind::Text),
    required("dest", Kind::Text),
    optional("air_time", Kind::Integer),
    required("distance", Kind::Integer),
    required("hour", Kind::Integer),
    required("minute", Kind::Integer),
    required("time_hour", Kind::Text),
];

const fn required(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        optional: false,
    }
}

const fn optional(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        optional: true,
    }
}

/// A record on its page.
pub(crate) struct Record {
    page: Arc<Page>,
    index: usize,
}

impl Record {
    /// Where in the file it comes from; stored with it, so that no two rows
    /// are alike and each can be traced.
    pub(crate) fn line(&self) -> i64 {
        self.page.lines[self.index]
    }

    /// One per column, in their order.
    pub(crate) fn values(&self) -> impl Iterator<Item = ValueRef<'_>> {
        let start = self.index * COLUMNS.len();
        let fields = &self.page.fields[start..start + COLUMNS.len()];
        fields.iter().map(|field| match field {
            Field::Null => ValueRef::Null,
            Field::Integer(number) => ValueRef::Integer(*number),
            Field::Text(place) => ValueRef::Text(&self.page.text.as_bytes()[place.clone()]),
        })
    }
}

/// Some records that follow one another in the file. They share three
/// allocations, so that the database thread does not free several a record,
/// which another thread has made, while the callers wait for their ids.
pub(crate) struct Page {
    lines: Vec<i64>,
    fields: Vec<Field>,
    text: String,
}

enum Field {
    Null,
    Integer(i64),
    /// Where it is in the text of the page.
    Text(Range<usize>),
}

impl Page {
    pub(crate) fn new(records: usize) -> Self {
        Self {
            lines: Vec::with_capacity(records),
            fields: Vec::with_capacity(records * COLUMNS.len()),
            text: String::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn clear(&mut self) {
        self.lines.clear();
        self.cut(0, 0);
    }

    fn cut(&mut self, fields: usize, text: usize) {
        self.fields.truncate(fields);
        self.text.truncate(text);
    }
}

/// The records of a page that are still to come.
pub(crate) struct Rest {
    page: Arc<Page>,
    next: usize,
}

impl IntoIterator for Page {
    type Item = Record;
    type IntoIter = Rest;

    fn into_iter(self) -> Rest {
        Rest {
            page: Arc::new(self),
            next: 0,
        }
    }
}

impl Rest {
    pub(crate) fn is_empty(&self) -> bool {
        self.next == self.page.len()
    }
}

impl Iterator for Rest {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.is_empty() {
            return None;
        }
        let index = self.next;
        self.next += 1;
        let page = Arc::clone(&self.page);
        Some(Record { page, index })
    }
}

/// Which field of a line belongs to which column.
pub(crate) struct Header {
    width: usize,
    positions: [usize; COLUMNS.len()],
}

impl Header {
    pub(crate) fn parse(fields: &ByteRecord) -> Result<Self, String> {
        let mut positions = [0; COLUMNS.len()];
        for (position, column) in positions.iter_mut().zip(&COLUMNS) {
            *position = fields
                .iter()
                .position(|field| field == column.name.as_bytes())
                .ok_or_else(|| format!("the header has no column `{}`", column.name))?;
        }
        Ok(Self {
            width: fields.len(),
            positions,
        })
    }

    /// Writes the record to the page, or nothing if something is wrong with it.
    pub(crate) fn copy(
        &self,
        line: i64,
        fields: &ByteRecord,
        page: &mut Page,
    ) -> Result<(), String> {
        if fields.len() != self.width {
            let found = fields.len();
            return Err(format!("expected {} fields, found {found}", self.width));
        }
        let (start, text) = (page.fields.len(), page.text.len());
        for (column, position) in COLUMNS.iter().zip(self.positions) {
            match column.parse(&fields[position], &mut page.text) {
                Ok(field) => page.fields.push(field),
                Err(why) => {
                    page.cut(start, text);
                    return Err(why);
                }
            }
        }
        page.lines.push(line);
        Ok(())
    }
}

impl Column {
    fn parse(&self, field: &[u8], texts: &mut String) -> Result<Field, String> {
        let name = self.name;
        let text = str::from_utf8(field).map_err(|_| format!("`{name}` is not UTF-8"))?;
        match self.kind {
            _ if text == "NA" && self.optional => Ok(Field::Null),
            _ if text.is_empty() => Err(format!("`{name}` is empty")),
            // A line is read on its own, so its end is within a field only
            // where a quote was left open.
            _ if text.contains('\n') => Err(format!("`{name}` has a quote that is not closed")),
            Kind::Integer => match text.parse() {
                Ok(number) => Ok(Field::Integer(number)),
                Err(_) => Err(format!("`{name}` is not a whole number: {text:?}")),
            },
            Kind::Text => {
                let start = texts.len();
                texts.push_str(text);
                Ok(Field::Text(start..texts.len()))
            }
        }
    }
}
