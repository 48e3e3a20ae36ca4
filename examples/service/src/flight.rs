//! The record: a flight, as callers send it and as the store keeps it.

use serde::{Deserialize, Serialize};

/// No text of a flight is longer, in bytes.
pub const LONGEST_TEXT: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flight {
    pub carrier: String,
    pub flight: i32,
    pub tailnum: Option<String>,
    pub origin: String,
    pub dest: String,
    pub time_hour: String,
    pub dep_delay: Option<i32>,
    pub air_time: Option<i32>,
    pub distance: i32,
}

impl Flight {
    /// The columns of the table after `id`, in the order in which they are bound.
    pub const COLUMNS: &str =
        "carrier, flight, tailnum, origin, dest, time_hour, dep_delay, air_time, distance";

    /// Says what is wrong with it, if anything is. It is checked before it joins a batch,
    /// so that no caller can fail the batch of others: Postgres refuses a zero byte, and
    /// with it the whole statement.
    pub fn check(&self) -> Result<(), String> {
        let texts = [
            ("carrier", Some(&self.carrier)),
            ("tailnum", self.tailnum.as_ref()),
            ("origin", Some(&self.origin)),
            ("dest", Some(&self.dest)),
            ("time_hour", Some(&self.time_hour)),
        ];
        for (name, text) in texts {
            let Some(text) = text else { continue };
            if text.is_empty() {
                return Err(format!("`{name}` is empty"));
            }
            if text.len() > LONGEST_TEXT {
                return Err(format!("`{name}` is longer than {LONGEST_TEXT} bytes"));
            }
            if text.contains('\0') {
                return Err(format!("`{name}` contains a zero byte"));
            }
        }
        if self.distance < 0 {
            return Err("`distance` is negative".to_owned());
        }
        Ok(())
    }

    /// The 20 000 flights that come with the repository.
    ///
    /// # Errors
    ///
    /// Names the first line that is not a flight.
    pub fn samples() -> anyhow::Result<Vec<Self>> {
        let file = include_str!("../../data/flights.csv");
        let lines = file.lines().enumerate().skip(1);
        lines
            .map(|(index, line)| {
                Self::parse(line)
                    .ok_or_else(|| anyhow::anyhow!("line {} of the flights is bad", index + 1))
            })
            .collect()
    }

    /// The file has no quotes, and `NA` for a value that nobody knows.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let [
            ..,
            dep_delay,
            _,
            _,
            _,
            carrier,
            flight,
            tailnum,
            origin,
            dest,
            air_time,
            distance,
            _,
            _,
            time_hour,
        ] = fields.as_slice()
        else {
            return None;
        };
        let known = |field: &str| (field != "NA").then(|| field.to_owned());
        Some(Self {
            carrier: (*carrier).to_owned(),
            flight: flight.parse().ok()?,
            tailnum: known(tailnum),
            origin: (*origin).to_owned(),
            dest: (*dest).to_owned(),
            time_hour: (*time_hour).to_owned(),
            dep_delay: dep_delay.parse().ok(),
            air_time: air_time.parse().ok(),
            distance: distance.parse().ok()?,
        })
    }
}
