//! A server that all tests of this process share, with a database for each.

use std::io::Write as _;
use std::sync::{Arc, Mutex, Weak};

use microbatch_durable::{PostgresStore, PostgresStoreBuilder};
use microbatch_postgres::Server;
use tokio_postgres::{Client, NoTls};

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// A server, unless there is no PostgreSQL, which is said.
pub(crate) fn server() -> Option<Arc<Server>> {
    let mut shared = SHARED.lock().unwrap();
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let Some(programs) = microbatch_postgres::programs().next() else {
        // Past the test harness, which keeps what a test that passes prints.
        let _ = writeln!(
            std::io::stderr(),
            "LEFT OUT: PostgresStore. There is no `initdb`; Debian's package `postgresql` has it"
        );
        return None;
    };
    let server = Arc::new(Server::start(programs).unwrap());
    *shared = Arc::downgrade(&server);
    Some(server)
}

/// The way to it, as its owner.
pub(crate) fn url(server: &Server) -> String {
    format!("host={} user=postgres", server.socket().display())
}

/// A store with tables of its own.
pub(crate) async fn open(
    server: &Server,
    schema: &str,
    builder: PostgresStoreBuilder,
) -> PostgresStore {
    let store = builder.schema(schema).connect(&url(server)).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// A connection beside the store's.
pub(crate) async fn connect(server: &Server) -> Client {
    let (client, connection) = tokio_postgres::connect(&url(server), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
