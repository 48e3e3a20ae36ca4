//! Measures this crate against its peers; README.md says what and how.
//!
//! Prints one table, and writes it to README.md, the picture to
//! `benches/pictures/peers.svg` and every value to `figures.csv`.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use clap::Parser;
use peers::figures::{Figures, Measure};
use peers::load::Case;
use peers::measure::{Lab, Task};
use peers::picture::{Bar, Tone, draw};
use peers::subjects::{BARE, Role, SUBJECTS};
use peers::table::{
    BROAD, EAGER, FLOOR, HUNDRED, IDLE, LONE, OWN, PAIR_FLOOD, PAIR_HUNDRED, PAIR_THOUSAND, ROOMY,
    TEN, TEN_THOUSAND, main_table, marks, matrix, write_between,
};

const CALLERS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const BATCHES: [usize; 3] = [10, 100, 1_000];

/// Measures microbatch against its peers.
#[derive(Debug, Parser)]
struct Options {
    /// Measure the whole matrix of callers, batch sizes and threads, too; takes
    /// hours where the default takes minutes.
    #[arg(long)]
    full: bool,

    /// How many rounds each rate is measured in.
    #[arg(long, default_value_t = 21)]
    rounds: usize,

    /// Cargo says so to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    let mut lab = Lab::new(
        env!("CARGO_BIN_EXE_subject"),
        env!("CARGO_BIN_EXE_subject_counted"),
    );
    let subjects: Vec<_> = SUBJECTS.iter().map(|entry| entry.name).collect();
    let with_bare: Vec<_> = subjects.iter().copied().chain([BARE]).collect();

    let mut plan = vec![
        Task::new(Measure::Instructions, HUNDRED, &subjects),
        Task::new(Measure::Instructions, TEN, &subjects),
        Task::new(Measure::Instructions, TEN_THOUSAND, &subjects),
        Task::new(Measure::Instructions, LONE, &EAGER),
        Task::new(Measure::Instructions, ROOMY, &[FLOOR, OWN, IDLE]),
        Task::new(Measure::Instructions, BROAD, &[FLOOR, OWN, IDLE]),
        Task::new(Measure::Allocations, HUNDRED, &subjects),
        Task::new(Measure::Rate, PAIR_HUNDRED, &subjects),
        Task::new(Measure::Rate, PAIR_THOUSAND, &subjects),
        Task::new(Measure::Rate, PAIR_FLOOD, &subjects),
        Task::new(Measure::Rate, LONE, &with_bare),
    ];
    if options.full {
        add_matrix(&mut plan, &subjects);
    }
    lab.run(&plan, options.rounds);

    let figures = &lab.figures;
    let mut text = format!("{}\n{}", main_table(figures), marks(figures));
    if options.full {
        text += &matrix(figures, &CALLERS, &BATCHES);
    }
    print!("{text}");
    write(figures, &text)
}

/// Adds what the matrix needs and the plan does not have.
fn add_matrix(plan: &mut Vec<Task>, subjects: &[&'static str]) {
    for batch in BATCHES {
        for threads in [1, 2] {
            let closed = CALLERS.map(|callers| Case::closed(threads, callers, batch));
            for case in closed.into_iter().chain([Case::flood(threads, batch)]) {
                for measure in [Measure::Instructions, Measure::Rate] {
                    let known = |task: &Task| (task.measure, task.case) == (measure, case);
                    let counts = measure == Measure::Instructions;
                    if !(plan.iter().any(known) || (counts && threads > 1)) {
                        plan.push(Task::new(measure, case, subjects));
                    }
                }
            }
        }
    }
}

fn write(figures: &Figures, text: &str) -> io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    write_between(&here.join("README.md"), "peers", text)?;
    figures.write_csv(&mut BufWriter::new(File::create(here.join("figures.csv"))?))?;
    let pictures = here.join("../pictures");
    fs::create_dir_all(&pictures)?;
    // On one thread, more batches at once make no difference.
    let shown = SUBJECTS
        .iter()
        .filter(|entry| !entry.name.ends_with("at once"));
    let bars = shown.filter_map(|entry| {
        Some(Bar {
            name: entry.name.to_owned(),
            value: figures.median(Measure::Instructions, HUNDRED, entry.name)?,
            tone: match entry.role {
                Role::Own => Tone::Own,
                Role::Peer => Tone::Other,
                Role::HandWritten | Role::Floor => Tone::Reference,
            },
        })
    });
    let picture = draw(
        "Instructions a job",
        "100 callers, batches of 100; less is better",
        bars.collect(),
    );
    fs::write(pictures.join("peers.svg"), picture)
}
