//! Texts of all lengths: batches of whatever came first, and of like lengths.

use std::sync::Arc;

use super::load::{self, Outcome, Summary};
use super::{BATCH, Bench, texts, times};
use crate::progress::Progress;
use crate::{Error, Options, Parts, Search};

/// More than are in flight, or there would be nothing to choose from.
const CALLERS: usize = 128;

pub async fn run(bench: &Bench, parts: &Arc<Parts>) -> Result<(), Error> {
    let texts = texts::mixed(parts)?;
    let ways = [false, true].map(|similar| Options {
        threads: bench.threads,
        max_batch_size: BATCH,
        similar,
    });
    let mut rounds: [Vec<Outcome>; 2] = Default::default();
    let mut progress = Progress::new("mixed lengths", bench.rounds * ways.len());
    for round in 0..bench.rounds {
        for (turn, place) in [round % 2, 1 - round % 2].into_iter().enumerate() {
            progress.show(round * ways.len() + turn);
            let search = Arc::new(Search::start(parts, ways[place]).await?);
            let outcome = load::run(&search, &texts, CALLERS, bench.time).await?;
            rounds[place].push(outcome);
        }
    }
    progress.end();
    let [first, similar] = rounds.map(Summary::of);
    let computed = |way: &Summary| way.ratio(|c| c.computed, |c| c.queries);
    let own = |way: &Summary| way.ratio(|c| c.tokens, |c| c.queries);

    println!("\n# Texts of all lengths: whatever came first, and `Similar`");
    println!(
        "\n{CALLERS} callers; of ten queries seven have six words, two are a definition, and one \
         is a passage of 40 to 128 tokens."
    );
    println!(
        "\n| storage | batch | tokens of a query | computed | padding | queries/s | × | \
         p50 ms | p99 ms |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let gain = similar.times(&first, |outcome| outcome.rate);
    for (name, way, gain) in [
        ("first come", &first, String::new()),
        ("`Similar`", &similar, times(gain)),
    ] {
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.0} % | {:.0} | {gain} | {:.1} | {:.1} |",
            way.batch(),
            own(way),
            computed(way),
            100.0 * (1.0 - own(way) / computed(way)),
            way.rate(),
            way.percentile(0.5),
            way.percentile(0.99),
        );
    }
    println!(
        "\n`Similar` computes {:.0} % fewer tokens for a query.",
        100.0 * (1.0 - computed(&similar) / computed(&first))
    );
    Ok(())
}
