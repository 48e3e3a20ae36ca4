//! The suite that every store passes.

use std::time::Duration;

use microbatch_durable::{PostgresStore, conformance};

use crate::server::{open, server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    let Some(server) = server() else {
        return;
    };
    let make_store = async |name: &str| {
        let builder = PostgresStore::builder()
            .lease_time(Duration::from_secs(3))
            .queue(name);
        open(&server, "suite", builder).await
    };
    conformance::run(make_store).await;
}
