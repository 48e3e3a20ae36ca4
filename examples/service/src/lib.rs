//! A web service with and without micro-batches, and a page that shows both.
//!
//! ```text
//! POST /flights/row-by-row ─▶ inserts::RowByRow ── one commit a row ──┐
//! POST /flights ────────────▶ inserts::Batched ─── MicroBatch ────────┼─▶ store
//! POST /flights/later ──────▶ Later ── Durable ─▶ file ─▶ Drain ──────┤
//! GET  /flights/{id} ───────▶ MicroBatch over `coalesce` ─────────────┘
//! GET  / ◀── events ◀── sample, four times a second
//! POST /settings, /load, /burst, /stop ── from the page's own origin ─▶ controls
//! ```

#![forbid(unsafe_code)]

pub mod app;
pub mod batches;
pub mod callers;
mod controls;
pub mod error;
pub mod events;
pub mod flight;
mod flights;
pub mod inserts;
pub mod later;
pub mod meter;
mod metrics;
mod page;
pub mod routes;
pub mod serve;
pub mod settings;
pub mod store;
