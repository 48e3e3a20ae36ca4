//! Many tenants share one database. A batch holds rows of one tenant, and a
//! tenant that floods the service does not hold the others up.
//!
//! ```sh
//! cargo run --release --example keyed
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use microbatch::{CancellationToken, Keyed};

const CALL: Duration = Duration::from_millis(10);

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Inserts rows into the table of one tenant.
async fn insert(tenant: &'static str, rows: Vec<u64>) -> Result<Vec<String>, String> {
    CALLS.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(CALL).await;
    if tenant == "broken" {
        return Err(format!("{tenant} has no table"));
    }
    Ok(rows.iter().map(|row| format!("{tenant}/{row}")).collect())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tenants = Keyed::builder(insert)
        .max_in_flight_overall(2) // connections in the pool
        .options(|options| {
            options
                .max_batch_size(100)
                .queue_capacity(10_000)
                .flush_when_idle(true)
        })
        .build_running(CancellationToken::new())?;

    // One tenant comes with a hundred batches at once, ...
    let flood: Vec<_> = (0..10_000).map(|row| tenants.submit("loud", row)).collect();

    // ... another with a row now and then, ...
    let mut worst = Duration::ZERO;
    for row in 0..10 {
        let start = Instant::now();
        assert_eq!(tenants.submit("quiet", row).await?, format!("quiet/{row}"));
        worst = worst.max(start.elapsed());
    }
    let left = flood.iter().filter(|handle| !handle.is_finished()).count();
    println!("quiet: {worst:.1?} at worst, while loud had {left} rows to go");

    // ... and a third one fails, alone.
    let error = tenants.submit("broken", 1).await.unwrap_err();
    println!("broken: {error}");

    for (row, result) in join_all(flood).await.into_iter().enumerate() {
        assert_eq!(result?, format!("loud/{row}"));
    }
    assert!(
        left > 0,
        "the flood was over before the others had their turn"
    );
    assert_eq!(tenants.live_keys(), 0); // idle tenants cost nothing
    tenants.shutdown().await?;
    println!("{} calls for 10011 rows", CALLS.load(Ordering::SeqCst));
    Ok(())
}
