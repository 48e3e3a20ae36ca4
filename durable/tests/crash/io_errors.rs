//! The disk fails once, or a few times in a row, and then works again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use microbatch_durable::{Store, Verdict};
use tokio::runtime::Runtime;

use crate::disk::{Disk, Fault, Kind};
use crate::ledger::Ledger;
use crate::seeds;
use crate::work::{self, Errors};

/// One store over which the disk fails; then another on what is left. No process ends
/// before, so attempts are exact.
fn faults(runtime: &Runtime, seed: u64, failed: &AtomicU64) {
    let mut rng = Rng::with_seed(seed);
    let (kind, longest) = [
        (None, 150),
        (Some(Kind::Read), 20),
        (Some(Kind::Write), 100),
        (Some(Kind::Sync), 15),
        (Some(Kind::Length), 2),
    ][rng.usize(..5)];
    let disk = Disk::new();
    // A fault while the database is made is a file that redb refuses; see `power`.
    let ledger = Ledger::default();
    runtime.block_on(async {
        let store = work::open(&disk).await;
        disk.fail(Fault {
            kind,
            after: rng.u64(..longest),
            times: [1, 1, 1, rng.u64(1..8)][rng.usize(..4)],
        });
        work::on(&store, &disk, &ledger, &mut rng, Errors::Pass).await;
        failed.fetch_add(u64::from(disk.faults() > 0), Ordering::Relaxed);
        disk.mend();
        // What is held still holds: the same store goes on.
        work::on(&store, &disk, &ledger, &mut rng, Errors::Pass).await;
        // What dropped calls have leased is released with the second transaction from here.
        store.depth().await.unwrap();
        store.depth().await.unwrap();
        let depth = store.depth().await.unwrap();
        assert_eq!(
            depth.leased,
            ledger.leases() as u64,
            "leases that nobody has"
        );
        store.close().await;
    });
    ledger.closed();
    runtime.block_on(work::check(&disk, &ledger));
}

#[test]
fn a_store_goes_on_after_an_error_of_the_disk() {
    let failed = AtomicU64::new(0);
    let seeds = seeds::run(
        "a_store_goes_on_after_an_error_of_the_disk",
        "CRASH_SEEDS",
        300,
        |runtime, seed| faults(runtime, seed, &failed),
    );
    let failed = failed.into_inner();
    println!("the disk failed in {failed}");
    assert!(failed * 2 > seeds, "{failed} of {seeds}");
}

/// Story: `depth` counted rows by `count`, and redb answers an error again and again once
/// a read has failed. The thread of the store counted errors for ever.
#[tokio::test]
async fn counting_ends_when_the_disk_fails() {
    const JOBS: u64 = 1000;
    let disk = Disk::new();
    let store = work::open_with(&disk, 0).await.unwrap();
    let jobs: Vec<_> = (0..JOBS).map(|n| work::job(&n.to_string())).collect();
    store.append(&jobs).await.unwrap();
    let leased = store.lease(jobs.len()).await.unwrap();
    let later = leased.into_iter().map(|job| {
        let after = Duration::from_millis(1);
        let reason = String::new();
        (job.lease, Verdict::Retry { after, reason })
    });
    store.settle(&Vec::from_iter(later)).await.unwrap();
    while store.depth().await.unwrap().ready < JOBS {}
    let (mut errors, mut after) = (0, 0);
    loop {
        disk.fail(Fault {
            kind: Some(Kind::Read),
            after,
            times: u64::MAX,
        });
        let depth = tokio::time::timeout(Duration::from_secs(60), store.depth());
        let depth = depth.await.expect("it is answered");
        disk.mend();
        match depth {
            Ok(depth) => {
                assert_eq!(depth.ready, JOBS);
                break;
            }
            Err(_) => errors += 1,
        }
        // The file is open again.
        store.depth().await.unwrap();
        after += 1;
    }
    assert!(errors > 3, "reads of several pages failed: {errors}");
    store.close().await;
}
