//! What the stage needs of a server and of the store on it.

use std::path::PathBuf;
use std::time::Duration;

use microbatch_durable::{CancellationToken, DrainReport, Drained, Store};
use serde::{Deserialize, Serialize};

use super::flights::Flight;
use super::found::Found;
use super::message::Message;
use super::options::Which;

/// Batches that a worker has at a time: one is leased while another is written.
pub(crate) const IN_FLIGHT: usize = 2;

/// Where a run takes place, as every process of it knows it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) url: String,
    /// Of what this run makes on the server.
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) batch_size: usize,
    /// Seconds.
    pub(crate) lease_time: u64,
}

impl Place {
    pub(crate) fn lease_time(&self) -> Duration {
        Duration::from_secs(self.lease_time)
    }
}

pub(crate) trait Engine: 'static {
    type Store: Store + Clone;
    /// Stops when it is dropped.
    type Server: Send;

    const WHICH: Which;
    const NAME: &'static str;
    /// What was checked, if all is right.
    const CHECKED: &'static str;

    /// Starts a server, and returns how to reach it.
    fn start() -> anyhow::Result<(Self::Server, String)>;

    /// Connects, and makes what the workers need.
    async fn prepare(place: &Place) -> anyhow::Result<Self::Store>;

    /// Does jobs until it is to stop: what a worker is.
    async fn work(place: &Place, stop: CancellationToken) -> anyhow::Result<Drained>;

    /// Compares what was written with the records.
    async fn check(place: &Place, flights: &[Flight]) -> anyhow::Result<Found>;

    /// Removes from the server what the run has made.
    async fn remove(place: &Place) -> anyhow::Result<()>;
}

/// Tells the parent what became of a batch.
pub(crate) fn report(batch: &DrainReport<'_>) {
    Message::Settled {
        done: batch.done as u64,
        attempt: batch.attempt,
        error: batch.error.map(str::to_owned),
    }
    .send();
}
