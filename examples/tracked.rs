//! A service that takes an order, answers at once, and is asked later how the
//! order stands. Clients send their orders twice when they lose patience.
//!
//! ```sh
//! cargo run --release --features tracked --example tracked
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use microbatch::{CancellationToken, JobStatus, Tracked};

/// What a batch has charged, as the bank sees it.
static CHARGED: AtomicU64 = AtomicU64::new(0);

type Orders = Tracked<String, u64, Result<u64, &'static str>>;

/// Charges a whole batch in one call to the bank; each order succeeds or fails
/// by itself.
async fn charge(amounts: Vec<u64>) -> Result<Vec<Result<u64, &'static str>>, String> {
    tokio::time::sleep(Duration::from_millis(5)).await;
    let charge = |amount| {
        if amount > 900 {
            return Err("over the limit");
        }
        CHARGED.fetch_add(amount, Ordering::SeqCst);
        Ok(amount)
    };
    Ok(amounts.into_iter().map(charge).collect())
}

/// POST /orders/{id}
fn post(orders: &Orders, id: &str, amount: u64) -> u16 {
    match orders.try_submit(id.to_owned(), amount) {
        Ok(_) => 202, // whoever wants the result asks for it by its id
        Err(_) => 503,
    }
}

/// GET /orders/{id}
fn get(orders: &Orders, id: &str) -> (u16, String) {
    match orders.status(id) {
        None => (404, "no such order".to_owned()),
        Some(JobStatus::Submitted | JobStatus::Processing) => (200, "on its way".to_owned()),
        Some(JobStatus::Completed(Ok(Ok(amount)))) => (200, format!("charged {amount}")),
        Some(JobStatus::Completed(Ok(Err(refused)))) => (402, refused.to_owned()),
        Some(JobStatus::Completed(Err(error))) => (500, error.to_string()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let orders: Orders = Tracked::builder(charge)
        .options(|options| options.max_batch_size(50).flush_when_idle(true))
        .retain_jobs(10_000)
        .retain_for(Duration::from_secs(24 * 60 * 60))
        .build_running(CancellationToken::new())?;

    for n in 1..=20 {
        let id = format!("order-{n}");
        assert_eq!(post(&orders, &id, n * 50), 202);
        assert_eq!(post(&orders, &id, n * 50), 202); // the same order again
    }
    println!("order-7: {:?}", get(&orders, "order-7"));
    orders.flush().await;
    println!("order-7: {:?}", get(&orders, "order-7"));
    println!("order-20: {:?}", get(&orders, "order-20"));

    assert_eq!(get(&orders, "order-7"), (200, "charged 350".to_owned()));
    assert_eq!(get(&orders, "order-20"), (402, "over the limit".to_owned()));
    assert_eq!(get(&orders, "order-21").0, 404);
    // Every order up to 900 was charged, once.
    assert_eq!(CHARGED.load(Ordering::SeqCst), (1..=18).sum::<u64>() * 50);
    orders.shutdown().await?;
    assert_eq!(get(&orders, "order-1"), (200, "charged 50".to_owned()));
    Ok(())
}
