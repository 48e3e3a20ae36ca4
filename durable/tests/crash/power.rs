//! The power fails while several tasks append, lease and settle; several times in a row,
//! on the image that is left.

use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use tokio::runtime::Runtime;

use crate::disk::Disk;
use crate::ledger::Ledger;
use crate::seeds;
use crate::work;

#[derive(Debug, Default)]
struct Figures {
    /// Cuts while something was written; the others came when all was idle.
    cuts: AtomicU64,
    jobs: AtomicU64,
}

/// Cuts the power up to four times, and then looks at what is left.
fn cuts(runtime: &Runtime, seed: u64, mut disk: Disk, figures: &Figures) {
    let mut rng = Rng::with_seed(seed);
    let ledger = Ledger::default();
    for life in 0..rng.u32(1..=4) {
        let longest = if life == 0 { 160 } else { 80 };
        disk.cut_after(rng.u64(1..longest));
        runtime.block_on(work::live(&disk, &ledger, &mut rng));
        figures
            .cuts
            .fetch_add(u64::from(disk.is_cut()), Ordering::Relaxed);
        ledger.ended();
        disk = disk.restart(&mut rng);
        if disk.is_unborn() {
            assert!(ledger.is_nothing_acknowledged());
            disk = disk.emptied();
        }
    }
    runtime.block_on(work::check(&disk, &ledger));
    figures
        .jobs
        .fetch_add(ledger.len() as u64, Ordering::Relaxed);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails() {
    let figures = Figures::default();
    seeds::run(
        "nothing_acknowledged_is_lost_when_the_power_fails",
        "CRASH_SEEDS",
        1000,
        |runtime, seed| cuts(runtime, seed, Disk::new(), &figures),
    );
    println!("{figures:?}");
}

/// The test above can fail: it does if syncs do nothing.
#[test]
fn a_disk_that_ignores_syncs_is_noticed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let figures = Figures::default();
    let noticed = (0..40).any(|seed| {
        let cuts = || cuts(&runtime, seed, Disk::lying(), &figures);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(cuts)).is_err()
    });
    assert!(noticed);
}
