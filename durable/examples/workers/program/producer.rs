//! The producer: submits every record, and learns of each when it is durable.

use std::cell::Cell;
use std::collections::VecDeque;

use anyhow::Context;
use microbatch_durable::{Appended, CancellationToken, Durable, Store};

use super::flights::Flight;

/// Jobs that wait for an answer at a time.
const ON_THEIR_WAY: usize = 1_000;

/// Submits the flights in order; `submitted` says how many are durable.
pub(crate) async fn run<S: Store>(
    store: S,
    flights: &[Flight],
    submitted: &Cell<u64>,
) -> anyhow::Result<()> {
    let durable = Durable::<Flight>::builder(store).build_running(CancellationToken::new())?;
    let mut on_their_way = VecDeque::new();
    let mut flights = flights.iter();
    loop {
        let next = flights.next();
        if let Some(flight) = next {
            on_their_way.push_back(durable.submit(flight.id(), flight.clone()));
        }
        if next.is_none() || on_their_way.len() >= ON_THEIR_WAY {
            let Some(handle) = on_their_way.pop_front() else {
                break;
            };
            // An error would say that nothing is known; the same id could be submitted again.
            let appended = handle.await.context("cannot submit")?;
            if let Appended::Refused(refusal) = appended {
                return Err(refusal).context("a job was refused");
            }
            submitted.set(submitted.get() + 1);
        }
    }
    durable.shutdown().await?;
    Ok(())
}
