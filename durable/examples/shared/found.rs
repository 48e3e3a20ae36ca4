//! What there is at the end, held against the file.

use super::flights::Flight;

#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) records: u64,
    /// Rows of the table.
    pub(crate) stored: u64,
    pub(crate) missing: u64,
    /// Rows with other values than the file has.
    pub(crate) wrong: u64,
    /// Rows that were written more than once.
    pub(crate) seen_again: u64,
}

impl Found {
    pub(crate) fn is_right(&self) -> bool {
        (self.missing, self.wrong, self.stored) == (0, 0, self.records)
    }

    /// Looks for each of the flights by its line.
    pub(crate) fn look<E>(
        flights: &[Flight],
        mut find: impl FnMut(u32) -> Result<Option<Flight>, E>,
    ) -> Result<Self, E> {
        let mut found = Self {
            records: flights.len() as u64,
            ..Self::default()
        };
        for flight in flights {
            match find(flight.line)? {
                Some(stored) if stored == *flight => {}
                Some(_) => found.wrong += 1,
                None => found.missing += 1,
            }
        }
        Ok(found)
    }
}
