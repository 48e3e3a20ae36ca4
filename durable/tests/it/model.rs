//! A store answers as a simple model of it does, whatever is done in which order.

use std::path::Path;
use std::time::Duration;

use microbatch_durable::{MemoryStore, RedbError, RedbStore, Store};
use proptest::prelude::*;

use crate::shared_model::{Model, Step, Subject, compare, on_disk, steps, within_limit};

impl Subject for MemoryStore {
    type Store = Self;
    const ENDS_LEASES: bool = true;

    fn store(&self) -> &Self {
        self
    }

    async fn crash(self, _: bool) -> Self {
        self.restart();
        self
    }

    fn advance(&self, by: Duration) -> Duration {
        MemoryStore::advance(self, by);
        by
    }
}

struct InFile<'a> {
    store: RedbStore,
    path: &'a Path,
    dedup_window: Duration,
}

impl<'a> InFile<'a> {
    async fn open(path: &'a Path, dedup_window: Duration) -> Self {
        let builder = RedbStore::builder().dedup_window(dedup_window);
        let store = loop {
            match builder.clone().open(path).await {
                Ok(store) => break store,
                // A store that was dropped is closed a moment later.
                Err(RedbError::InUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        };
        Self {
            store,
            path,
            dedup_window,
        }
    }
}

impl Subject for InFile<'_> {
    type Store = RedbStore;
    const ENDS_LEASES: bool = true;

    fn store(&self) -> &RedbStore {
        &self.store
    }

    async fn crash(self, orderly: bool) -> Self {
        let Self {
            store,
            path,
            dedup_window,
        } = self;
        if orderly {
            store.close().await;
        }
        drop(store);
        Self::open(path, dedup_window).await
    }

    fn advance(&self, _: Duration) -> Duration {
        Duration::ZERO
    }
}

fn compare_memory(lease_time: Option<Duration>, steps: Vec<Step>) {
    within_limit(steps, true, async move |steps, reached| {
        let dedup_window = Duration::from_secs(20);
        let mut builder = MemoryStore::builder().dedup_window(dedup_window);
        if let Some(time) = lease_time {
            builder = builder.lease_time(time);
        }
        let model = Model::new(lease_time, dedup_window);
        compare(builder.build(), model, steps, reached).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_without_a_lease_time(steps in steps()) {
        compare_memory(None, steps);
    }

    #[test]
    fn memory_with_a_lease_time(steps in steps()) {
        compare_memory(Some(Duration::from_secs(5)), steps);
    }
}

#[test]
fn a_file() {
    on_disk(|steps, dedup_window| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.redb");
        within_limit(steps, false, async move |steps, reached| {
            let subject = InFile::open(&path, dedup_window).await;
            compare(subject, Model::new(None, dedup_window), steps, reached).await;
        });
    });
}
