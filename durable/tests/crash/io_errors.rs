//! The disk fails once, or a few times in a row, and then works again.

use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use microbatch_durable::Store;
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
        store.close().await;
    });
    ledger.ended();
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
