//! What batches gain: under load, by the length of the texts, and with texts of like
//! length together.

mod lengths;
mod load;
mod mixed;
mod picture;
mod texts;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::progress::Progress;
use crate::{Error, Options, Parts, Search};

use load::{Outcome, Summary};

/// How many callers wait for an answer all the time.
const CALLERS: [usize; 4] = [1, 4, 16, 64];

/// What a batch holds at most, where there are batches.
pub const BATCH: usize = 32;

/// How to measure.
#[derive(Debug, Clone)]
pub struct Bench {
    /// How many batches run at a time, each on a thread of its own.
    pub threads: usize,
    /// How often each load runs.
    pub rounds: usize,
    /// How long it runs.
    pub time: Duration,
    /// Where to draw throughput and latency, if anywhere.
    pub picture: Option<PathBuf>,
}

impl Bench {
    /// Measures, and prints tables to standard output. It must be called in a Tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// Those of [`Search`], and [`Error::Io`] of the picture.
    pub async fn run(&self, parts: &Arc<Parts>) -> Result<(), Error> {
        // First, while there are no other threads.
        lengths::run(parts, self.time)?;
        let loads = self.loads(parts).await?;
        mixed::run(self, parts).await?;
        if let Some(path) = &self.picture {
            let written = fs::write(path, picture::draw(&loads));
            written.map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?;
            println!("\nThe picture is in {}.", path.display());
        }
        Ok(())
    }

    /// Compares one query at a time with batches, at each number of callers.
    async fn loads(&self, parts: &Arc<Parts>) -> Result<Vec<Line>, Error> {
        let texts = texts::short(parts);
        let mut lines = Vec::new();
        let ways = [1, BATCH].map(|max_batch_size| Options {
            threads: self.threads,
            max_batch_size,
            similar: false,
        });
        let mut progress = Progress::new("loads", CALLERS.len() * self.rounds * ways.len());
        let mut done = 0;
        for callers in CALLERS {
            let mut rounds: [Vec<Outcome>; 2] = Default::default();
            for round in 0..self.rounds {
                // There and back, so that what drifts over time is no way's advantage.
                for place in [round % 2, 1 - round % 2] {
                    progress.show(done);
                    let search = Arc::new(Search::start(parts, ways[place]).await?);
                    let outcome = load::run(&search, &texts, callers, self.time).await?;
                    rounds[place].push(outcome);
                    done += 1;
                }
            }
            let [alone, batched] = rounds.map(Summary::of);
            lines.push(Line {
                callers,
                alone,
                batched,
            });
        }
        progress.end();
        self.print(parts, &texts, &lines)?;
        Ok(lines)
    }

    fn print(&self, parts: &Parts, texts: &[String], lines: &[Line]) -> Result<(), Error> {
        let tokens = texts.iter().map(|text| parts.tokenizer.encode(text));
        let tokens = tokens.map(|tokens| tokens.map(|tokens| tokens.len()));
        let tokens = tokens.sum::<Result<usize, _>>()?;
        println!("\n# One query at a time, and batches of up to {BATCH}");
        println!();
        println!(
            "{} definitions, queries of six words ({:.1} tokens); the same {} in both ways; \
             medians of {} rounds of {:.1} s.",
            parts.nouns.len(),
            tokens as f64 / texts.len() as f64,
            match self.threads {
                1 => "thread".to_owned(),
                threads => format!("{threads} threads"),
            },
            self.rounds,
            self.time.as_secs_f64()
        );
        println!(
            "\n| callers | way | batch | queries/s | × | p50 ms | p99 ms | cores | \
             processor ms a query | × |"
        );
        println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for line in lines {
            let (alone, batched) = (&line.alone, &line.batched);
            let gain = batched.times(alone, |outcome| outcome.rate);
            let saved = alone.times(batched, |outcome| outcome.processor_ms);
            for (way, summary, gain, saved) in [
                ("one at a time", alone, String::new(), String::new()),
                ("batched", batched, times(gain), times(saved)),
            ] {
                println!(
                    "| {} | {way} | {:.1} | {:.0} | {gain} | {:.1} | {:.1} | {:.1} | {:.2} | \
                     {saved} |",
                    line.callers,
                    summary.batch(),
                    summary.rate(),
                    summary.percentile(0.5),
                    summary.percentile(0.99),
                    summary.cores(),
                    summary.processor_ms(),
                );
            }
        }
        let busiest = lines.iter().max_by_key(|line| line.callers);
        let ways = busiest.map(|line| [line.alone.cores(), line.batched.cores()]);
        if ways.is_some_and(|ways| ways.iter().any(|cores| *cores < 0.8 * self.threads as f64)) {
            println!(
                "\nOTHER PROGRAMS HAD A PART OF THE CORES, and not the same part in both ways: a \
                 scheduler favours threads that sleep often. Go by the time of the processor."
            );
        }
        Ok(())
    }
}

/// Both ways at a number of callers.
struct Line {
    callers: usize,
    alone: Summary,
    batched: Summary,
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}")
}

/// Returns the middle of the numbers.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match (numbers.len() % 2, numbers.get(middle)) {
        (_, None) => f64::NAN,
        (0, Some(above)) => f64::midpoint(numbers[middle - 1], *above),
        (_, Some(middle)) => *middle,
    }
}
