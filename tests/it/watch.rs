//! A run that blocks its thread can be reported only by another.

use std::io::{Write, stderr};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// A run takes about a millisecond.
const STUCK: Duration = Duration::from_secs(60);

/// Ends the process, and says where it was stuck, if it does not get on.
pub(crate) struct Watch(Sender<String>);

impl Watch {
    pub(crate) fn start() -> Self {
        let (watch, places) = channel();
        thread::spawn(move || {
            let mut current = String::new();
            loop {
                match places.recv_timeout(STUCK) {
                    Ok(place) => current = place,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        // Past the test harness, which will tell nothing more.
                        let _ = writeln!(stderr(), "stuck at {current}");
                        std::process::exit(101);
                    }
                }
            }
        });
        Self(watch)
    }

    pub(crate) fn at(&self, place: String) {
        self.0.send(place).expect("the watch lives");
    }
}
