//! One record: which columns it has, and how it is read from a line.

use std::str;

use csv::ByteRecord;
use rusqlite::types::Value;

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

#[derive(Debug, PartialEq)]
pub(crate) struct Record {
    /// Where in the file it comes from; stored with it, so that no two rows
    /// are alike and each can be traced.
    pub(crate) line: i64,
    /// One per column, in their order.
    pub(crate) values: Vec<Value>,
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

    pub(crate) fn record(&self, line: i64, fields: &ByteRecord) -> Result<Record, String> {
        if fields.len() != self.width {
            let found = fields.len();
            return Err(format!("expected {} fields, found {found}", self.width));
        }
        let mut values = Vec::with_capacity(COLUMNS.len());
        for (column, position) in COLUMNS.iter().zip(self.positions) {
            values.push(column.parse(&fields[position])?);
        }
        Ok(Record { line, values })
    }
}

impl Column {
    fn parse(&self, field: &[u8]) -> Result<Value, String> {
        let name = self.name;
        let text = str::from_utf8(field).map_err(|_| format!("`{name}` is not UTF-8"))?;
        match self.kind {
            _ if text == "NA" && self.optional => Ok(Value::Null),
            _ if text.is_empty() => Err(format!("`{name}` is empty")),
            // A line is read on its own, so its end is within a field only
            // where a quote was left open.
            _ if text.contains('\n') => Err(format!("`{name}` has a quote that is not closed")),
            Kind::Integer => match text.parse() {
                Ok(number) => Ok(Value::Integer(number)),
                Err(_) => Err(format!("`{name}` is not a whole number: {text:?}")),
            },
            Kind::Text => Ok(Value::Text(text.to_owned())),
        }
    }
}
