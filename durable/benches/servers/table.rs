//! What is printed, and what both engines are measured by.

use std::time::Duration;

use microbatch_durable::Store;

use crate::Error;
use crate::load::{fill, wait};
use crate::workers::race;

/// Rows of jobs a second, each compared with the first.
pub(crate) struct Table {
    pub(crate) rows: Vec<(String, f64)>,
}

impl Table {
    pub(crate) fn begin() -> Self {
        println!("| | jobs/s | |\n| --- | ---: | ---: |");
        Self { rows: Vec::new() }
    }

    /// Goes on below, with another first row.
    pub(crate) fn again(&self) -> Self {
        Self { rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: &str, rate: f64) {
        self.rows.push((name.to_owned(), rate));
        let first = self.rows[0].1;
        println!("| {name} | {rate:.0} | {:.2} × |", rate / first);
    }
}

/// One and three worker processes on as many jobs.
pub(crate) async fn workers<S: Store>(
    table: &mut Table,
    engine: &str,
    orders: &str,
    open: impl AsyncFn(&str) -> Result<S, Error>,
    jobs: u64,
) -> Result<(), Error> {
    let store = open(orders).await?;
    for (workers, name) in [(1, "1 worker process"), (3, "3 worker processes")] {
        fill(&store, jobs).await?;
        let rate = race(&format!("{engine} {orders}"), workers, jobs)?;
        table.row(&format!("{name}, 1 ms a batch of 100"), rate);
    }
    Ok(())
}

pub(crate) async fn wait_in_idle<S: Store + Clone>(store: &S) -> Result<(), Error> {
    let (accepted, submitted) = wait(store, 100).await?;
    println!("\n| an idle queue, ms until the processor has the job | median | 99 % |");
    println!("| --- | ---: | ---: |");
    for (name, times) in [
        ("from its acceptance", accepted),
        ("from its submission", submitted),
    ] {
        let at = |part: usize| {
            let time: Duration = times[times.len() * part / 100];
            time.as_secs_f64() * 1e3
        };
        println!("| {name} | {:.2} | {:.2} |", at(50), at(99));
    }
    Ok(())
}
