//! Tower on both sides of a micro-batcher: requests come in one by one through
//! layers, and leave in bulk through others.
//!
//! ```sh
//! cargo run --example tower --features tower
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use microbatch::{CancellationToken, MicroBatch, ServiceProcessor};
use tower::load_shed::error::Overloaded;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

const CALLERS: u32 = 1000;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A bulk lookup, as a client of a database or an API would offer it. It
    // stands behind layers of its own.
    let prices: Arc<HashMap<u32, u32>> = Arc::new((0..100).map(|id| (id, id * 3)).collect());
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let bulk = ServiceBuilder::new()
        .concurrency_limit(2)
        .timeout(Duration::from_secs(5))
        .service(service_fn(move |ids: Vec<u32>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let prices = Arc::clone(&prices);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok::<_, BoxError>(ids.iter().map(|id| prices.get(id).copied()).collect())
            }
        }));

    let lookup: MicroBatch<u32, Option<u32>> = MicroBatch::builder(ServiceProcessor::new(bulk))
        .max_batch_size(100)
        .max_in_flight(2)
        .flush_when_idle(true)
        .queue_capacity(CALLERS as usize)
        .build_running(CancellationToken::new())?;

    // What a handler sees: one request, one response. Where the queue is full
    // it hears so at once.
    let service = ServiceBuilder::new()
        .load_shed()
        .timeout(Duration::from_secs(10))
        .map_request(|path: String| path.trim_start_matches("/price/").parse().unwrap_or(0))
        .service(lookup.clone());
    let callers = (0..CALLERS).map(|n| {
        let service = service.clone();
        let answer = service.oneshot(format!("/price/{}", n % 200));
        tokio::spawn(async move { (n % 200, answer.await) })
    });

    let (mut found, mut unknown, mut shed) = (0, 0, 0);
    for caller in callers.collect::<Vec<_>>() {
        match caller.await? {
            (id, Ok(Some(price))) if price == id * 3 => found += 1,
            (id, Ok(None)) if id >= 100 => unknown += 1,
            (_, Err(error)) if error.is::<Overloaded>() => shed += 1,
            (id, other) => panic!("{id}: {other:?}"),
        }
    }
    lookup.shutdown().await?;

    let calls = calls.load(Ordering::Relaxed);
    println!(
        "{CALLERS} requests: {found} found, {unknown} unknown, {shed} shed; {calls} bulk calls"
    );
    assert_eq!((found, unknown, shed), (500, 500, 0));
    assert!(calls < 100, "{calls} calls for {CALLERS} requests");
    Ok(())
}
