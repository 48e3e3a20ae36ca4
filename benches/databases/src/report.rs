//! The figures: medians over the rounds, of ratios within one round.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::callers::Outcome;
use crate::contender::{Contender, IN_FLIGHT, Way};

/// What one run comes down to.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Rows a second.
    pub rate: f64,
    latency: Option<Latency>,
}

/// In milliseconds.
#[derive(Debug, Clone, Copy)]
struct Latency {
    p50: f64,
    p99: f64,
}

impl Figures {
    pub fn new(outcome: &Outcome) -> Self {
        let rows = outcome.receipts.len() as f64;
        Self {
            rate: rows / outcome.took.max(Duration::from_nanos(1)).as_secs_f64(),
            latency: Latency::new(&outcome.latency),
        }
    }

    fn p50(&self) -> Option<f64> {
        self.latency.map(|latency| latency.p50)
    }

    fn p99(&self) -> Option<f64> {
        self.latency.map(|latency| latency.p99)
    }
}

impl Latency {
    fn new(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p99: at(0.99),
        })
    }
}

/// One contender and its figures, by round.
pub struct Line {
    pub contender: Contender,
    pub rounds: Vec<Figures>,
}

pub fn print(lines: &[Line]) {
    println!(
        "| database | way | callers | connections | batch | rows/s | × row by row | × by hand, 1 or 2 | × by hand, 4 | p50 ms | p99 ms | p50 × row by row |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for line in lines {
        let contender = &line.contender;
        let (database, few) = if contender.is_postgres() {
            ("Postgres", 2)
        } else {
            ("SQLite", 1)
        };
        let callers = contender.callers().map(|callers| callers as f64);
        println!(
            "| {database} | {contender} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            figure(callers, 0),
            contender.connections,
            contender.batch(),
            figure(line.median(|round| Some(round.rate)), 0),
            figure(line.to_baseline(lines), 2),
            figure(line.to_ceiling(lines, few), 2),
            figure(line.to_ceiling(lines, IN_FLIGHT), 2),
            figure(line.median(Figures::p50), 2),
            figure(line.median(Figures::p99), 2),
            figure(line.p50_to_baseline(lines), 2),
        );
    }
}

/// Says what each configuration of this crate on Postgres reaches.
pub fn print_marks(lines: &[Line]) {
    for line in lines {
        let contender = &line.contender;
        if !contender.is_postgres() || !matches!(contender.way, Way::Microbatch(_)) {
            continue;
        }
        let rate = line.to_baseline(lines).unwrap_or_default();
        let ceiling = line.to_ceiling(lines, 2).unwrap_or_default();
        let p50 = line.p50_to_baseline(lines).unwrap_or(f64::INFINITY);
        let mark = |reached| if reached { "pass" } else { "missed" };
        println!(
            "- {contender}, {} callers: rows/s ≥ 10 × row by row over 64 connections: {}; ≥ 0.8 × by hand on two: {}; p50 below row by row's: {}",
            contender.callers().unwrap_or_default(),
            mark(rate >= 10.0),
            mark(ceiling >= 0.8),
            mark(p50 < 1.0),
        );
    }
}

impl Line {
    fn median(&self, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        median(self.rounds.iter().filter_map(figure).collect())
    }

    fn to_baseline(&self, lines: &[Self]) -> Option<f64> {
        let baseline = |other: &Contender| other.is_baseline_of(&self.contender);
        self.ratio(lines, baseline, |round| Some(round.rate))
    }

    /// To bulk made by hand, on two connections or on as many as the batches
    /// have; SQLite has one.
    fn to_ceiling(&self, lines: &[Self], connections: usize) -> Option<f64> {
        let ceiling = |other: &Contender| {
            other.is_ceiling_of(&self.contender) && other.connections == connections
        };
        self.ratio(lines, ceiling, |round| Some(round.rate))
    }

    fn p50_to_baseline(&self, lines: &[Self]) -> Option<f64> {
        let baseline = |other: &Contender| other.is_baseline_of(&self.contender);
        self.ratio(lines, baseline, Figures::p50)
    }

    fn ratio(
        &self,
        lines: &[Self],
        other: impl Fn(&Contender) -> bool,
        figure: impl Fn(&Figures) -> Option<f64>,
    ) -> Option<f64> {
        let other = lines.iter().find(|line| other(&line.contender))?;
        let rounds = self.rounds.iter().zip(&other.rounds);
        let ratios = rounds.filter_map(|(one, other)| Some(figure(one)? / figure(other)?));
        median(ratios.collect())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

fn figure(value: Option<f64>, decimals: usize) -> String {
    value.map_or("–".into(), |value| format!("{value:.decimals$}"))
}
