//! What the crate promises, one module per behaviour.
//!
//! Time is virtual and the doubles are gates that a test opens, so nothing
//! sleeps to let things happen. The few tests that need threads of their own
//! wait for events, never for time.

mod acceptance;
mod after_burst;
mod batching;
mod build;
mod burst;
mod cancel_on_drop;
mod corpus;
mod crowd;
mod decorators;
mod edge;
mod errors;
mod face;
mod failure;
mod field;
#[cfg(feature = "fine-timer")]
mod fine_timer;
mod flush;
mod flush_cost;
mod handle;
mod idle;
mod interval;
mod keyed;
mod large;
mod layout;
mod live;
mod loops;
mod mass_withdrawal;
mod narrow;
mod observe;
mod options;
mod queue;
mod simulation;
mod start;
mod stop;
mod storage;
mod stream;
mod stress;
mod support;
mod threads;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "tracked")]
mod tracked;
mod wakers;
mod watch;
mod weight;
