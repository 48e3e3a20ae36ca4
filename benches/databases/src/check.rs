//! Compares what is in the database with the records and with what the callers
//! were told.

use anyhow::ensure;

use crate::flight::{Flight, Flights};

pub struct Check<'a> {
    flights: &'a Flights,
    /// By the flight's number: the row id its caller got, or its own number
    /// where rows were stored without telling their ids.
    receipts: &'a [i64],
    seen: Vec<bool>,
}

impl<'a> Check<'a> {
    pub fn new(flights: &'a Flights, receipts: &'a [i64]) -> Self {
        Self {
            flights,
            receipts,
            seen: vec![false; receipts.len()],
        }
    }

    pub fn row(&mut self, id: i64, with_ids: bool, row: &Flight) -> anyhow::Result<()> {
        let number = row.number;
        let index = usize::try_from(number)?;
        ensure!(index < self.seen.len(), "row {id} has number {number}");
        ensure!(!self.seen[index], "flight {number} is there twice");
        self.seen[index] = true;
        ensure!(self.flights.has(row), "flight {number} differs: {row:?}");
        let told = self.receipts[index];
        let expected = if with_ids { id } else { number };
        ensure!(
            told == expected,
            "the caller of flight {number} got {told}, not {expected}"
        );
        Ok(())
    }

    pub fn finish(self) -> anyhow::Result<()> {
        let missing = self.seen.iter().filter(|seen| !**seen).count();
        ensure!(missing == 0, "{missing} flights are missing");
        Ok(())
    }
}
