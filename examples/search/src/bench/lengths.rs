//! What a batch gains by the length of its texts, and in the scan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use rten::ThreadPool;

use super::{median, times};
use crate::progress::Progress;
use crate::{ANSWERS, Error, Parts, Scanner, Tokens};

const LENGTHS: [usize; 5] = [8, 16, 32, 64, 128];
const SIZES: [usize; 3] = [1, 8, 32];

/// A batch that gains less than this does not pay, with what it has callers wait.
const PAYS: f64 = 1.2;

/// Measures on one thread, in time of the processor, which a busy machine changes less than
/// time on the clock. Each row takes this long, or three repeats.
pub fn run(parts: &Parts, time: Duration) -> Result<(), Error> {
    let pool = Arc::new(ThreadPool::with_num_threads(1));
    let mut scanner = Scanner::new(Arc::clone(&pool));
    let definitions = parts.others.iter().map(|noun| &noun.definition);
    let tokens = definitions.map(|text| parts.tokenizer.encode(text));
    let tokens = tokens.take(2000).collect::<Result<Vec<_>, _>>()?;

    let mut progress = Progress::new("lengths", LENGTHS.len() + 1);
    let mut rows = Vec::new();
    for (done, len) in LENGTHS.into_iter().enumerate() {
        progress.show(done);
        let batches = SIZES.map(|size| {
            let texts = (0..size).map(|number| {
                let from: Vec<&Tokens> = tokens.iter().skip(number * 40).take(40).collect();
                parts.tokenizer.cut(&from, len)
            });
            texts.collect::<Vec<_>>()
        });
        let row = measure(time, |place| {
            parts.model.embed(&batches[place], &pool).map(drop)
        })?;
        rows.push((format!("the model, {len} tokens"), row));
    }
    progress.show(LENGTHS.len());
    let vectors = SIZES.map(|size| parts.model.embed(&tokens[..size], &pool));
    let vectors = vectors.into_iter().collect::<Result<Vec<_>, _>>()?;
    let scan = measure(time, |place| {
        let queries = &vectors[place];
        scanner.best(&parts.index, queries, ANSWERS).map(drop)
    })?;
    progress.end();
    let bytes = parts.index.rows() * crate::model::DIMENSIONS * size_of::<f32>();
    let name = format!("the scan of {} MB", bytes / 1_000_000);
    rows.push((name, scan));
    let both: Vec<f64> = rows[0].1.iter().zip(scan).map(|(a, b)| a + b).collect();
    let both = both.try_into().unwrap_or([f64::NAN; SIZES.len()]);
    rows.push(("both, 8 tokens".to_owned(), both));

    println!("# What a batch gains, by what it computes");
    println!("\nMilliseconds of a processor for one, alone; and how many times fewer in a batch.");
    println!("\n| | alone, ms | in 8 | in 32 |");
    println!("| --- | ---: | ---: | ---: |");
    for (name, [alone, eight, many]) in &rows {
        let (eight, many) = (times(alone / eight), times(alone / many));
        println!("| {name} | {alone:.2} | {eight} | {many} |");
    }
    println!("\nA batch pays where one call is short or reads much memory.");
    let gains = LENGTHS.into_iter().zip(&rows);
    let lost = gains.filter(|(_, (_, [alone, _, many]))| alone / many < PAYS);
    let lost: Vec<String> = lost.map(|(len, _)| len.to_string()).collect();
    if lost.is_empty() {
        println!("In this run it paid at all lengths.");
    } else {
        println!(
            "IT DOES NOT PAY for the model at {} tokens: there 32 texts together take more than \
             {:.0} % of the time that they take one by one.",
            lost.join(" and "),
            100.0 / PAYS
        );
    }
    Ok(())
}

/// Returns the median time for one text in each size of batch. The sizes take turns, so
/// that what drifts over time is no size's advantage.
fn measure(
    time: Duration,
    mut run: impl FnMut(usize) -> Result<(), Error>,
) -> Result<[f64; SIZES.len()], Error> {
    let mut all: [Vec<f64>; SIZES.len()] = Default::default();
    let started = Instant::now();
    let mut repeats = 0;
    while repeats < 3 || started.elapsed() < time {
        for (place, size) in SIZES.into_iter().enumerate() {
            // As many texts at each size, up to a point.
            for _ in 0..SIZES[SIZES.len() - 1].div_ceil(size).min(8) {
                let clock = ProcessTime::now();
                run(place)?;
                all[place].push(clock.elapsed().as_secs_f64() * 1e3 / size as f64);
            }
        }
        repeats += 1;
    }
    Ok(all.map(median))
}
