//! What users change while a micro-batcher runs: settings, pauses and permits.

mod pause;
mod permits;
mod settings;
mod weak;
