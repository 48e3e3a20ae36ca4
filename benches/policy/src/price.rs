//! Second part: flushes with a price, and a server that is never busy.

use std::mem;

use crate::arrivals::{Kind, SETUP};
use crate::bounds::offline_optimum;
use crate::contender::Contender;
use crate::driver::Policy;
use crate::model::{self, Rule};
use crate::outcome::{Outcome, Service};
use crate::points::{LOADS, Point, Progress};

/// What a flush costs, in setups of waiting: in job-milliseconds, where the
/// setup is a millisecond.
pub const PRICES: [u64; 3] = [1, 5, 25];

/// Contenders that do not know the price.
const BLIND: [Contender; 5] = [
    Contender::Crate(Policy::Idle),
    Contender::Crate(Policy::Interval(5 * SETUP)),
    Contender::Crate(Policy::Interval(10 * SETUP)),
    Contender::Peer(Rule::Restarted(5 * SETUP)),
    Contender::Peer(Rule::Ticker(5 * SETUP)),
];

/// Where `flush_cost` is in [`Row::costs`]; the best interval is next, then
/// those of [`BLIND`].
const FLUSH_COST: usize = 0;
const BEST_INTERVAL: usize = 1;

pub struct Row {
    pub kind: Kind,
    pub load: u32,
    pub price: u64,
    /// What waits and flushes cost together, in setups.
    costs: Vec<f64>,
    /// The best interval of the grid, in setups.
    interval: f64,
    optimum: f64,
    /// Of each run of the crate, whether it went as simulated. Those that do
    /// not know the price are told of with the first price only.
    pub as_simulated: Vec<bool>,
}

impl Row {
    fn best(&self) -> f64 {
        self.costs.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// A contender's cost as a multiple of the best policy's.
    fn ratio(&self, contender: usize) -> f64 {
        self.costs[contender] / self.best()
    }

    fn to_optimum(&self, contender: usize) -> f64 {
        self.costs[contender] / self.optimum
    }

    pub fn flush_cost(&self) -> f64 {
        self.ratio(FLUSH_COST)
    }

    pub fn flush_cost_to_optimum(&self) -> f64 {
        self.to_optimum(FLUSH_COST)
    }

    fn place(&self) -> String {
        format!(
            "{}, {} %, price {}",
            self.kind.name(),
            self.load,
            self.price
        )
    }
}

/// Intervals from a tenth of a setup to forty, ten to the decade.
fn grid() -> impl Iterator<Item = u64> {
    (-10..=16).map(|step| (SETUP as f64 * 10_f64.powf(f64::from(step) / 10.0)) as u64)
}

fn measure_point(point: &Point) -> [Row; 3] {
    let (arrivals, service) = (&point.arrivals, Service::Instant);
    let blind = BLIND.map(|contender| contender.run(arrivals, service));
    let mut blind_as_simulated: Vec<bool> = BLIND
        .iter()
        .zip(&blind)
        .filter_map(|(contender, outcome)| contender.as_simulated(outcome, arrivals, service))
        .collect();
    // Simulated, which is quick, and which the crate is checked against.
    let intervals: Vec<(u64, Outcome)> = grid()
        .map(|wait| {
            let rule = Rule::Interval(wait);
            (wait, model::run(rule, usize::MAX, arrivals, service))
        })
        .collect();
    PRICES.map(|price| {
        let knowing = Contender::Crate(Policy::Cost(price * SETUP));
        let outcome = knowing.run(arrivals, service);
        let mut as_simulated = mem::take(&mut blind_as_simulated);
        as_simulated.extend(knowing.as_simulated(&outcome, arrivals, service));
        let cost = |outcome: &Outcome| outcome.cost(price as f64);
        let (interval, best_interval) = intervals
            .iter()
            .map(|(wait, outcome)| (*wait as f64 / SETUP as f64, cost(outcome)))
            .min_by(|(_, one), (_, other)| one.total_cmp(other))
            .expect("a grid");
        let mut costs = vec![cost(&outcome), best_interval];
        costs.extend(blind.iter().map(cost));
        Row {
            kind: point.kind,
            load: point.load,
            price,
            costs,
            interval,
            optimum: offline_optimum(arrivals, price * SETUP) as f64 / SETUP as f64,
            as_simulated,
        }
    })
}

/// Measures every point at every price.
pub fn measure(points: &[Point], progress: &mut Progress) -> Vec<Row> {
    let mut rows = Vec::new();
    for point in points {
        rows.extend(measure_point(point));
        progress.step(&format!("price, {}, {} %", point.kind.name(), point.load));
    }
    rows
}

fn names() -> Vec<String> {
    let mut names = vec!["flush_cost".into(), "best interval".into()];
    names.extend(BLIND.map(Contender::name));
    names
}

/// Prints every ratio to the best policy of the point.
pub fn print(rows: &[Row], kind: Kind) {
    for price in PRICES {
        let rows: Vec<_> = rows
            .iter()
            .filter(|row| row.kind == kind && row.price == price)
            .collect();
        println!("\n### {}, price {price}\n", kind.name());
        let loads = LOADS.map(|load| format!(" {load} % |"));
        println!("| cost as a multiple of the best |{}", loads.concat());
        println!("| --- |{}", " ---: |".repeat(rows.len()));
        for (contender, name) in names().iter().enumerate() {
            let cells = rows.iter().map(|row| match contender {
                BEST_INTERVAL => format!(" {:.2} ({:.1}) |", row.ratio(contender), row.interval),
                _ => format!(" {:.2} |", row.ratio(contender)),
            });
            println!("| {name} |{}", cells.collect::<String>());
        }
        let cells = rows
            .iter()
            .map(|row| format!(" {:.2} |", row.optimum / row.best()));
        println!("| *offline optimum* |{}", cells.collect::<String>());
    }
}

/// Prints each policy's worst.
pub fn print_worst(rows: &[Row]) {
    println!("\n| policy | worst ratio to the best | at | worst ratio to the offline optimum |");
    println!("| --- | ---: | --- | ---: |");
    for (contender, name) in names().iter().enumerate() {
        let worst = rows
            .iter()
            .max_by(|one, other| one.ratio(contender).total_cmp(&other.ratio(contender)))
            .expect("rows");
        let to_optimum = rows
            .iter()
            .map(|row| row.to_optimum(contender))
            .fold(0.0, f64::max);
        println!(
            "| {name} | {:.2} | {} | {to_optimum:.2} |",
            worst.ratio(contender),
            worst.place()
        );
    }
}

/// Prints where `flush_cost` is at its worst, which is no longer for the mark.
pub fn print_beyond(rows: &[Row]) {
    let prices = PRICES.map(|price| format!(" price {price} |"));
    println!(
        "| flush_cost to the best (to the offline optimum) |{}",
        prices.concat()
    );
    println!("| --- |{}", " ---: |".repeat(PRICES.len()));
    for point in rows.chunks(PRICES.len()) {
        let cells = point.iter().map(|row| {
            let (best, optimum) = (row.flush_cost(), row.flush_cost_to_optimum());
            format!(" {best:.2} ({optimum:.2}) |")
        });
        let (kind, load) = (point[0].kind.name(), point[0].load);
        println!("| {kind}, {load} % |{}", cells.collect::<String>());
    }
}
