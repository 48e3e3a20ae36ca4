//! One batch: decoded, processed, and settled job by job.

use std::sync::Arc;
use std::time::Duration;

use microbatch::{BatchProcessor, CancellationToken};
use tokio::task::{AbortHandle, JoinError, JoinHandle};
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::input::Input;
use super::report::DrainReport;
use super::worker::{Place, Shared};
use crate::codec::Codec;
use crate::job::Leased;
use crate::outcome::{IntoVerdict, Settled, Verdict, describe};
use crate::panics::{catch, panic_message};
use crate::store::Store;

/// What a backoff that panics counts as.
const FALLBACK_PAUSE: Duration = Duration::from_secs(1);

/// How long a processor goes on once all leases are lost.
const LAST_WORD: Duration = Duration::from_millis(250);

/// What the processor said of a batch.
enum Outcome {
    /// A verdict for each job; `None` where the batch failed as a whole.
    Processed(Vec<Option<Verdict>>, Option<String>),
    /// A stop ran out of time, or the runtime ends.
    Stopped,
    /// No lease holds any longer.
    Lost,
}

impl<S, P, C> Shared<S, P, C>
where
    S: Store,
    P: Send + Sync + 'static,
    C: Send + Sync + 'static,
{
    /// Processes and settles jobs that have the same attempt.
    pub(super) async fn process_batch<J, I, R>(
        self: Arc<Self>,
        jobs: Vec<Leased<S::Lease>>,
        place: Place,
        give_back: CancellationToken,
    ) where
        I: Input<J, S::Lease>,
        J: Send + 'static,
        R: IntoVerdict + Send + 'static,
        P: BatchProcessor<I, R>,
        C: Codec<J>,
    {
        let attempt = jobs[0].attempt.get();
        let size = jobs.len();
        let span = tracing::info_span!("batch", name = self.name, size, attempt);
        let verdicts = Arc::clone(&self).verdicts::<J, I, R>(jobs.clone(), attempt);
        let started = Instant::now();
        // A task of its own: whatever users' code does in it, the leases are with us.
        let mut processing = tokio::spawn(verdicts.instrument(span.clone()));
        let _aborted_on_drop = AbortOnDrop(processing.abort_handle());
        let mut lost = vec![false; size];
        let outcome = tokio::select! {
            biased;
            joined = &mut processing => Outcome::from_joined(joined),
            () = give_back.cancelled() => self.abort(processing).await,
            // A processor that has settled them itself is about to return.
            () = self.keep_leases(&jobs, &mut lost) => {
                match timeout(LAST_WORD, &mut processing).await {
                    Ok(joined) => Outcome::from_joined(joined),
                    Err(_) => {
                        processing.abort();
                        Outcome::Lost
                    }
                }
            }
        };
        let took = started.elapsed();
        drop(place.slot);
        self.settle_batch(jobs, &lost, outcome, took, &give_back)
            .instrument(span)
            .await;
        drop(place.turn);
    }

    /// Decodes the jobs and processes them. Runs in a task of its own.
    async fn verdicts<J, I, R>(
        self: Arc<Self>,
        leased: Vec<Leased<S::Lease>>,
        attempt: u32,
    ) -> Outcome
    where
        I: Input<J, S::Lease>,
        J: Send + 'static,
        R: IntoVerdict + Send + 'static,
        P: BatchProcessor<I, R>,
        C: Codec<J>,
    {
        let mut jobs = Vec::with_capacity(leased.len());
        let mut verdicts: Vec<_> = leased
            .iter()
            .map(
                |leased| match self.decode::<J>(&leased.codec, &leased.payload) {
                    Ok(job) => {
                        jobs.push(I::new(job, leased));
                        None
                    }
                    Err(reason) => Some(Verdict::Dead { reason }),
                },
            )
            .collect();
        drop(leased);
        let expected = jobs.len();
        if expected == 0 {
            return Outcome::Processed(verdicts, None);
        }
        let results = match self.processor.process(jobs).await {
            Ok(results) => results,
            Err(error) => return Outcome::Processed(verdicts, Some(describe(&*error.into()))),
        };
        if results.len() != expected {
            let actual = results.len();
            let failure = format!("the processor returned {actual} results for {expected} jobs");
            return Outcome::Processed(verdicts, Some(failure));
        }
        let open = verdicts.iter_mut().filter(|verdict| verdict.is_none());
        for (verdict, result) in open.zip(results) {
            // The others are processed, whatever this one does.
            let said = catch(|| result.into_verdict(attempt));
            *verdict = Some(said.unwrap_or_else(|message| Verdict::Retry {
                after: Duration::ZERO,
                reason: format!("its verdict panicked: {message}"),
            }));
        }
        Outcome::Processed(verdicts, None)
    }

    fn decode<J>(&self, codec: &str, payload: &[u8]) -> Result<J, String>
    where
        C: Codec<J>,
    {
        if codec != C::NAME {
            return Err(format!(
                "written by the codec `{codec}`; this drain reads `{}`",
                C::NAME,
            ));
        }
        let decode = || {
            self.codec
                .decode(payload)
                .map_err(|error| describe(&*error))
        };
        let decoded =
            catch(decode).unwrap_or_else(|message| Err(format!("the codec panicked: {message}")));
        decoded.map_err(|reason| format!("cannot be decoded as `{codec}`: {reason}"))
    }

    /// Ends the processing. What was done in the same moment counts.
    async fn abort(&self, processing: JoinHandle<Outcome>) -> Outcome {
        processing.abort();
        // A processor that blocks its thread cannot be aborted.
        match timeout(self.shutdown_timeout, processing).await {
            Ok(joined) => Outcome::from_joined(joined),
            Err(_) => Outcome::Stopped,
        }
    }

    /// Extends the leases at each third of their time, and marks those that are lost.
    /// Returns once all are.
    async fn keep_leases(&self, jobs: &[Leased<S::Lease>], lost: &mut [bool]) {
        let Some(time) = self.store.lease_time() else {
            return std::future::pending().await;
        };
        let period = (time / 3).max(Duration::from_millis(1));
        let mut pause = period;
        loop {
            sleep(pause).await;
            let (held, leases): (Vec<_>, Vec<_>) = jobs
                .iter()
                .enumerate()
                .filter(|(at, _)| !lost[*at])
                .map(|(at, job)| (at, job.lease.clone()))
                .unzip();
            pause = period;
            let Some(answers) = self.extend(&leases).await else {
                // Soon again: two thirds of the time are left if the first error came at once.
                pause = period / 8;
                continue;
            };
            for (at, answer) in held.into_iter().zip(answers) {
                lost[at] = answer == Settled::Lost;
            }
            if lost.iter().all(|lost| *lost) {
                return;
            }
        }
    }

    async fn settle_batch(
        &self,
        jobs: Vec<Leased<S::Lease>>,
        lost: &[bool],
        outcome: Outcome,
        took: Duration,
        give_back: &CancellationToken,
    ) {
        let attempt = jobs[0].attempt.get();
        let (said, error) = match outcome {
            Outcome::Processed(verdicts, failure) => (verdicts, failure),
            Outcome::Stopped => (vec![Some(Verdict::Release); jobs.len()], None),
            Outcome::Lost => {
                let error = "all leases were lost while it was processed".to_owned();
                (vec![None; jobs.len()], Some(error))
            }
        };
        let mut report = DrainReport {
            size: jobs.len(),
            attempt,
            done: 0,
            retried: 0,
            dead: 0,
            released: 0,
            lost: 0,
            unknown: 0,
            took,
            error: error.as_deref(),
        };
        if let Some(error) = report.error {
            tracing::warn!(error, "the batch failed");
        }
        let failure = report.error.unwrap_or("the processor panicked");
        // Too few only if the batch failed as a whole.
        let said = said.into_iter().chain(std::iter::repeat_with(|| None));
        let (mut sent, mut verdicts) = (Vec::new(), Vec::new());
        for ((job, verdict), lost) in jobs.into_iter().zip(said).zip(lost) {
            match verdict {
                // The processor has settled it.
                Some(Verdict::Settled) => report.done += 1,
                // Done is true whoever has the lease; all else is for its holder to say.
                verdict if *lost && verdict != Some(Verdict::Done) => report.lost += 1,
                verdict => {
                    verdicts.push((
                        job.lease.clone(),
                        self.final_verdict(&job, verdict, failure),
                    ));
                    sent.push(job);
                }
            }
        }
        let answers = self.settle(&verdicts, give_back).await;
        for ((answer, (_, verdict)), job) in answers.iter().zip(&verdicts).zip(&sent) {
            *match (answer, verdict) {
                (Settled::Lost, _) => &mut report.lost,
                (Settled::Unknown, _) => &mut report.unknown,
                (Settled::Held, Verdict::Done | Verdict::Settled) => &mut report.done,
                (Settled::Held, Verdict::Release) => &mut report.released,
                (Settled::Held, Verdict::Retry { after, reason }) => {
                    tracing::debug!(id = %job.id, ?after, reason, "the job will be tried again");
                    &mut report.retried
                }
                (Settled::Held, Verdict::Dead { reason }) => {
                    self.log_dead(job, reason);
                    &mut report.dead
                }
            } += 1;
        }
        if report.lost > 0 {
            let lost = report.lost;
            tracing::warn!(lost, "leases were lost; these jobs may be processed again");
        }
        let mut counts = self.counts();
        let drained = &mut counts.drained;
        drained.batches += 1;
        drained.done += report.done as u64;
        drained.retried += report.retried as u64;
        drained.dead += report.dead as u64;
        drained.released += report.released as u64;
        drained.lost += report.lost as u64;
        drained.unknown += report.unknown as u64;
        drop(counts);
        if let Some(hook) = &self.on_batch
            && let Err(message) = catch(|| hook(&report))
        {
            tracing::error!(message, "`on_batch` panicked");
        }
    }

    /// Applies the backoff and the limit of attempts.
    fn final_verdict(
        &self,
        job: &Leased<S::Lease>,
        verdict: Option<Verdict>,
        failure: &str,
    ) -> Verdict {
        let attempt = job.attempt.get();
        let reason = failure.to_owned();
        match verdict.unwrap_or(Verdict::Retry {
            after: Duration::ZERO,
            reason,
        }) {
            Verdict::Retry { reason, .. } if attempt >= self.limits.max_attempts => {
                let reason = format!("failed alone on attempt {attempt}, its last: {reason}");
                Verdict::Dead { reason }
            }
            Verdict::Retry { after, reason } => {
                let pause = catch(|| (self.backoff)(attempt)).unwrap_or(FALLBACK_PAUSE);
                Verdict::Retry {
                    after: after.max(pause),
                    reason,
                }
            }
            Verdict::Dead { reason } if reason.is_empty() => {
                let reason = "declared dead by the processor, without a reason".to_owned();
                Verdict::Dead { reason }
            }
            verdict => verdict,
        }
    }
}

impl Outcome {
    fn from_joined(joined: Result<Self, JoinError>) -> Self {
        match joined.map_err(JoinError::try_into_panic) {
            Ok(outcome) => outcome,
            Err(Ok(panic)) => {
                let message = panic_message(panic);
                Self::Processed(
                    Vec::new(),
                    Some(format!("the processor panicked: {message}")),
                )
            }
            Err(Err(_)) => Self::Stopped,
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
