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

#[cfg(test)]
mod tests {
    use super::*;

    type Rows = Vec<(i64, Flight)>;

    fn outcome(change: impl FnOnce(&mut Rows)) -> anyhow::Result<()> {
        let flights = Flights::read()?;
        let mut rows: Rows = (101..).zip(flights.take(3)).collect();
        change(&mut rows);
        let mut check = Check::new(&flights, &[101, 102, 103]);
        for (id, row) in &rows {
            check.row(*id, true, row)?;
        }
        check.finish()
    }

    #[test]
    fn rows_as_they_should_be_pass() -> anyhow::Result<()> {
        outcome(|_| {})
    }

    #[test]
    fn whatever_is_wrong_is_found() {
        let problems: [fn(&mut Rows); 5] = [
            |rows| rows.truncate(2),
            |rows| rows[1].1 = rows[0].1.clone(),
            |rows| rows[1].1.integers[0] = None,
            |rows| rows[1].1.texts[0] = Some("XX".into()),
            |rows| rows[2].0 = 102,
        ];
        for (index, problem) in problems.into_iter().enumerate() {
            assert!(outcome(problem).is_err(), "problem {index}");
        }
    }
}
