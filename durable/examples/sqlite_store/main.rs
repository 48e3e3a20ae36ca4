//! Jobs in an SQLite file that several processes share.
//!
//! ```sh
//! cargo run -p microbatch-durable --example sqlite_store -- 20
//! # With a file, as often at once as you like: each does what any of them has appended.
//! cargo run -p microbatch-durable --example sqlite_store -- 20 /tmp/jobs.sqlite
//! ```
//!
//! `store.rs` is the store: the traits of the crate in less than 250 lines of code, beside
//! the tables in `schema.sql`. Both are there to be copied.

mod store;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use microbatch::CancellationToken;
use microbatch_durable::{Drain, Durable, Store};
use store::SqliteStore;

/// A process that dies leaves its jobs to the others after this time.
const LEASE_TIME: Duration = Duration::from_secs(30);

const USAGE: &str = "usage: sqlite_store [JOBS] [FILE]    (by default 10 jobs, in a new file)";

struct Arguments {
    jobs: u32,
    file: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let jobs = words.next().unwrap_or_else(|| "10".to_owned());
        let jobs = match jobs.parse() {
            Ok(jobs @ 1..=1_000_000) => jobs,
            _ => return Err(format!("JOBS is a number from 1 to 1000000, not `{jobs}`")),
        };
        let file = words.next().map(PathBuf::from);
        match words.next() {
            Some(word) => Err(format!("`{word}` is one argument too many")),
            None => Ok(Self { jobs, file }),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("sqlite_store: {problem}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(error.source(), |error| (*error).source());
            let causes: String = causes.map(|cause| format!(": {cause}")).collect();
            eprintln!("sqlite_store: {error}{causes}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Arguments { jobs, file }: Arguments) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = file.unwrap_or_else(|| folder.path().join("jobs.sqlite"));
    let store = SqliteStore::open(&file, LEASE_TIME)?;

    // The front: each handle resolves once its job is on disk.
    let front = Durable::<String>::builder(store.clone()).build_running(CancellationToken::new())?;
    let process = std::process::id();
    let ids = (0..jobs).map(|job| format!("{process}-{job}"));
    for answer in front
        .submit_all(ids.map(|id| (id, "hello".to_owned())))
        .await
    {
        if !answer?.is_accepted() {
            return Err("the store refused a job".into());
        }
    }
    println!(
        "process {process} appended {jobs} jobs to `{}`",
        file.display()
    );

    // The back: leases them in batches, those of other processes as well.
    let drain = Drain::builder(store.clone(), async |batch: Vec<String>| {
        println!(
            "process {} got a batch of {}",
            std::process::id(),
            batch.len()
        );
        Ok::<_, std::io::Error>(vec![(); batch.len()])
    });
    let cancel = CancellationToken::new();
    let draining = tokio::spawn(drain.max_batch_size(8).build()?.run(cancel.clone()));
    while store.depth().await?.pending() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cancel.cancel();
    println!("process {process} did {} jobs", draining.await??.done);
    Ok(())
}
