//! Every store of this crate passes the suite.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use microbatch_durable::{MemoryStore, RedbStore, conformance};

/// Keeps stores by their names. Without a lease time, an opening is that of a new process.
fn memory(make: impl Fn() -> MemoryStore, restarts: bool) -> impl AsyncFn(&str) -> MemoryStore {
    let stores = RefCell::new(HashMap::new());
    async move |name: &str| {
        let mut stores = stores.borrow_mut();
        let store: &mut MemoryStore = stores.entry(name.to_owned()).or_insert_with(&make);
        if restarts {
            store.restart();
        }
        store.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn memory_without_a_lease_time() {
    conformance::run(memory(MemoryStore::new, true)).await;
}

#[tokio::test(start_paused = true)]
async fn memory_with_a_lease_time() {
    let make = || {
        MemoryStore::builder()
            .lease_time(Duration::from_secs(3))
            .build()
    };
    conformance::run(memory(make, false)).await;
}

#[tokio::test]
async fn redb() {
    let folder = tempfile::tempdir().unwrap();
    conformance::run(async |name: &str| RedbStore::open(folder.path().join(name)).await.unwrap())
        .await;
}
