//! The store passes the suite, on the newest server and on the oldest.

use microbatch_durable::conformance;
use microbatch_nats::{Options, Server};

use crate::support::{builder, newer_or_floor};

async fn run(newer: bool) {
    let Some(program) = newer_or_floor(newer) else {
        return;
    };
    let server = Server::start(&program, Options::default()).unwrap();
    let make_store = async |name: &str| {
        let store = builder().stream(name).connect(server.url()).await;
        store.unwrap()
    };
    conformance::run(make_store).await;
}

#[tokio::test]
async fn on_the_newest_server() {
    run(true).await;
}

#[tokio::test]
async fn on_the_oldest_server() {
    run(false).await;
}
