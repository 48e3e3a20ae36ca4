//! The store on SQLite that the examples show: what it does, and two processes on one file
//! of which one is frozen for longer than its lease.
#![forbid(unsafe_code)]

/// Makes tests of generic functions, and the child that they start.
#[cfg(unix)]
macro_rules! on_each_frozen {
    (tests: $($test:ident),*; child: $child:ident;) => {
        mod sqlite {
            use crate::sqlite::Sqlite;

            $(#[test]
            fn $test() {
                super::$test::<Sqlite>();
            })*

            #[test]
            #[ignore = "the child of the tests beside it"]
            fn child() {
                super::$child::<Sqlite>();
            }
        }
    };
}

#[cfg(unix)]
#[path = "../support/child.rs"]
mod child;
mod direct;
#[cfg(unix)]
#[path = "../support/engine.rs"]
mod engine;
#[cfg(unix)]
#[path = "../support/frozen.rs"]
mod frozen;
#[cfg(unix)]
#[path = "../support/sqlite.rs"]
mod sqlite;
#[path = "../../examples/sqlite_store/store.rs"]
mod store;

/// A process that is stopped in the middle of a transaction keeps the others waiting.
#[cfg(unix)]
impl frozen::Freeze for sqlite::Sqlite {
    fn between_transactions(&self, stop: impl FnOnce()) {
        let sql = rusqlite::Connection::open(engine::Engine::place(self)).unwrap();
        sql.busy_timeout(std::time::Duration::from_secs(60))
            .unwrap();
        sql.execute_batch("BEGIN IMMEDIATE").unwrap();
        stop();
        sql.execute_batch("ROLLBACK").unwrap();
    }
}
