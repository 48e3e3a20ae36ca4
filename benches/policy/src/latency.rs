//! First part: latency with one server, from idle to 90 % load.

use crate::arrivals::{Kind, SETUP};
use crate::bounds::inoue;
use crate::contender::Contender;
use crate::driver::{self, Policy};
use crate::model::Rule;
use crate::outcome::{Outcome, Service};
use crate::points::{LOADS, Point, Progress, rate};

pub const CONTENDERS: [Contender; 9] = [
    Contender::Ideal,
    Contender::Crate(Policy::Idle),
    Contender::Crate(Policy::Cost(SETUP)),
    Contender::Crate(Policy::Interval(5 * SETUP)),
    Contender::Crate(Policy::Interval(10 * SETUP)),
    Contender::Peer(Rule::Immediate { in_flight: 10 }),
    Contender::Peer(Rule::FromPickUp(5 * SETUP)),
    Contender::Peer(Rule::Restarted(5 * SETUP)),
    Contender::Peer(Rule::Ticker(5 * SETUP)),
];

/// Where these are in [`CONTENDERS`].
pub const IDEAL: usize = 0;
pub const IDLE: usize = 1;

/// The contenders' outcomes at one point, in their order.
pub struct Row {
    pub kind: Kind,
    pub load: u32,
    pub outcomes: Vec<Outcome>,
    /// Whether `flush_cost` of zero did exactly what idle flush did.
    pub free_is_idle: bool,
    /// Of each run of the crate, whether it went as simulated.
    pub as_simulated: Vec<bool>,
}

impl Row {
    pub fn measure(point: &Point) -> Self {
        let (arrivals, service) = (&point.arrivals, Service::OneServer);
        let outcomes = CONTENDERS.map(|contender| contender.run(arrivals, service));
        let free = driver::run(Policy::Cost(0), arrivals, service);
        let as_simulated = CONTENDERS.iter().zip(&outcomes);
        let as_simulated = as_simulated
            .filter_map(|(contender, outcome)| contender.as_simulated(outcome, arrivals, service));
        Self {
            kind: point.kind,
            load: point.load,
            as_simulated: as_simulated.collect(),
            free_is_idle: outcomes[IDLE] == free,
            outcomes: outcomes.into(),
        }
    }

    /// How far idle flush is from the ideal server in the mean, as a share.
    pub fn off_ideal(&self) -> f64 {
        (self.outcomes[IDLE].mean() / self.outcomes[IDEAL].mean() - 1.0).abs()
    }
}

/// Measures every point.
pub fn measure(points: &[Point], progress: &mut Progress) -> Vec<Row> {
    let rows = points.iter().map(|point| {
        let row = Row::measure(point);
        progress.step(&format!("latency, {}, {} %", point.kind.name(), point.load));
        row
    });
    rows.collect()
}

pub fn print(rows: &[Row], kind: Kind) {
    println!("\n### {}: mean / p99 latency in τ₀\n", kind.name());
    let names = CONTENDERS.map(|contender| format!(" {} |", contender.name()));
    let formula = kind == Kind::Poisson;
    let (title, rule) = if formula {
        (" formula |", " ---: |")
    } else {
        ("", "")
    };
    println!("| load |{title}{}", names.concat());
    println!("| ---: |{rule}{}", " ---: |".repeat(names.len()));
    let rows = || rows.iter().filter(|row| row.kind == kind);
    for row in rows() {
        let cells = row.outcomes.iter();
        let cells = cells.map(|outcome| format!(" {:.2} / {:.1} |", outcome.mean(), outcome.p99()));
        let bound = if formula {
            format!(" {:.2} |", inoue(rate(row.load)))
        } else {
            String::new()
        };
        println!("| {} % |{bound}{}", row.load, cells.collect::<String>());
    }
    println!("\n### {}: flushes per 1000 jobs\n", kind.name());
    println!("| load |{}", names.concat());
    println!("| ---: |{}", " ---: |".repeat(names.len()));
    for row in rows() {
        let cells = row.outcomes.iter();
        let cells = cells.map(|outcome| format!(" {:.0} |", outcome.flushes_per_thousand()));
        println!("| {} % |{}", row.load, cells.collect::<String>());
    }
}

/// The mean latencies of a contender under Poisson arrivals, by load.
pub fn curve(rows: &[Row], contender: usize) -> Vec<(f64, f64)> {
    let poisson = rows.iter().filter(|row| row.kind == Kind::Poisson);
    let means = poisson.map(|row| (f64::from(row.load), row.outcomes[contender].mean()));
    let means: Vec<_> = means.collect();
    assert_eq!(means.len(), LOADS.len(), "a mean for every load");
    means
}
