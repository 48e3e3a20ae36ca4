//! Any scenario of the simulation, judged by its model.

#![no_main]
#![forbid(unsafe_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../it"]
mod it {
    #[allow(dead_code, reason = "the tests use all of it")]
    pub(crate) mod simulation;
}

fuzz_target!(|bytes: &[u8]| {
    if let Err(wrong) = it::simulation::run_bytes(bytes) {
        panic!("{wrong}");
    }
});
