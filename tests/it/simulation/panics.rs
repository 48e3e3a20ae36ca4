//! The panics that a scenario asks for, and those that it does not.

use std::cell::Cell;
use std::io::{Write, stderr};
use std::sync::Once;

const EXPECTED: &str = "expected: ";

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Panics as the scenario has it.
pub(crate) fn panic_as_expected(message: &str) -> ! {
    std::panic::panic_any(message.to_owned())
}

pub(crate) fn of_job(id: usize) -> String {
    format!("{EXPECTED}weighing job {id}")
}

pub(crate) fn of_batch(number: usize) -> String {
    format!("{EXPECTED}batch {number}")
}

pub(crate) fn of_hook(number: usize) -> String {
    format!("{EXPECTED}the hook of batch {number}")
}

pub(crate) fn of_storage(doing: &str) -> String {
    format!("{EXPECTED}the storage, {doing}")
}

/// Keeps quiet about the panics that a scenario asks for, and tells the seed of
/// any other, which may be the last thing this process tells.
pub(crate) fn watch(seed: Option<u64>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload().downcast_ref::<String>();
            if message.is_some_and(|message| message.starts_with(EXPECTED)) {
                return;
            }
            if let Some(seed) = SEED.take() {
                // Past the test harness. Without a stderr the message is lost.
                let _ = writeln!(stderr(), "seed {seed}, replay with\n{}", replay(seed));
            }
            default(panic);
        }));
    });
    SEED.set(seed);
}

/// The command that replays a seed.
pub(crate) fn replay(seed: u64) -> String {
    format!("SIM_SEED={seed} cargo test --test it seed_from_the_environment -- --nocapture")
}
