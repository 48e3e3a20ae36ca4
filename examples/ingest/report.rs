//! The table at the end.

use std::collections::BTreeSet;
use std::io::{self, Write};

use crate::pass::{Method, Pass};

/// In microseconds; no disk makes rows durable in less.
const FASTEST_COMMIT: u64 = 20;

pub(crate) fn print(out: &mut impl Write, passes: &[Pass], good: bool) -> io::Result<()> {
    if passes.is_empty() {
        return Ok(());
    }
    let mut row = |label: &str, cell: &dyn Fn(&Pass) -> String| {
        let cells = passes.iter().map(|pass| format!("{:>16}", cell(pass)));
        writeln!(out, "{label:<20}{}", cells.collect::<String>())
    };
    row("", &|pass| pass.method.name().into())?;
    row("callers at a time", &|pass| grouped(pass.callers as u64))?;
    row("rows stored", &|pass| grouped(pass.ledger.stored))?;
    row("seconds", &|pass| format!("{:.2}", pass.took.as_secs_f64()))?;
    row("rows/s", &|pass| grouped(pass.rate() as u64))?;
    row("batches", &|pass| grouped(pass.tally.batches))?;
    row("mean batch size", &|pass| {
        format!("{:.1}", pass.mean_size())
    })?;
    let reasons = passes.iter().flat_map(|pass| pass.tally.reasons.keys());
    for reason in reasons.collect::<BTreeSet<_>>() {
        row(&format!("  flushed by {reason}"), &|pass| {
            let count = pass.tally.reasons.get(reason);
            count.map_or("-".into(), |count| grouped(*count))
        })?;
    }
    for quantile in [0.5, 0.99] {
        row(&format!("p{} latency", quantile * 100.0), &|pass| {
            let micros = pass.ledger.latencies.value_at_quantile(quantile);
            format!("{:.2} ms", micros as f64 / 1000.0)
        })?;
    }
    let of = |method| {
        passes
            .iter()
            .find(|pass| pass.method == method && pass.ledger.stored > 0)
    };
    let (batched, bulk) = (of(Method::Batched), of(Method::Bulk));
    if let (Some(base), Some(pass)) = (of(Method::RowByRow), batched) {
        let speed_up = pass.rate() / base.rate();
        writeln!(out, "{:<20}{:>30.1} x", "speed-up", speed_up)?;
        if base.ledger.latencies.value_at_quantile(0.5) < FASTEST_COMMIT {
            writeln!(
                out,
                "The database seems to be in memory, where a commit costs next to nothing;"
            )?;
            writeln!(out, "name one on a disk with --database.")?;
        }
    }
    if let (Some(pass), Some(bulk)) = (batched, bulk) {
        let share = 100.0 * pass.rate() / bulk.rate();
        writeln!(out, "{:<20}{:>30.0} %", "of the bulk load", share)?;
    }
    if good {
        writeln!(
            out,
            "Checked: all of these rows are in the database exactly once, each under"
        )?;
        writeln!(out, "the row id that its caller got.")?;
    }
    Ok(())
}

/// Sets the thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}
