//! What the parent knows: it outlives every worker.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::bail;

use crate::message::Message;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Lines of the records that were acknowledged.
    pub(crate) lines: HashSet<u32>,
    pub(crate) kills: Vec<Kill>,
    /// Records in SQLite, as far as it is known.
    pub(crate) stored: u64,
    /// Records that a worker submitted and the store had already.
    pub(crate) duplicates: u64,
    /// Jobs that were processed with a later attempt than the first.
    pub(crate) redelivered: u64,
    /// Commits of workers that have ended, and of this one.
    commits: (u64, u64),
    pub(crate) took: Duration,
}

/// What there was when a worker was killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kill {
    pub(crate) acknowledged: u64,
    /// Jobs in the store, as the next worker found it.
    pub(crate) waiting: Option<u64>,
    /// Records in SQLite, as the next worker found it.
    pub(crate) stored: Option<u64>,
}

impl Ledger {
    pub(crate) fn acknowledged(&self) -> u64 {
        self.lines.len() as u64
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits.0 + self.commits.1
    }

    /// Notes what a worker said. Fails if it gave up.
    pub(crate) fn note(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Opened { waiting, stored } => {
                self.stored = stored;
                if let Some(kill) = self.kills.last_mut() {
                    kill.waiting = Some(waiting);
                    kill.stored = Some(stored);
                }
            }
            Message::Acknowledged {
                lines,
                duplicates,
                commits,
            } => {
                self.lines.extend(lines);
                self.duplicates += duplicates;
                self.commits.1 = commits;
            }
            Message::Processed { jobs, attempt } => {
                self.stored += jobs;
                if attempt > 1 {
                    self.redelivered += jobs;
                }
            }
            Message::Failed { why } => bail!(why),
        }
        Ok(())
    }

    /// Notes that a worker has ended, and whether it was killed.
    pub(crate) fn end_worker(&mut self, killed: bool) {
        self.commits = (self.commits(), 0);
        if killed {
            self.kills.push(Kill {
                acknowledged: self.acknowledged(),
                waiting: None,
                stored: None,
            });
        }
    }
}
