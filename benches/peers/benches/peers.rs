//! Measures this crate against its peers; README.md says what and how.
//!
//! Prints tables, and writes them to README.md; those of the main part also
//! become a picture, `benches/pictures/peers.svg`. Every value is written to
//! `figures.csv`.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use clap::{Parser, ValueEnum};
use peers::figures::{Figures, Measure};
use peers::load::Case;
use peers::measure::{Lab, Task};
use peers::picture::{Bar, Tone, draw};
use peers::subjects::{BARE, Role, SUBJECTS};
use peers::table::{
    BROAD, BUILT, COLLECTED, EAGER, FLOOR, GATHERED, HUNDRED, IDLE, LONE, OWN, PAIR_FLOOD,
    PAIR_HUNDRED, PAIR_THOUSAND, ROOMY, TEN, TEN_THOUSAND, TRACED, builds_table, collected_table,
    commit, main_table, marks, matrix, traces_table, write_between,
};

const CALLERS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const BATCHES: [usize; 3] = [10, 100, 1_000];

/// What is measured; each part has its own place in README.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Instructions in a plain release build, beside those in this one.
    Builds,
    /// One task that collects many futures.
    Collected,
    /// What the spans of batches cost.
    Traces,
    /// Everything else.
    Main,
}

/// Measures microbatch against its peers.
#[derive(Debug, Parser)]
struct Options {
    /// Measure the whole matrix of callers, batch sizes and threads, too; takes
    /// hours where the default takes minutes.
    #[arg(long)]
    full: bool,

    /// Measure this part alone.
    #[arg(long, conflicts_with = "full")]
    only: Option<Part>,

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
    let chosen = |part| options.only.is_none_or(|only| only == part);
    let mut plan = Vec::new();
    if chosen(Part::Builds) {
        lab.build_plain()?;
        for case in [TEN, HUNDRED] {
            plan.push(Task::new(Measure::PlainInstructions, case, BUILT));
            if !chosen(Part::Main) {
                plan.push(Task::new(Measure::Instructions, case, BUILT));
            }
        }
    }
    if chosen(Part::Collected) {
        for case in COLLECTED {
            plan.push(Task::new(Measure::Rate, case, GATHERED));
        }
    }
    if chosen(Part::Traces) {
        let subjects = TRACED.map(|(_, floor, own)| [floor, own]).concat();
        plan.push(Task::new(Measure::Instructions, HUNDRED, &subjects));
    }
    if chosen(Part::Main) {
        add_main(&mut plan, options.full);
    }
    lab.run(&plan, options.rounds);

    let figures = &lab.figures;
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let show = |name, text: &str| {
        let text = format!("{}\n{text}", commit());
        println!("{text}");
        write_between(&readme, name, &text)
    };
    if chosen(Part::Builds) {
        show("builds", &builds_table(figures))?;
    }
    if chosen(Part::Collected) {
        show("collected", &collected_table(figures))?;
    }
    if chosen(Part::Traces) {
        show("traces", &traces_table(figures))?;
    }
    if chosen(Part::Main) {
        let mut text = format!("{}\n{}", main_table(figures), marks(figures));
        if options.full {
            text += &matrix(figures, &CALLERS, &BATCHES);
        }
        show("peers", &text)?;
        draw_main(figures)?;
    }
    write_figures(figures)
}

/// Adds what the main table needs, and the matrix.
fn add_main(plan: &mut Vec<Task>, full: bool) {
    let subjects: Vec<_> = SUBJECTS.iter().map(|entry| entry.name).collect();
    let with_bare: Vec<_> = subjects.iter().copied().chain([BARE]).collect();

    plan.extend([
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
    ]);
    if full {
        add_matrix(plan, &subjects);
    }
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

fn write_figures(figures: &Figures) -> io::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("figures.csv");
    figures.write_csv(&mut BufWriter::new(File::create(file)?))
}

fn draw_main(figures: &Figures) -> io::Result<()> {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pictures");
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
