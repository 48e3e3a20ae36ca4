//! The store in a PostgreSQL database. Tests that leave the server alone share one, and have
//! a schema each.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use microbatch_durable::{PostgresStore, PostgresStoreBuilder};
use microbatch_postgres::Server;

use crate::crew::Shared;
use crate::engine::Engine;
use crate::frozen::Freeze;
use crate::networked::{Networked, say_left_out};

static SHARED: Mutex<Weak<Mutex<Server>>> = Mutex::new(Weak::new());
static SCHEMAS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Postgres {
    server: Arc<Mutex<Server>>,
    schema: String,
}

impl Postgres {
    fn on(server: Arc<Mutex<Server>>) -> Self {
        let schema = format!("test{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
        Self { server, schema }
    }

    pub(crate) fn url(place: &str) -> String {
        let [port, ..] = words(place);
        format!("host=127.0.0.1 port={port} user=postgres")
    }
}

fn start() -> Option<Arc<Mutex<Server>>> {
    let Some(programs) = microbatch_postgres::programs().next() else {
        say_left_out("PostgresStore. There is no `initdb`; Debian's package `postgresql` has it");
        return None;
    };
    let server = Server::start_on_port(programs).unwrap();
    Some(Arc::new(Mutex::new(server)))
}

impl Engine for Postgres {
    type Store = PostgresStore;

    const NAME: &'static str = "postgres";

    fn make() -> Option<Self> {
        let mut shared = SHARED.lock().unwrap();
        if let Some(server) = shared.upgrade() {
            return Some(Self::on(server));
        }
        let server = start()?;
        *shared = Arc::downgrade(&server);
        Some(Self::on(server))
    }

    fn place(&self) -> String {
        self.place_at(self.address(), Duration::from_secs(10))
    }

    async fn open(place: &str, lease_time: Duration) -> PostgresStore {
        let [port, schema, call_timeout] = words(place);
        let call_timeout = Duration::from_millis(call_timeout.parse().unwrap());
        let builder = options(schema, lease_time).call_timeout(call_timeout);
        connect(builder, port.parse().unwrap()).await
    }
}

impl Freeze for Postgres {}

impl Shared for Postgres {}

impl Networked for Postgres {
    fn make_own() -> Option<Self> {
        start().map(Self::on)
    }

    fn kill(&self) {
        self.server.lock().unwrap().kill().unwrap();
    }

    fn restart(&self) {
        self.server.lock().unwrap().restart().unwrap();
    }

    fn address(&self) -> SocketAddr {
        let port = self.server.lock().unwrap().port().unwrap();
        (Ipv4Addr::LOCALHOST, port).into()
    }

    fn place_at(&self, address: SocketAddr, call_timeout: Duration) -> String {
        let call_timeout = call_timeout.as_millis();
        format!("{} {} {call_timeout}", address.port(), self.schema)
    }
}

/// Port, schema, and how long a call may take in milliseconds.
fn words(place: &str) -> [&str; 3] {
    let words: Vec<_> = place.split(' ').collect();
    words.try_into().expect("three words")
}

fn options(schema: &str, lease_time: Duration) -> PostgresStoreBuilder {
    PostgresStore::builder()
        .schema(schema)
        .lease_time(lease_time)
        // Longer than the tests last, so that an id is appended once.
        .dedup_window(Duration::from_secs(86_400))
}

async fn connect(builder: PostgresStoreBuilder, port: u16) -> PostgresStore {
    let url = format!("host=127.0.0.1 port={port} user=postgres");
    let store = builder.connect(&url).await.unwrap();
    store.migrate().await.unwrap();
    store
}
