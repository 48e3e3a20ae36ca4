//! Servers and stores of the tests.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

use microbatch_durable::{JetStreamStore, JetStreamStoreBuilder};
use microbatch_nats::{HOW_TO_GET, Options, Program, Server, program, programs};

/// The oldest version that is supported.
pub(crate) const FLOOR: (u32, u32, u32) = (2, 9, 0);

/// Says it once, and so that it is seen when the test passes.
fn tell_left_out(why: &'static str) {
    static TOLD: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap().insert(why) {
        let _ = writeln!(
            std::io::stderr(),
            "\nLEFT OUT: {why}. To have one, {HOW_TO_GET}."
        );
    }
}

/// A server of the newest version that can be had.
pub(crate) fn server(options: Options) -> Option<Server> {
    let Some(program) = program() else {
        tell_left_out("JetStreamStore, as there is no NATS server");
        return None;
    };
    Some(Server::start(&program, options).unwrap())
}

/// A server's program of 2.10 or later, or of the floor.
pub(crate) fn newer_or_floor(newer: bool) -> Option<Program> {
    let mut programs = programs();
    programs.sort_by_key(|program| program.version);
    let found = match newer {
        true => programs.pop().filter(|found| found.version >= (2, 10, 0)),
        false => programs
            .into_iter()
            .find(|found| (FLOOR.0, FLOOR.1) == (found.version.0, found.version.1)),
    };
    if found.is_none() {
        tell_left_out(match newer {
            true => "JetStreamStore on a server of 2.10 or later",
            false => "the suite of JetStreamStore on its oldest server, 2.9",
        });
    }
    found
}

/// A store with a short lease time.
pub(crate) fn builder() -> JetStreamStoreBuilder {
    JetStreamStore::builder()
        .lease_time(Duration::from_secs(3))
        .call_timeout(Duration::from_secs(5))
}

pub(crate) async fn open(server: &Server) -> JetStreamStore {
    builder().connect(server.url()).await.unwrap()
}
