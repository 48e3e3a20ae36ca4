//! Nothing: what there is to see is in `tests/traces.rs`.
