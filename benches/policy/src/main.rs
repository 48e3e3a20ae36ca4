//! Compares waiting policies in virtual time: this crate's own on the crate
//! itself, peers' in simulation, beside what no policy can beat.

#![forbid(unsafe_code)]

mod arrivals;
mod bounds;
mod contender;
mod driver;
mod latency;
mod model;
mod outcome;
mod picture;
mod points;
mod price;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use arrivals::Kind;
use points::{KINDS, Point, Progress};

/// Beyond the mark: jobs so rare that waiting for company is mostly in vain,
/// and jobs that come all at once, for which nothing is worth waiting.
const BEYOND: [(Kind, u32); 5] = [
    (Kind::Poisson, 2),
    (Kind::Poisson, 1),
    (Kind::Volleys, 5),
    (Kind::Volleys, 20),
    (Kind::Volleys, 90),
];

fn main() -> ExitCode {
    let points = Point::all();
    let beyond = BEYOND.map(|(kind, load)| Point::new(kind, load));
    let mut progress = Progress::new(2 * points.len() + beyond.len());
    let latency = latency::measure(&points, &mut progress);
    let price = price::measure(&points, &mut progress);
    let beyond = price::measure(&beyond, &mut progress);

    println!("## Latency with one server");
    for kind in KINDS {
        latency::print(&latency, kind);
    }
    println!("\n## Flushes with a price");
    for kind in KINDS {
        price::print(&price, kind);
    }
    println!("\n### Worst of all these points");
    price::print_worst(&price);
    println!("\n### Beyond them\n");
    price::print_beyond(&beyond);

    let drawn = draw(&latency);
    let passed = mark(&latency, &price, &beyond);
    match drawn {
        Ok(()) if passed => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot write the picture: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the marks and returns whether all are reached.
fn mark(latency: &[latency::Row], price: &[price::Row], beyond: &[price::Row]) -> bool {
    let worst = |figures: &mut dyn Iterator<Item = f64>| figures.fold(0.0, f64::max);
    let poisson = latency.iter().filter(|row| row.kind == Kind::Poisson);
    let off = worst(&mut poisson.map(latency::Row::off_ideal)) * 100.0;
    let ratio = worst(&mut price.iter().map(price::Row::flush_cost));
    let everywhere = price.iter().chain(beyond);
    let to_optimum = worst(&mut everywhere.clone().map(price::Row::flush_cost_to_optimum));
    let alike = latency.iter().filter(|row| row.free_is_idle).count();
    let runs = latency.iter().map(|row| &row.as_simulated);
    let runs = runs.chain(everywhere.map(|row| &row.as_simulated));
    let runs: Vec<bool> = runs.flatten().copied().collect();
    let same = runs.iter().filter(|same| **same).count();
    let marks = [
        (
            "mean latency of idle flush, off the ideal server's",
            format!("{off:.3} %"),
            "1 %".into(),
            off <= 1.0,
        ),
        (
            "cost with flush_cost, to the best policy's",
            format!("{ratio:.2}"),
            "1.6".into(),
            ratio <= 1.6,
        ),
        (
            "cost with flush_cost, to the offline optimum, everywhere",
            format!("{to_optimum:.2}"),
            "2".into(),
            to_optimum <= 2.0,
        ),
        (
            "points at which a flush_cost of zero is idle flush to the tick",
            format!("{alike}"),
            format!("all {}", latency.len()),
            alike == latency.len(),
        ),
        (
            "runs of the crate that go as simulated to the tick",
            format!("{same}"),
            format!("all {}", runs.len()),
            same == runs.len(),
        ),
    ];
    println!("\n## Marks\n");
    println!("| | figure | mark | |");
    println!("| --- | ---: | ---: | --- |");
    for (what, figure, mark, passed) in &marks {
        let verdict = if *passed { "pass" } else { "FAIL" };
        println!("| {what} | {figure} | {mark} | {verdict} |");
    }
    marks.iter().all(|(.., passed)| *passed)
}

fn draw(latency: &[latency::Row]) -> std::io::Result<()> {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pictures");
    fs::create_dir_all(&pictures)?;
    fs::write(pictures.join("policy.svg"), picture::draw(latency))
}
