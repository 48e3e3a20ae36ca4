//! The store on SQLite that the examples show, in a temporary folder.

use std::time::Duration;

use tempfile::TempDir;

use crate::engine::Engine;
use crate::store::SqliteStore;

pub(crate) struct Sqlite(TempDir);

impl Engine for Sqlite {
    type Store = SqliteStore;

    const NAME: &'static str = "sqlite";

    fn make() -> Option<Self> {
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn place(&self) -> String {
        let file = self.0.path().join("jobs.sqlite");
        file.to_str().expect("a path in UTF-8").to_owned()
    }

    async fn open(place: &str, lease_time: Duration) -> SqliteStore {
        SqliteStore::open(place, lease_time).unwrap()
    }
}
