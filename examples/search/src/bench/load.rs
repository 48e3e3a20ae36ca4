//! Callers who wait for an answer all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::median;
use crate::{Counted, Error, Search};

/// What a run gave.
pub struct Outcome {
    /// Answers a second.
    pub rate: f64,
    /// Milliseconds of a processor for each answer, of all threads.
    pub processor_ms: f64,
    /// What the callers saw, in milliseconds.
    latencies: Vec<f64>,
    /// What was computed.
    pub counted: Counted,
}

const WARMING: usize = 0;
const MEASURING: usize = 1;
const ENDED: usize = 2;

/// Has so many callers ask one query after the other, measures for that long once it is
/// warm, and stops the search.
pub async fn run(
    search: &Arc<Search>,
    texts: &Arc<[String]>,
    callers: usize,
    time: Duration,
) -> Result<Outcome, Error> {
    let phase = Arc::new(AtomicUsize::new(WARMING));
    // One permit for each answer.
    let answers = Arc::new(Semaphore::new(0));
    let mut tasks = Vec::new();
    for caller in 0..callers {
        let (search, texts) = (Arc::clone(search), Arc::clone(texts));
        let (phase, answers) = (Arc::clone(&phase), Arc::clone(&answers));
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            // Each caller starts somewhere else.
            let start = caller * texts.len() / callers;
            for text in texts.iter().cycle().skip(start) {
                let asked = Instant::now();
                if let Err(error) = search.search(text).await {
                    answers.close();
                    return Err(error);
                }
                answers.add_permits(1);
                match phase.load(Ordering::Relaxed) {
                    WARMING => {}
                    MEASURING => latencies.push(asked.elapsed().as_secs_f64() * 1e3),
                    _ => break,
                }
            }
            Ok::<_, Error>(latencies)
        }));
    }
    // Each part lasts until there were as many answers as there are callers, or until a
    // search failed, which is told below.
    let enough = async || answers.acquire_many(callers as u32).await.map(drop);
    let _ = tokio::join!(sleep(time / 5), enough());
    answers.forget_permits(answers.available_permits());
    phase.store(MEASURING, Ordering::Relaxed);
    let (started, processor) = (Instant::now(), ProcessTime::now());
    let _ = tokio::join!(sleep(time), enough());
    phase.store(ENDED, Ordering::Relaxed);
    let (measured, processor) = (started.elapsed(), processor.elapsed());
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.map_err(Error::compute)??);
    }
    search.stop().await.map_err(Error::compute)?;
    let answers = latencies.len() as f64;
    Ok(Outcome {
        rate: answers / measured.as_secs_f64(),
        processor_ms: processor.as_secs_f64() * 1e3 / answers,
        latencies,
        counted: search.counted(),
    })
}

/// The runs of one way.
pub struct Summary {
    rounds: Vec<Outcome>,
    /// Of all rounds, in order.
    latencies: Vec<f64>,
}

impl Summary {
    pub fn of(rounds: Vec<Outcome>) -> Self {
        let latencies = rounds.iter().flat_map(|outcome| &outcome.latencies);
        let mut latencies: Vec<f64> = latencies.copied().collect();
        latencies.sort_by(f64::total_cmp);
        Self { rounds, latencies }
    }

    /// Returns the median answers a second.
    pub fn rate(&self) -> f64 {
        median(self.rounds.iter().map(|outcome| outcome.rate).collect())
    }

    /// Returns the median milliseconds of a processor for an answer.
    pub fn processor_ms(&self) -> f64 {
        let rounds = self.rounds.iter();
        median(rounds.map(|outcome| outcome.processor_ms).collect())
    }

    /// Returns how many cores computed, in the median.
    pub fn cores(&self) -> f64 {
        let rounds = self.rounds.iter();
        median(
            rounds
                .map(|outcome| outcome.rate * outcome.processor_ms / 1e3)
                .collect(),
        )
    }

    /// Returns the median ratio of this way's figure to the other's of the same round.
    pub fn times(&self, other: &Self, figure: impl Fn(&Outcome) -> f64) -> f64 {
        let pairs = self.rounds.iter().zip(&other.rounds);
        median(pairs.map(|(a, b)| figure(a) / figure(b)).collect())
    }

    /// Returns what this part of all answers took at most, in milliseconds.
    pub fn percentile(&self, part: f64) -> f64 {
        let place = (self.latencies.len() as f64 * part) as usize;
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(place.min(last))
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// Returns how many queries a batch had.
    pub fn batch(&self) -> f64 {
        self.ratio(|counted| counted.queries, |counted| counted.batches)
    }

    /// Returns one sum over the rounds, divided by another.
    pub fn ratio(&self, one: impl Fn(&Counted) -> u64, other: impl Fn(&Counted) -> u64) -> f64 {
        let counted = || self.rounds.iter().map(|outcome| &outcome.counted);
        counted().map(one).sum::<u64>() as f64 / counted().map(other).sum::<u64>() as f64
    }
}
