//! The calls of the store, repeated for as long as it fails.

use std::error::Error;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use microbatch::CancellationToken;
use tokio::time::sleep;

use super::worker::Shared;
use crate::job::Leased;
use crate::outcome::{Settled, Verdict};
use crate::panics::catch_async;
use crate::store::Store;

/// A pause after an empty answer of a store, which should have waited instead.
const EMPTY_PAUSE: Duration = Duration::from_millis(10);

impl<S, P, C> Shared<S, P, C>
where
    S: Store,
    P: Send + Sync + 'static,
    C: Send + Sync + 'static,
{
    /// Leases, however often the store fails.
    pub(super) async fn lease(&self, max: usize) -> Vec<Leased<S::Lease>> {
        let mut pauses = store_pauses();
        loop {
            match self.ask("lease", || self.store.lease(max)).await {
                Some(leased) if leased.is_empty() => sleep(EMPTY_PAUSE).await,
                Some(leased) => return leased,
                None => sleep(pauses.next().unwrap_or(EMPTY_PAUSE)).await,
            }
        }
    }

    /// Settles, however often the store fails, until a stop runs out of time. Answers for
    /// each whether its lease held.
    pub(super) async fn settle(
        &self,
        verdicts: &[(S::Lease, Verdict)],
        give_back: &CancellationToken,
    ) -> Vec<Settled> {
        if verdicts.is_empty() {
            return Vec::new();
        }
        let out_of_time = async {
            give_back.cancelled().await;
            sleep(self.shutdown_timeout).await;
        };
        tokio::select! {
            biased;
            answers = self.settle_until_answered(verdicts) => answers,
            () = out_of_time => {
                let jobs = verdicts.len();
                tracing::error!(
                    name = self.name, jobs,
                    "the store did not take the jobs back; they are due when their leases end",
                );
                self.counts().unreleased += jobs;
                vec![Settled::Unknown; jobs]
            }
        }
    }

    async fn settle_until_answered(&self, verdicts: &[(S::Lease, Verdict)]) -> Vec<Settled> {
        let mut pauses = store_pauses();
        let mut repeated = false;
        loop {
            let settle = || self.store.settle(verdicts);
            if let Some(mut answers) = self.ask_for_each("settle", verdicts.len(), settle).await {
                // An earlier call may have settled what this one calls lost.
                for answer in answers.iter_mut().filter(|_| repeated) {
                    if *answer == Settled::Lost {
                        *answer = Settled::Unknown;
                    }
                }
                return answers;
            }
            repeated = true;
            sleep(pauses.next().unwrap_or(EMPTY_PAUSE)).await;
        }
    }

    /// Extends leases, once. Answers for each whether it held.
    pub(super) async fn extend(&self, leases: &[S::Lease]) -> Option<Vec<Settled>> {
        let extend = || self.store.extend(leases);
        self.ask_for_each("extend", leases.len(), extend).await
    }

    /// Calls the store, which must answer for each of so many jobs. Anything else is logged
    /// and counted as its error.
    async fn ask_for_each<T, F>(
        &self,
        name: &str,
        jobs: usize,
        call: impl FnOnce() -> F,
    ) -> Option<Vec<T>>
    where
        F: Future<Output = Result<Vec<T>, S::Error>>,
    {
        let answers = self.ask(name, call).await?;
        if answers.len() == jobs {
            return Some(answers);
        }
        let answers = answers.len();
        self.count_error(name, &WrongCount { answers, jobs });
        None
    }

    /// Calls the store. An error is logged and counted; a panic is one more error, as the
    /// leases of a task that panicked would last as long as the process.
    async fn ask<T, F>(&self, name: &str, call: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, S::Error>>,
    {
        match catch_async(call).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => self.count_error(name, &error),
            Err(message) => self.count_error(name, &Panicked(message)),
        }
        None
    }

    fn count_error(&self, call: &str, error: &(dyn Error + 'static)) {
        tracing::warn!(
            name = self.name,
            call,
            error,
            "the store failed; it is asked again"
        );
        self.counts().drained.store_errors += 1;
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the store panicked: {0}")]
struct Panicked(String);

#[derive(Debug, thiserror::Error)]
#[error("the store answered {answers} times for {jobs} jobs")]
struct WrongCount {
    answers: usize,
    jobs: usize,
}

/// Pauses between two calls of a store that fails: from 20 ms to 5 s, with jitter.
fn store_pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}
