//! The store on a NATS server. Tests that leave the server alone share one, and have a
//! stream each.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use microbatch_durable::JetStreamStore;
use microbatch_nats::{HOW_TO_GET, Options, Program, Server};

use crate::crew::Shared;
use crate::engine::Engine;
use crate::frozen::Freeze;
use crate::ledger::Allowed;
use crate::networked::{Networked, say_left_out};

static SHARED: Mutex<Weak<Mutex<Server>>> = Mutex::new(Weak::new());
static STREAMS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct JetStream {
    server: Arc<Mutex<Server>>,
    stream: String,
}

impl JetStream {
    fn on(server: Arc<Mutex<Server>>) -> Self {
        let stream = format!("test{}", STREAMS.fetch_add(1, Ordering::Relaxed));
        Self { server, stream }
    }
}

/// 2.9.10, when it is started again, may take all that is in the stream for done, and deliver
/// none of it.
const SURVIVES: (u32, u32, u32) = (2, 10, 0);

fn program() -> Option<Program> {
    let program = microbatch_nats::program();
    if program.is_none() {
        say_left_out(&format!(
            "JetStreamStore. There is no NATS server; {HOW_TO_GET}"
        ));
    }
    program
}

fn start(program: &Program) -> Arc<Mutex<Server>> {
    // A process that is killed leaves what it wrote to the system.
    let server = Server::start(program, Options::default()).unwrap();
    Arc::new(Mutex::new(server))
}

impl Engine for JetStream {
    type Store = JetStreamStore;

    const NAME: &'static str = "jetstream";

    fn make() -> Option<Self> {
        let mut shared = SHARED.lock().unwrap();
        if let Some(server) = shared.upgrade() {
            return Some(Self::on(server));
        }
        let server = start(&program()?);
        *shared = Arc::downgrade(&server);
        Some(Self::on(server))
    }

    fn place(&self) -> String {
        self.place_at(self.address(), Duration::from_secs(2))
    }

    async fn open(place: &str, lease_time: Duration) -> JetStreamStore {
        let words: Vec<_> = place.split(' ').collect();
        let [address, stream, call_timeout] = words[..] else {
            panic!("{place}");
        };
        JetStreamStore::builder()
            .stream(stream)
            .lease_time(lease_time)
            // Longer than the tests last, so that an id is appended once.
            .dedup_window(Duration::from_secs(86_400))
            .call_timeout(Duration::from_millis(call_timeout.parse().unwrap()))
            .connect(format!("nats://{address}"))
            .await
            .unwrap()
    }
}

impl Freeze for JetStream {
    // The server has one for all.
    const LEASE_TIMES: [Duration; 2] = [Duration::from_secs(2); 2];
}

impl Shared for JetStream {
    const ALLOWED: Allowed = Allowed {
        // It writes who has what ten times a second.
        forgets: Duration::from_millis(100),
        // A third of the time of a lease.
        keeps: Duration::from_millis(500),
        has_no_fence: true,
    };
}

impl Networked for JetStream {
    fn make_own() -> Option<Self> {
        let program = program()?;
        if program.version < SURVIVES {
            let version = program.version;
            say_left_out(&format!(
                "JetStreamStore where a server of {version:?} is killed; {HOW_TO_GET}"
            ));
            return None;
        }
        Some(Self::on(start(&program)))
    }

    fn kill(&self) {
        self.server.lock().unwrap().kill().unwrap();
    }

    fn restart(&self) {
        self.server.lock().unwrap().restart().unwrap();
    }

    fn address(&self) -> SocketAddr {
        let url = self.server.lock().unwrap().url();
        let (_, address) = url.rsplit_once('/').unwrap();
        address.parse().unwrap()
    }

    fn place_at(&self, address: SocketAddr, call_timeout: Duration) -> String {
        format!("{address} {} {}", self.stream, call_timeout.as_millis())
    }
}
