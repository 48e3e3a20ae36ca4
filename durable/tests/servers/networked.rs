//! What the tests ask of a store with a server.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use crate::crew::Shared;

pub(crate) trait Networked: Shared {
    /// Makes one that has a server of its own.
    fn make_own() -> Option<Self>;

    /// Kills the server (SIGKILL).
    fn kill(&self);

    /// Starts it again, on the same folder and port.
    fn restart(&self);

    fn address(&self) -> SocketAddr;

    /// Where it is found by way of another address, and how long a call may take then.
    fn place_at(&self, address: SocketAddr, call_timeout: Duration) -> String;
}

/// Says so past the test harness, which keeps what a test that passes prints.
pub(crate) fn say_left_out(what: &str) {
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {what}");
}
