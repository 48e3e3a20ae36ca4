//! The file of a store when the disk is full, when it is not to be opened, when it is
//! damaged, and when another has it.

use std::error::Error as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::redb::{StorageBackend, TableDefinition};
use microbatch::CancellationToken;
use microbatch_durable::{
    Appended, DeadLetters, Drain, NewJob, RedbError, RedbStore, Settled, Store, Verdict,
};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

/// A job whose bytes tell of its number.
fn job(number: u32, size: usize) -> NewJob {
    let mut payload = format!("\"{number:06}").into_bytes();
    payload.resize(size - 1, b'a' + (number % 26) as u8);
    payload.push(b'"');
    NewJob {
        id: format!("job-{number:06}").into(),
        codec: "json".into(),
        payload: payload.into(),
    }
}

/// Checks that an error is one line that names the file, and says it on stderr.
fn read_aloud(error: &RedbError, path: &Path) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    eprintln!("  {text}");
    assert!(text.contains(&*path.display().to_string()), "{text}");
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text:?}");
    text
}

async fn refused(path: &Path) -> RedbError {
    let opening = tokio::time::timeout(LONG, RedbStore::open(path));
    let error = opening.await.expect("opening hangs").unwrap_err();
    read_aloud(&error, path);
    error
}

// ---------------------------------------------------------------- a full disk

/// A disk in memory with so much room, by the size of the file or by what is written to it.
#[derive(Debug, Clone)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: Arc<AtomicU64>,
    /// Whether a file may be made longer than the disk, as `ftruncate` does.
    sparse: bool,
}

impl Disk {
    fn new(room: u64, sparse: bool) -> Self {
        Self {
            bytes: Arc::default(),
            room: Arc::new(AtomicU64::new(room)),
            sparse,
        }
    }

    async fn store(&self) -> RedbStore {
        let disk = self.clone();
        let store = RedbStore::builder().open_on(move || disk.clone());
        store.await.unwrap()
    }

    fn check(&self, end: u64) -> Result<(), io::Error> {
        match end > self.room.load(Ordering::Relaxed) {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let start = offset as usize;
        out.copy_from_slice(&self.bytes.lock().unwrap()[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        if !self.sparse {
            self.check(len)?;
        }
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let end = offset + data.len() as u64;
        self.check(end)?;
        self.bytes.lock().unwrap()[offset as usize..end as usize].copy_from_slice(data);
        Ok(())
    }
}

/// Appends until there is no room, then more with room made by `make_room`, and looks
/// whether all that was acknowledged is there.
async fn fill(store: &RedbStore, path: &Path, make_room: impl AsyncFnOnce()) -> Vec<u32> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    let error = loop {
        match store.append(&[job(number, 20_000)]).await {
            Ok(answers) => assert_eq!(answers, [Appended::New]),
            Err(error) => break error,
        }
        acknowledged.push(number);
        number += 1;
        assert!(number < 5000, "the disk is never full");
    };
    read_aloud(&error, path);
    let RedbError::Io {
        path: named,
        source,
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(named, path);
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    eprintln!("  full with {} jobs of 20 kB", acknowledged.len());
    assert!(!acknowledged.is_empty());
    // What only reads goes on, and the job whose append failed was not appended.
    for _ in 0..3 {
        assert_eq!(
            store.depth().await.unwrap().ready,
            acknowledged.len() as u64
        );
        assert!(store.list(None, 9).await.unwrap().is_empty());
        assert!(store.append(&[job(number, 20_000)]).await.is_err());
    }
    make_room().await;
    for more in number..number + 20 {
        assert_eq!(
            store.append(&[job(more, 20_000)]).await.unwrap(),
            [Appended::New]
        );
        acknowledged.push(more);
    }
    acknowledged
}

async fn assert_all_there(store: &RedbStore, numbers: &[u32], attempt: u32) {
    let leased = store.lease(numbers.len() + 1).await.unwrap();
    assert_eq!(leased.len(), numbers.len());
    for (leased, number) in leased.iter().zip(numbers) {
        let job = job(*number, 20_000);
        assert_eq!((&leased.id, leased.attempt.get()), (&job.id, attempt));
        assert_eq!(leased.payload, job.payload);
    }
    let done = leased.into_iter().map(|job| (job.lease, Verdict::Done));
    let answers = store.settle(&done.collect::<Vec<_>>()).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == Settled::Held));
    assert_eq!(store.depth().await.unwrap().pending(), 0);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_by_a_backend_that_says_so() {
    for sparse in [false, true] {
        let disk = Disk::new(4 * MIB, sparse);
        let store = disk.store().await;
        let path = store.path().to_owned();
        let room = Arc::clone(&disk.room);
        let numbers = fill(&store, &path, async || {
            room.store(64 * MIB, Ordering::Relaxed)
        })
        .await;
        assert_all_there(&store, &numbers, 1).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_full_disk_has_room_again_once_jobs_are_done() {
    let disk = Disk::new(4 * MIB, false);
    let store = disk.store().await;
    let mut number = 0;
    // Leased before the disk is full: to lease takes room, too.
    store.append(&[job(number, 20_000)]).await.unwrap();
    let first = store.lease(1).await.unwrap().remove(0).lease;
    while store.append(&[job(number + 1, 20_000)]).await.is_ok() {
        number += 1;
    }
    let settled = store.settle(&[(first, Verdict::Done)]).await;
    eprintln!("  full with {number} jobs; settling one: {settled:?}");
    let settled = settled.unwrap();
    assert_eq!(settled, [Settled::Held]);
    for _ in 0..number {
        let leased = store.lease(1).await.unwrap().remove(0);
        let done = [(leased.lease, Verdict::Done)];
        assert_eq!(store.settle(&done).await.unwrap(), [Settled::Held]);
    }
    assert_eq!(store.depth().await.unwrap().pending(), 0);
    assert_eq!(
        store.append(&[job(number + 1, 20_000)]).await.unwrap(),
        [Appended::New]
    );
    store.close().await;
}

/// A file system of its own, if this process may mount one.
#[cfg(target_os = "linux")]
mod mount {
    use std::ffi::CString;
    use std::path::Path;

    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

    pub(super) struct Mount {
        folder: tempfile::TempDir,
    }

    impl Mount {
        pub(super) fn tmpfs(bytes: u64) -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let options = CString::new(format!("size={bytes}")).unwrap();
            let mounted = mount(
                "none",
                folder.path(),
                "tmpfs",
                MountFlags::empty(),
                &*options,
            );
            match mounted {
                Ok(()) => Some(Self { folder }),
                Err(error) => {
                    eprintln!("  LEFT OUT: this process may not mount a file system: {error}");
                    None
                }
            }
        }

        pub(super) fn path(&self) -> &Path {
            self.folder.path()
        }

        pub(super) fn resize(&self, bytes: u64) {
            let options = CString::new(format!("size={bytes}")).unwrap();
            mount_remount(self.path(), MountFlags::empty(), &*options).unwrap();
        }

        pub(super) fn set_read_only(&self) {
            mount_remount(self.path(), MountFlags::RDONLY, c"").unwrap();
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = unmount(self.path(), UnmountFlags::DETACH);
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_loses_nothing_by_a_real_file_system() {
    for mib in [2, 3, 8] {
        let Some(mount) = mount::Mount::tmpfs(mib * MIB) else {
            return;
        };
        eprintln!("a disk of {mib} MiB");
        let path = mount.path().join("jobs.redb");
        let store = RedbStore::open(&path).await.unwrap();
        let numbers = fill(&store, &path, async || mount.resize(64 * MIB)).await;
        store.close().await;
        let store = RedbStore::open(&path).await.unwrap();
        assert_all_there(&store, &numbers, 1).await;
        store.close().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_too_small_for_a_new_store_leaves_a_file_that_opens_once_there_is_room() {
    for kib in [0, 4, 64, 256, 512, 1024] {
        // No size at all means no limit.
        let Some(mount) = mount::Mount::tmpfs((kib * 1024).max(1)) else {
            return;
        };
        let path = mount.path().join("jobs.redb");
        match RedbStore::open(&path).await {
            Ok(store) => {
                eprintln!("  a new store fits on {kib} KiB");
                store.close().await;
            }
            Err(error) => {
                eprintln!("  no new store on {kib} KiB:");
                read_aloud(&error, &path);
                assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
            }
        }
        mount.resize(64 * MIB);
        let store = RedbStore::open(&path).await.unwrap();
        store.append(&[job(1, 100)]).await.unwrap();
        store.close().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_new_store_on_a_disk_full_of_other_files_opens_once_there_is_room() {
    let Some(mount) = mount::Mount::tmpfs(MIB) else {
        return;
    };
    let other = mount.path().join("other");
    let filled = fs::write(&other, vec![1; 2 * MIB as usize]).unwrap_err();
    assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
    let path = mount.path().join("jobs.redb");
    let error = refused(&path).await;
    assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
    fs::remove_file(&other).unwrap();
    store_at(&path).await;
    assert_opens_with_its_job(&path).await;
}

#[tokio::test]
async fn a_drain_on_a_full_disk_tries_again_counts_and_goes_on() {
    let disk = Disk::new(4 * MIB, false);
    let store = disk.store().await;
    let mut jobs = 0;
    while store.append(&[job(jobs, 20_000)]).await.is_ok() {
        jobs += 1;
    }
    // Not one page more than there is, so that a lease finds no room either.
    let len = disk.bytes.lock().unwrap().len() as u64;
    disk.room.store(len / 2, Ordering::Relaxed);
    let cancel = CancellationToken::new();
    let processed = Arc::new(AtomicU64::new(0));
    let (counted, full) = (Arc::clone(&processed), Arc::clone(&disk.room));
    let drain = Drain::builder(store.clone(), move |batch: Vec<String>| {
        let counted = counted.fetch_add(batch.len() as u64, Ordering::Relaxed);
        // Once more while the first batch is processed: it cannot be settled at first.
        if counted == 0 {
            full.store(0, Ordering::Relaxed);
        }
        std::future::ready(Ok::<_, io::Error>(vec![(); batch.len()]))
    });
    let drain = drain.max_batch_size(16).build().unwrap();
    let draining = tokio::spawn(drain.run(cancel.clone()));
    // Twice: before the first lease, and before the first settlement.
    for _ in 0..2 {
        let mut refusals = 0;
        while refusals < 3 {
            match store.append(&[job(9999, 20_000)]).await {
                Ok(_) => {}
                Err(error) => {
                    assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
                    refusals += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        disk.room.store(64 * MIB, Ordering::Relaxed);
    }
    let emptied = async {
        while store.depth().await.unwrap().pending() > 0 {
            disk.room.store(64 * MIB, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, emptied).await.unwrap();
    cancel.cancel();
    let drained = draining.await.unwrap().unwrap();
    eprintln!("  {drained:?}");
    assert!(drained.store_errors >= 2, "{drained:?}");
    assert_eq!(drained.lost + drained.dead + drained.retried, 0);
    assert!(drained.done + drained.unknown >= u64::from(jobs));
    assert!(processed.load(Ordering::Relaxed) >= u64::from(jobs));
    store.close().await;
}

// ---------------------------------------------------------------- not to be opened

/// A closed store with one job, as bytes.
async fn store_at(path: &Path) -> Vec<u8> {
    let store = RedbStore::open(path).await.unwrap();
    store.append(&[job(7, 100)]).await.unwrap();
    store.close().await;
    fs::read(path).unwrap()
}

async fn assert_opens_with_its_job(path: &Path) {
    let store = RedbStore::open(path).await.unwrap();
    let leased = store.lease(9).await.unwrap();
    assert_eq!(
        (leased.len(), &leased[0].payload),
        (1, &job(7, 100).payload)
    );
    store.close().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_that_cannot_be_written_is_refused_and_not_changed() {
    if let Some(mount) = mount::Mount::tmpfs(64 * MIB) {
        let path = mount.path().join("jobs.redb");
        let bytes = store_at(&path).await;
        mount.set_read_only();
        let error = refused(&path).await;
        assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
        assert!(fs::read(&path).unwrap() == bytes, "the file was changed");
        let error = refused(&mount.path().join("new.redb")).await;
        assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
    }
    if rustix::process::geteuid().is_root() {
        eprintln!("  LEFT OUT: files without the right to write; root has every right");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let bytes = store_at(&path).await;
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    let error = refused(&path).await;
    assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
    assert!(fs::read(&path).unwrap() == bytes, "the file was changed");
}

#[tokio::test]
async fn a_folder_is_refused_and_a_file_of_nothing_is_a_new_store() {
    let folder = tempfile::tempdir().unwrap();
    let error = refused(folder.path()).await;
    assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // The others are what redb leaves if the process ends while it creates the file.
    let zeros = "\0".repeat(9000);
    let header = "\0".repeat(9) + &"h".repeat(311) + &zeros;
    for text in [String::new(), zeros, header] {
        let path = folder.path().join(format!("empty-{}", text.len()));
        fs::write(&path, text).unwrap();
        store_at(&path).await;
        assert_opens_with_its_job(&path).await;
    }
}

#[tokio::test]
async fn a_file_of_another_kind_is_refused_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    for text in [
        "x".to_owned(),
        "Dear all,\n".repeat(1000),
        "\0".repeat(5000) + "x",
    ] {
        fs::write(&path, &text).unwrap();
        let error = refused(&path).await;
        assert!(matches!(error, RedbError::Foreign { .. }), "{error:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

const NOTES: TableDefinition<'_, &str, u64> = TableDefinition::new("notes");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("microbatch/meta");

/// Writes a number into a database as another program, or another version, would.
fn put(path: &Path, table: TableDefinition<'_, &str, u64>, key: &str, value: u64) {
    let database = ::redb::Database::create(path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(table).unwrap().insert(key, value).unwrap();
    txn.commit().unwrap();
}

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_keeps_its_tables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.redb");
    put(&path, NOTES, "a", 1);
    let error = refused(&path).await;
    assert!(matches!(error, RedbError::Foreign { .. }), "{error:?}");
    let database = ::redb::Database::open(&path).unwrap();
    let txn = ::redb::ReadableDatabase::begin_read(&database).unwrap();
    let tables: Vec<_> = txn
        .list_tables()
        .unwrap()
        .map(|t| ::redb::TableHandle::name(&t).to_owned())
        .collect();
    assert_eq!(tables, ["notes"]);
}

#[tokio::test]
async fn a_store_of_another_version_is_refused_and_keeps_its_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    store_at(&path).await;
    put(&path, META, "version", 2);
    let error = refused(&path).await;
    assert!(
        matches!(
            error,
            RedbError::Version {
                found: 2,
                expected: 1,
                ..
            }
        ),
        "{error:?}"
    );
    put(&path, META, "version", 1);
    assert_opens_with_its_job(&path).await;
}

#[tokio::test]
async fn long_and_unicode_names_are_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "Aufträge — 注文 🐟.redb".to_owned(),
        " spaces\tand\u{301}`ticks` ".to_owned(),
        "n".repeat(255),
    ] {
        let path = folder.path().join(name);
        store_at(&path).await;
        assert_opens_with_its_job(&path).await;
    }
    let error = refused(&folder.path().join("n".repeat(256))).await;
    assert!(matches!(error, RedbError::Io { .. }), "{error:?}");
}

// ---------------------------------------------------------------- damaged

const JOBS: u32 = 40;

/// The bytes of redb's own header.
const HEADER: usize = 320;

/// A closed store with jobs of each kind: `JOBS` that wait, some dead, some done.
async fn store_to_damage(path: &Path) -> Vec<u8> {
    let store = RedbStore::open(path).await.unwrap();
    let jobs: Vec<_> = (0..JOBS + 20).map(|number| job(number, 400)).collect();
    store.append(&jobs).await.unwrap();
    let leased = store.lease(20).await.unwrap();
    let verdict = |number| match number % 2 {
        0 => Verdict::Done,
        _ => Verdict::Dead {
            reason: "no".to_owned(),
        },
    };
    let verdicts = leased
        .into_iter()
        .zip(0..)
        .map(|(job, number)| (job.lease, verdict(number)));
    store.settle(&verdicts.collect::<Vec<_>>()).await.unwrap();
    store.close().await;
    fs::read(path).unwrap()
}

/// What a damaged file may do: say so, or have everything.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    ErrorLater,
    Intact,
}

async fn open_damaged(path: &Path, damaged: &[u8]) -> Outcome {
    fs::write(path, damaged).unwrap();
    let store = match RedbStore::open(path).await {
        Ok(store) => store,
        Err(error) => {
            read_aloud(&error, path);
            assert!(
                matches!(error, RedbError::Corrupt { .. } | RedbError::Foreign { .. }),
                "{error:?}"
            );
            // redb may write its own header anew, which has no job in it.
            let left = fs::read(path).unwrap();
            assert!(
                left.len() == damaged.len()
                    && left[HEADER.min(left.len())..] == damaged[HEADER.min(left.len())..],
                "a refused file was changed: {error}"
            );
            return Outcome::Refused;
        }
    };
    let read = async {
        let dead = store.list(None, 99).await?;
        let leased = store.lease(99).await?;
        let done = leased.iter().map(|job| (job.lease.clone(), Verdict::Done));
        store.settle(&done.collect::<Vec<_>>()).await?;
        Ok::<_, RedbError>((dead, leased))
    };
    let outcome = match read.await {
        Ok((dead, leased)) => {
            let dead: Vec<_> = dead.into_iter().map(|job| job.payload).collect();
            let expected: Vec<_> = (1..20).step_by(2).map(|n| job(n, 400).payload).collect();
            assert!(dead == expected, "dead letters are not what they were");
            let leased: Vec<_> = leased.into_iter().map(|job| job.payload).collect();
            let expected: Vec<_> = (20..JOBS + 20).map(|n| job(n, 400).payload).collect();
            assert!(leased == expected, "jobs are not what they were");
            Outcome::Intact
        }
        Err(error) => {
            read_aloud(&error, path);
            Outcome::ErrorLater
        }
    };
    store.close().await;
    outcome
}

/// Flips 1 to 64 bytes, half of them where something is written.
fn flip(whole: &[u8], seed: u64) -> Vec<u8> {
    let written: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut damaged = whole.to_vec();
    for _ in 0..[1, 1, 8, 64][seed as usize % 4] {
        let at = match random.bool() {
            true => written[random.usize(..written.len())],
            false => random.usize(..whole.len()),
        };
        damaged[at] ^= random.u8(1..);
    }
    damaged
}

#[tokio::test]
async fn flipped_bytes_are_found_or_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let whole = store_to_damage(&path).await;
    let (mut refused, mut later, mut intact) = (0, 0, 0);
    let seeds = std::env::var("MICROBATCH_FLIP_SEEDS").map_or(60, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        eprintln!("seed {seed}");
        let damaged = flip(&whole, seed);
        let opening = tokio::time::timeout(LONG, open_damaged(&path, &damaged));
        match opening.await.expect("a damaged file hangs") {
            Outcome::Refused => refused += 1,
            Outcome::ErrorLater => later += 1,
            Outcome::Intact => intact += 1,
        }
    }
    eprintln!("{refused} refused, {later} with an error later, {intact} intact");
    assert!(refused > 0, "the damage reached nothing");
}

/// Unchecked, redb may panic on damage, and may give out other bytes. Its panics are errors
/// of the store.
#[tokio::test]
async fn unchecked_damage_neither_hangs_nor_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let whole = store_to_damage(&path).await;
    let mut errors = 0;
    for seed in 0..60 {
        eprintln!("seed {seed}");
        fs::write(&path, flip(&whole, seed)).unwrap();
        let read = async {
            let builder = RedbStore::builder().check_integrity(false);
            let store = builder.open(&path).await?;
            let read = async {
                store.list(None, 99).await?;
                let leased = store.lease(99).await?;
                let done = leased.into_iter().map(|job| (job.lease, Verdict::Done));
                store.settle(&done.collect::<Vec<_>>()).await
            };
            let read = read.await;
            store.close().await;
            read
        };
        let read = tokio::time::timeout(LONG, read).await;
        if let Err(error) = read.expect("a damaged file hangs") {
            let text = read_aloud(&error, &path);
            assert!(!text.contains("processor"), "{text}");
            errors += 1;
        }
    }
    assert!(errors > 0, "the damage reached nothing");
}

#[tokio::test]
async fn a_truncated_file_is_refused_or_has_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    let whole = store_to_damage(&path).await;
    let len = whole.len();
    let mut refused = 0;
    for len in [
        1,
        8,
        9,
        100,
        320,
        4095,
        4096,
        8192,
        len / 3,
        len / 2,
        len - 4096,
        len - 1,
    ] {
        eprintln!("{len} bytes of {}", whole.len());
        let opening = tokio::time::timeout(LONG, open_damaged(&path, &whole[..len]));
        refused += usize::from(opening.await.expect("it hangs") == Outcome::Refused);
    }
    assert!(refused >= 9, "{refused}");
    assert_eq!(open_damaged(&path, &whole).await, Outcome::Intact);
}

// ---------------------------------------------------------------- in use

const CHILD: &str = "MICROBATCH_FILES_CHILD";

/// Opens the file that it is told, says so, and keeps it open until its input ends.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = RedbStore::open(&path).await.unwrap();
        store.append(&[job(7, 100)]).await.unwrap();
        println!("\nopen");
        let mut rest = String::new();
        io::stdin().read_to_string(&mut rest).unwrap();
        store.close().await;
    });
}

struct Holder(Child);

impl Holder {
    /// Starts a process that has the file open, in the folder of the file.
    fn start(folder: &Path, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "files::child", "--nocapture"])
            .current_dir(folder)
            .env(CHILD, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let open = lines.find(|line| line.as_ref().is_ok_and(|line| line == "open"));
        assert!(open.is_some(), "the child did not open {}", path.display());
        // What it says further, until it ends.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_file_that_another_process_has_is_refused_until_that_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.redb");
    for killed in [false, true] {
        let mut holder = Holder::start(folder.path(), &path);
        let error = refused(&path).await;
        let expected = format!("process {}", holder.0.id());
        assert!(
            matches!(&error, RedbError::InUse { holder, .. } if *holder == expected),
            "{error:?}"
        );
        match killed {
            true => holder.0.kill().unwrap(),
            false => drop(holder.0.stdin.take()),
        }
        holder.0.wait().unwrap();
        // At once, and its note is gone or rewritten.
        let store = RedbStore::open(&path).await.unwrap();
        assert_eq!(store.depth().await.unwrap().ready, 1);
        let error = refused(&path).await;
        assert!(error.to_string().contains("this process"), "{error}");
        store.close().await;
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_path_without_a_folder_is_in_the_current_one() {
    let folder = tempfile::tempdir().unwrap();
    let holder = Holder::start(folder.path(), Path::new("jobs.redb"));
    drop(holder);
    assert_opens_with_its_job(&folder.path().join("jobs.redb")).await;
}
