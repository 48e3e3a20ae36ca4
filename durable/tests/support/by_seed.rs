//! A processor that fails some jobs and some batches, and panics, by seed. It says of each
//! job that it begins and what became of it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use microbatch::BatchProcessor;
use microbatch_durable::{IntoVerdict, Verdict};

use crate::child::say;

/// The limit of the drains that use it.
pub(crate) const MAX_ATTEMPTS: u32 = 6;

/// Whether a job that it processes may be dead for this reason.
pub(crate) fn is_reason(reason: &str) -> bool {
    let reasons = [
        "dead, by seed",
        "failed alone on attempt 6, its last: ",
        "delivered 6 times and never settled: its process died each time",
    ];
    reasons.iter().any(|known| reason.starts_with(known))
}

pub(crate) struct BySeed {
    rng: Mutex<Rng>,
    longest: Duration,
}

impl BySeed {
    /// A batch takes `longest` at most.
    pub(crate) fn new(rng: Rng, longest: Duration) -> Self {
        let rng = Mutex::new(rng);
        Self { rng, longest }
    }
}

impl BatchProcessor<String, Processed> for BySeed {
    type Error = Fails;

    async fn process(&self, jobs: Vec<String>) -> Result<Vec<Processed>, Fails> {
        let mut rng = self
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fork();
        let processed = process(&mut rng, jobs);
        tokio::time::sleep(self.longest.mul_f64(rng.f64())).await;
        processed
    }
}

/// What it makes of a job.
pub(crate) struct Processed {
    id: String,
    verdict: Verdict,
}

impl IntoVerdict for Processed {
    fn into_verdict(self, attempt: u32) -> Verdict {
        let verdict = match &self.verdict {
            Verdict::Done => "done",
            Verdict::Retry { .. } => "retry",
            _ => "dead",
        };
        say(format!("did {} {attempt} {verdict}", self.id));
        self.verdict
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the batch fails by seed")]
pub(crate) struct Fails;

fn process(rng: &mut Rng, jobs: Vec<String>) -> Result<Vec<Processed>, Fails> {
    for id in &jobs {
        say(format!("begin {id}"));
    }
    match rng.u32(..40) {
        0 => return Err(Fails),
        1 => panic!("a panic by seed"),
        _ => {}
    }
    let mut verdict = || match rng.u32(..60) {
        0..4 => Verdict::Retry {
            after: Duration::ZERO,
            reason: "again, by seed".to_owned(),
        },
        4 => Verdict::Dead {
            reason: "dead, by seed".to_owned(),
        },
        _ => Verdict::Done,
    };
    let processed = jobs.into_iter().map(|id| Processed {
        id,
        verdict: verdict(),
    });
    Ok(processed.collect())
}
