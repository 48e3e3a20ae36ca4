//! Any options: refused by name, or a batcher that works.

#![no_main]
#![forbid(unsafe_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../it/options.rs"]
mod options;

fuzz_target!(|bytes: &[u8]| {
    if let Err(wrong) = options::run(bytes) {
        panic!("{wrong}");
    }
});
