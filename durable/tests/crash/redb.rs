//! The store in a file, in a temporary folder.

use std::time::Duration;

use microbatch_durable::RedbStore;
use tempfile::TempDir;

use crate::engine::Engine;

pub(crate) struct Redb(TempDir);

impl Engine for Redb {
    type Store = RedbStore;

    const NAME: &'static str = "redb";

    fn make() -> Option<Self> {
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn place(&self) -> String {
        let file = self.0.path().join("jobs.redb");
        file.to_str().expect("a path in UTF-8").to_owned()
    }

    async fn open(place: &str, _: Duration) -> RedbStore {
        RedbStore::open(place).await.unwrap()
    }
}
