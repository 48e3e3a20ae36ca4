//! How to use this crate well, in short chapters.
//!
//! Each chapter opens with a program that runs, and all of them are run by the tests.
//! This module has no items.
//!
//! **Setting up**
//!
//! - [`choosing`]: size, interval and batches in flight, by measuring
//! - [`backpressure`]: from one end to the other; streams; refusing
//! - [`errors`]: of a batch, of a job, tried again, split; which order costs what
//! - [`deadlines`]: of a caller, of a batch, of a stop
//!
//! **Running it**
//!
//! - [`live`]: changing settings, pausing, permits
//! - [`observing`]: what the figures mean, metrics, traces, sampling
//! - [`testing`]: your own code, in virtual time
//! - [`stopping`]: stages in order, signals, threads
//! - [`scaling`]: past one loop
//! - [`models`]: batched inference
//! - [`outliving`]: jobs on disk, which a process that dies does not lose
//! - [`past_one_machine`]: one backlog that many processes drain
//!
//! **Coming from elsewhere**
//!
//! - [`from_tower`], [`from_dataloader`], [`from_batchers`] (`batch-aint-one`,
//!   `ultra-batch`, `batched`), [`from_go`]
//!
//! **Deciding**
//!
//! - [`guarantees`]: and the evidence
//! - [`comparison`]: with peers, in full

// The chapters share one list of links, `guide/links.md`.

#[doc = include_str!("guide/choosing.md")]
#[doc = include_str!("guide/links.md")]
pub mod choosing {}

#[doc = include_str!("guide/backpressure.md")]
#[doc = include_str!("guide/links.md")]
pub mod backpressure {}

#[doc = include_str!("guide/errors.md")]
#[doc = include_str!("guide/links.md")]
pub mod errors {}

#[doc = include_str!("guide/deadlines.md")]
#[doc = include_str!("guide/links.md")]
pub mod deadlines {}

#[doc = include_str!("guide/live.md")]
#[doc = include_str!("guide/links.md")]
pub mod live {}

#[doc = include_str!("guide/observing.md")]
#[doc = include_str!("guide/links.md")]
pub mod observing {}

#[doc = include_str!("guide/testing.md")]
#[doc = include_str!("guide/links.md")]
pub mod testing {}

#[doc = include_str!("guide/stopping.md")]
#[doc = include_str!("guide/links.md")]
pub mod stopping {}

#[doc = include_str!("guide/scaling.md")]
#[doc = include_str!("guide/links.md")]
pub mod scaling {}

#[doc = include_str!("guide/models.md")]
#[doc = include_str!("guide/links.md")]
pub mod models {}

// The programs of two chapters need `microbatch-durable`, whose doctests run them.
#[cfg_attr(not(doctest), doc = include_str!("guide/outliving.md"))]
#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
pub mod outliving {}

#[cfg_attr(not(doctest), doc = include_str!("guide/past_one_machine.md"))]
#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
pub mod past_one_machine {}

#[doc = include_str!("guide/from_tower.md")]
#[doc = include_str!("guide/links.md")]
pub mod from_tower {}

#[doc = include_str!("guide/from_dataloader.md")]
#[doc = include_str!("guide/links.md")]
pub mod from_dataloader {}

#[doc = include_str!("guide/from_batchers.md")]
#[doc = include_str!("guide/links.md")]
pub mod from_batchers {}

#[doc = include_str!("guide/from_go.md")]
#[doc = include_str!("guide/links.md")]
pub mod from_go {}

#[doc = include_str!("guide/guarantees.md")]
#[doc = include_str!("guide/links.md")]
pub mod guarantees {}

#[doc = include_str!("guide/comparison.md")]
#[doc = include_str!("guide/links.md")]
pub mod comparison {}
