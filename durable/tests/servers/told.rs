//! A store whose process says, a line each, what it leases, extends and settles, with the
//! time of this machine's clock that no process can set.

use std::time::Duration;

use microbatch_durable::{Appended, Depth, JobId, Leased, NewJob, Settled, Store, Verdict};
use rustix::time::{ClockId, clock_gettime};

use crate::child::say;

/// Microseconds, the same in all processes.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

#[derive(Debug, Clone)]
pub(crate) struct Told<S>(pub(crate) S);

#[derive(Debug, Clone)]
pub(crate) struct ToldLease<L> {
    id: JobId,
    attempt: u32,
    pub(crate) lease: L,
}

/// Says of each lease a line with a beginning.
fn say_all<'a, L: 'a>(lines: impl Iterator<Item = (String, &'a ToldLease<L>)>) {
    let lines: Vec<_> = lines
        .map(|(line, lease)| format!("{line} {} {}", lease.attempt, lease.id))
        .collect();
    say(lines.join("\n"));
}

impl<S: Store> Store for Told<S> {
    type Lease = ToldLease<S::Lease>;
    type Error = S::Error;

    async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, S::Error> {
        self.0.append(jobs).await
    }

    async fn lease(&self, max: usize) -> Result<Vec<Leased<Self::Lease>>, S::Error> {
        let asked = now();
        let leased = self.0.lease(max).await?;
        assert!(leased.len() <= max);
        let leased: Vec<_> = leased
            .into_iter()
            .map(|job| Leased {
                lease: ToldLease {
                    id: job.id.clone(),
                    attempt: job.attempt.get(),
                    lease: job.lease,
                },
                id: job.id,
                attempt: job.attempt,
                codec: job.codec,
                payload: job.payload,
                appended: job.appended,
            })
            .collect();
        let at = now();
        say_all(
            leased
                .iter()
                .map(|job| (format!("leased {at} {asked}"), &job.lease)),
        );
        Ok(leased)
    }

    async fn settle(&self, verdicts: &[(Self::Lease, Verdict)]) -> Result<Vec<Settled>, S::Error> {
        let asked = now();
        say_all(
            verdicts
                .iter()
                .map(|(lease, verdict)| (format!("settling {asked} {}", word(verdict)), lease)),
        );
        let inner: Vec<_> = verdicts
            .iter()
            .map(|(lease, verdict)| (lease.lease.clone(), verdict.clone()))
            .collect();
        let answers = self.0.settle(&inner).await?;
        let at = now();
        say_all(
            answers
                .iter()
                .zip(verdicts)
                .map(|(answer, (lease, verdict))| {
                    (
                        format!("settled {at} {asked} {} {answer:?}", word(verdict)),
                        lease,
                    )
                }),
        );
        Ok(answers)
    }

    async fn extend(&self, leases: &[Self::Lease]) -> Result<Vec<Settled>, S::Error> {
        let asked = now();
        let inner: Vec<_> = leases.iter().map(|lease| lease.lease.clone()).collect();
        let answers = self.0.extend(&inner).await?;
        let at = now();
        say_all(
            answers
                .iter()
                .zip(leases)
                .map(|(answer, lease)| (format!("extended {at} {asked} {answer:?}"), lease)),
        );
        Ok(answers)
    }

    fn lease_time(&self) -> Option<Duration> {
        self.0.lease_time()
    }

    async fn depth(&self) -> Result<Depth, S::Error> {
        self.0.depth().await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Done => "done",
        Verdict::Dead { .. } => "dead",
        Verdict::Retry { .. } => "retry",
        Verdict::Release => "release",
        Verdict::Settled => "left",
    }
}
