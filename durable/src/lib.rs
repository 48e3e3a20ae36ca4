//! Jobs that outlive the process: submitted durably, leased in batches, processed by any
//! [`BatchProcessor`](microbatch::BatchProcessor), and settled only afterwards.
//!
//! | you want to | look at |
//! | --- | --- |
//! | submit jobs that are on disk once the handle resolves | [`Durable`] |
//! | process them in batches | [`Drain`] |
//! | keep them in one file, without a server | [`RedbStore`] |
//! | share them between machines | `PostgresStore`, `JetStreamStore` (features `postgres`, `nats`) |
//! | test without a disk | [`MemoryStore`] |
//! | write a store, and prove it | [`Store`], [`conformance`] |
//! | test what uses a store, while it fails | [`Faulty`] |
//! | look after what failed | [`DeadLetters`] |
//! | choose how jobs become bytes | [`Codec`], [`Json`] |

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

#[cfg(any(feature = "nats", feature = "postgres"))]
mod asked;
mod codec;
pub mod conformance;
mod drain;
mod durable;
mod faulty;
mod gather;
mod job;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod outcome;
mod panics;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redb")]
mod redb;
mod store;

#[cfg(feature = "messagepack")]
pub use codec::MessagePack;
pub use codec::{Codec, Json};
pub use drain::{Delivery, Drain, DrainBuilder, DrainError, DrainReport, Drained, Input};
pub use durable::{Durable, DurableBuilder};
pub use faulty::{Faulty, FaultyError};
pub use job::{DeadJob, Depth, JobId, Leased, NewJob};
pub use memory::{MemoryLease, MemoryStore, MemoryStoreBuilder};
pub use microbatch::CancellationToken;
#[cfg(feature = "nats")]
pub use nats::{JetStreamError, JetStreamLease, JetStreamStore, JetStreamStoreBuilder};
pub use outcome::{Appended, IntoVerdict, Refusal, Settled, Verdict};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresError, PostgresLease, PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "redb")]
pub use redb::{RedbError, RedbLease, RedbStore, RedbStoreBuilder};
pub use store::{DeadLetters, Promises, Store};

/// The chapter of the guide of `microbatch` that needs this crate.
#[cfg(all(doctest, feature = "redb"))]
#[doc = include_str!("../../src/guide/outliving.md")]
struct GuideChapter;

/// The other one.
#[cfg(all(doctest, feature = "postgres"))]
#[doc = include_str!("../../src/guide/past_one_machine.md")]
struct GuideChapterOfServers;

#[cfg(all(doctest, feature = "redb"))]
#[doc = include_str!("../README.md")]
struct Readme;
