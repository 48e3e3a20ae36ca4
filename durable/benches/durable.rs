//! What durable jobs cost on this disk, everything in one run:
//!
//! ```text
//! cargo bench -p microbatch-durable -- --help
//! ```
//!
//! 1. one commit a job by hand, on redb as the store uses it: the floor
//! 2. durable submits by 1, 10, 64 and 256 callers, each awaiting its own
//! 3. a drain of no-op jobs in batches of 100, the attempt on disk before each batch
//! 4. the memory of the process with an ever larger backlog
//!
//! Rates depend on the disk and on who else uses it; compare those of one run.

#[path = "shared/bars.rs"]
mod bars;
#[path = "shared/callers.rs"]
mod callers;
#[path = "shared/raw.rs"]
mod raw;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use microbatch_durable::{CancellationToken, Drain, Durable, NewJob, RedbStore, Store};

use callers::call;
use raw::{PAYLOAD, Raw};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Measure durable submits and drains on the store in a file.
#[derive(Parser)]
#[command(name = "durable")]
struct Options {
    /// Seconds for each way to submit
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,

    /// Milliseconds by which each sync is made longer while jobs are submitted, for the
    /// figures of a slower disk
    #[arg(long, default_value_t = 0.0)]
    slower: f64,

    /// Jobs to drain
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1000..))]
    drain: u64,

    /// Jobs of the largest backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..))]
    backlog: u64,

    /// Where to put the files: a folder on the disk to measure [default: a temporary one
    /// in the build's folder]
    #[arg(long)]
    folder: Option<std::path::PathBuf>,

    /// Where to write the picture [default: none]
    #[arg(long)]
    picture: Option<std::path::PathBuf>,

    /// Given by `cargo bench`; means nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(run(&options)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("durable: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), Error> {
    if !(options.seconds > 0.0 && options.seconds <= 3600.0) {
        return Err("--seconds must be more than 0 and at most 3600".into());
    }
    let scratch = match &options.folder {
        Some(folder) => tempfile::tempdir_in(folder)
            .map_err(|error| format!("cannot use `{}`: {error}", folder.display()))?,
        None => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?,
    };
    let time = Duration::from_secs_f64(options.seconds);
    let slower = Duration::try_from_secs_f64(options.slower / 1e3)
        .map_err(|error| format!("--slower: {error}"))?;
    let rows = submits(scratch.path(), time, slower).await?;
    let (rate, took) = drain(scratch.path(), options.drain).await?;
    println!(
        "\ndrain of {} no-op jobs in batches of 100: {rate:.0} jobs/s ({took:.1} s)\n",
        options.drain,
    );
    backlog(scratch.path(), options.backlog).await?;
    if let Some(path) = &options.picture {
        fs::write(
            path,
            bars::picture("Durable submits a second", "a commit a job", &rows),
        )
        .map_err(|error| format!("cannot write `{}`: {error}", path.display()))?;
    }
    Ok(())
}

/// One way to make jobs durable, measured in turns with the others.
struct Way {
    name: String,
    jobs: u64,
    commits: u64,
    time: Duration,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Ids {
    /// As of a sequence, or a UUID of version 7.
    Ascending,
    /// As of a UUID of version 4.
    Random,
}

enum Kind {
    ByHand(redb::Database),
    Callers {
        callers: u64,
        ids: Ids,
        store: RedbStore,
        front: Durable<Vec<u8>>,
    },
}

/// Gives each way its time, a slice at a time, so that the disk is the same for all.
async fn submits(
    folder: &Path,
    time: Duration,
    slower: Duration,
) -> Result<Vec<(String, f64)>, Error> {
    const ROUNDS: u32 = 5;
    let database = redb::Database::builder()
        .create_with_backend(Disk::open(&folder.join("by-hand.redb"), slower)?)?;
    let way = |name: String, kind| Way {
        name,
        jobs: 0,
        commits: 0,
        time: Duration::ZERO,
        kind,
    };
    let mut ways = vec![way(
        "one commit a job, by hand".to_owned(),
        Kind::ByHand(database),
    )];
    let by_callers = [1, 10, 64, 256].map(|callers| (callers, Ids::Ascending));
    for (callers, ids) in by_callers.into_iter().chain([(256, Ids::Random)]) {
        let path = folder.join(format!("submits-{callers}-{ids:?}.redb"));
        let store = RedbStore::builder()
            .open_on(move || Disk::open(&path, slower).expect("the folder is there"))
            .await?;
        let front = Durable::builder(store.clone())
            .codec(Raw)
            .build_running(CancellationToken::new())?;
        let name = match (callers, ids) {
            (1, _) => "1 caller".to_owned(),
            (_, Ids::Ascending) => format!("{callers} callers"),
            (_, Ids::Random) => format!("{callers} callers, random ids"),
        };
        ways.push(way(
            name,
            Kind::Callers {
                callers,
                ids,
                store,
                front,
            },
        ));
    }
    let mut fsyncs = Vec::new();
    for round in 1..=ROUNDS {
        fsyncs.extend(fsync_times(folder)?);
        for way in &mut ways {
            progress(&format!("round {round} of {ROUNDS}: {}", way.name));
            let started = Instant::now();
            let (jobs, commits) = match &way.kind {
                Kind::ByHand(database) => by_hand(database, way.jobs, time / ROUNDS)?,
                Kind::Callers {
                    callers,
                    ids,
                    front,
                    ..
                } => {
                    let ids = *ids;
                    call(front, *callers, move || ids.next(), time / ROUNDS).await?
                }
            };
            way.time += started.elapsed();
            way.jobs += jobs;
            way.commits += commits;
        }
    }
    progress("");
    fsyncs.sort();
    let fsync = fsyncs[fsyncs.len() / 2];
    println!(
        "fdatasync of 4 KiB: median {:.2} ms, made {:.2} ms longer\n",
        fsync.as_secs_f64() * 1e3,
        slower.as_secs_f64() * 1e3,
    );
    println!("| durable submits | jobs/s | jobs a commit | ms a commit | of one commit a job |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let rate = |way: &Way| way.jobs as f64 / way.time.as_secs_f64();
    let bare = rate(&ways[0]);
    for way in &ways {
        println!(
            "| {} | {:.0} | {:.0} | {:.2} | {:.2} × |",
            way.name,
            rate(way),
            way.jobs as f64 / way.commits as f64,
            way.time.as_secs_f64() * 1e3 / way.commits as f64,
            rate(way) / bare,
        );
    }
    let commit = ways[0].time.as_secs_f64() / ways[0].commits as f64;
    let last = &ways[4];
    let cpu = last.time.as_secs_f64() / last.commits as f64 - commit;
    println!(
        "\n256 callers reach {:.0} % of 256 ÷ a commit by hand, and {:.0} % of 256 ÷ (that + \
         {:.2} ms for {:.0} jobs).",
        100.0 * rate(last) * commit / 256.0,
        100.0 * rate(last) * (commit + cpu) / 256.0,
        cpu * 1e3,
        last.jobs as f64 / last.commits as f64,
    );
    let rows = ways
        .iter()
        .map(|way| (way.name.clone(), rate(way)))
        .collect();
    for way in ways {
        if let Kind::Callers { store, front, .. } = way.kind {
            front.shutdown().await?;
            store.close().await;
        }
    }
    Ok(rows)
}

fn progress(what: &str) {
    let mut err = std::io::stderr();
    // The figures matter, not this line.
    let _ = write!(err, "\r\x1b[K{what}");
    let _ = err.flush();
}

fn fsync_times(folder: &Path) -> Result<Vec<Duration>, Error> {
    progress("fdatasync");
    let file = File::create(folder.join("fsync"))?;
    let time = |n| -> Result<Duration, Error> {
        file.write_all_at(&[7; 4096], n * 4096_u64)?;
        let started = Instant::now();
        file.sync_data()?;
        Ok(started.elapsed())
    };
    (0..50).map(time).collect()
}

/// A file whose syncs may be made longer.
#[derive(Debug)]
struct Disk {
    file: redb::backends::FileBackend,
    slower: Duration,
}

impl Disk {
    fn open(path: &Path, slower: Duration) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let file = redb::backends::FileBackend::new(file)?;
        Ok(Self { file, slower })
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        std::thread::sleep(self.slower);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.file.write(offset, data)
    }
}

/// A table of jobs and a transaction for each, with nothing around it.
fn by_hand(database: &redb::Database, from: u64, time: Duration) -> Result<(u64, u64), Error> {
    const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("jobs");
    let started = Instant::now();
    let mut jobs = 0;
    while started.elapsed() < time {
        let txn = database.begin_write()?;
        txn.open_table(TABLE)?
            .insert(from + jobs, [7; PAYLOAD].as_slice())?;
        txn.commit()?;
        jobs += 1;
    }
    Ok((jobs, jobs))
}

impl Ids {
    fn next(self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match self {
            Self::Ascending => format!("{:016}", NEXT.fetch_add(1, Ordering::Relaxed)),
            Self::Random => format!("{:016x}", fastrand::u64(..)),
        }
    }
}

async fn fill(store: &RedbStore, from: u64, to: u64) -> Result<(), Error> {
    for start in (from..to).step_by(10_000) {
        let jobs: Vec<_> = (start..to.min(start + 10_000))
            .map(|n| NewJob {
                id: format!("{n}").into(),
                codec: "raw".into(),
                payload: vec![7; PAYLOAD].into(),
            })
            .collect();
        store.append(&jobs).await?;
        progress(&format!("appended {} of {to}", start + jobs.len() as u64));
    }
    progress("");
    Ok(())
}

async fn drain(folder: &Path, jobs: u64) -> Result<(f64, f64), Error> {
    let store = RedbStore::open(folder.join("drain.redb")).await?;
    fill(&store, 0, jobs).await?;
    let cancel = CancellationToken::new();
    let (stop, left) = (cancel.clone(), AtomicU64::new(jobs));
    let processor = |jobs: Vec<Vec<u8>>| async move { Ok::<_, Error>(vec![(); jobs.len()]) };
    let drain = Drain::builder(store.clone(), processor)
        .codec(Raw)
        .max_batch_size(100)
        .on_batch(move |batch| {
            let left = left.fetch_sub(batch.done as u64, Ordering::Relaxed) - batch.done as u64;
            if left.is_multiple_of(5000) {
                progress(&format!("drain: {left} left"));
            }
            if left == 0 {
                stop.cancel();
            }
        })
        .build()?;
    let started = Instant::now();
    let drained = drain.run(cancel).await?;
    let took = started.elapsed().as_secs_f64();
    progress("");
    assert_eq!(drained.done, jobs);
    store.close().await;
    Ok((jobs as f64 / took, took))
}

async fn backlog(folder: &Path, most: u64) -> Result<(), Error> {
    let path = folder.join("backlog.redb");
    let store = RedbStore::open(&path).await?;
    println!("| backlog, jobs | memory of the process, MB | file, MB |");
    println!("| ---: | ---: | ---: |");
    let mut from = 0;
    for to in [most / 10, most / 2, most] {
        fill(&store, from, to).await?;
        from = to;
        let file = fs::metadata(&path)?.len() >> 20;
        println!("| {to} | {} | {file} |", resident()? >> 20);
    }
    store.close().await;
    Ok(())
}

/// Bytes of memory of this process.
fn resident() -> Result<u64, Error> {
    let pages = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages
        .split(' ')
        .nth(1)
        .ok_or("no resident pages")?
        .parse()?;
    Ok(pages * 4096)
}
