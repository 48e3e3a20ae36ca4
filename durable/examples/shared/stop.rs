//! How the processes are told to stop: the parent by Ctrl-C, a worker by the end of its
//! input, and by Ctrl-C, which reaches it as well.

use std::io::{self, Read};
use std::thread;

use microbatch_durable::CancellationToken;

/// What a shell says of a program that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// Cancels at the first Ctrl-C.
pub(crate) async fn stop_on_ctrl_c(stop: CancellationToken) {
    // Without a handler Ctrl-C ends the program, which is fine.
    if tokio::signal::ctrl_c().await.is_ok() {
        stop.cancel();
    }
}

/// Cancels when the parent closes its end of our input, as its death does too, and at
/// Ctrl-C.
pub(crate) fn stop_with_parent(stop: &CancellationToken) {
    let parent_gone = stop.clone();
    // Not on the runtime, which would wait for it.
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        parent_gone.cancel();
    });
    tokio::spawn(stop_on_ctrl_c(stop.clone()));
}
