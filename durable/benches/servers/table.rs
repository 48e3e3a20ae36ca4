//! What is printed, and what both engines are measured by.

use std::time::Duration;

use microbatch_durable::Store;

use crate::Error;
use crate::load::{drain, fill, wait};
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
    fn again() -> Self {
        Self { rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: &str, rate: f64) {
        self.rows.push((name.to_owned(), rate));
        let first = self.rows[0].1;
        println!("| {name} | {rate:.0} | {:.2} × |", rate / first);
    }
}

/// Batches of one and of a hundred; one and three worker processes on as many jobs; and how
/// long a job waits in an idle queue.
pub(crate) async fn drains<S: Store + Clone>(
    engine: &str,
    url: &str,
    open: impl AsyncFn(&str) -> Result<S, Error>,
    jobs: u64,
) -> Result<(), Error> {
    let store = open(&format!("drain {url}")).await?;
    let mut table = Table::again();
    table.row("drain, batches of 1", drain(&store, jobs / 20, 1).await?);
    table.row("drain, batches of 100", drain(&store, jobs, 100).await?);

    let orders = format!("workers {url}");
    let store = open(&orders).await?;
    let mut table = Table::again();
    for (workers, name) in [(1, "1 worker process"), (3, "3 worker processes")] {
        fill(&store, jobs).await?;
        let rate = race(&format!("{engine} {orders}"), workers, jobs)?;
        table.row(&format!("{name}, 1 ms a batch of 100"), rate);
    }
    wait_in_idle(&open(&format!("idle {url}")).await?).await
}

async fn wait_in_idle<S: Store + Clone>(store: &S) -> Result<(), Error> {
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
