//! Compares ways for jobs to get from their callers into the loop; README.md
//! says why. Prints a table and writes it to README.md.

use std::io;
use std::path::Path;

use clap::Parser;
use peers::figures::Measure;
use peers::load::Case;
use peers::measure::{Lab, Task};
use peers::queues::{GREEDY, QUEUES};
use peers::table::{
    HUNDRED, PAIR_HUNDRED, PAIR_THOUSAND, TEN_THOUSAND, instructions, markdown, problems,
    rate_over, write_between,
};

/// Compares queues for the batching loop.
#[derive(Debug, Parser)]
struct Options {
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
    let greedy = QUEUES.map(|name| &*format!("{name}{GREEDY}").leak());
    let plan = [
        Task::new(Measure::Instructions, HUNDRED, &QUEUES),
        Task::new(Measure::Instructions, TEN_THOUSAND, &QUEUES),
        Task::new(Measure::Instructions, HUNDRED, &greedy),
        Task::new(Measure::Rate, PAIR_HUNDRED, &QUEUES),
        Task::new(Measure::Rate, PAIR_THOUSAND, &QUEUES),
        Task::new(Measure::Rate, PAIR_HUNDRED, &greedy),
    ];
    lab.run(&plan, options.rounds);

    let head = [
        "",
        "100 callers, instr/job",
        "10 000 callers, instr/job",
        "two threads, 100 callers, jobs/s",
        "two threads, 1 000 callers, jobs/s",
        "greedy, 100 callers, instr/job",
        "greedy, two threads, 100 callers, jobs/s",
    ]
    .map(str::to_owned);
    let figures = &lab.figures;
    let rate = |case: Case, subjects: &[&'static str], subject| {
        let chosen = subjects[QUEUES.len() - 1];
        rate_over(figures, case, chosen, subject)
    };
    let rows: Vec<_> = QUEUES
        .iter()
        .zip(greedy)
        .map(|(&name, eager)| {
            vec![
                name.to_owned(),
                instructions(figures, HUNDRED, name),
                instructions(figures, TEN_THOUSAND, name),
                rate(PAIR_HUNDRED, &QUEUES, name),
                rate(PAIR_THOUSAND, &QUEUES, name),
                instructions(figures, HUNDRED, eager),
                rate(PAIR_HUNDRED, &greedy, eager),
            ]
        })
        .collect();
    let mut text = markdown(&head, &rows);
    text += &problems(figures, |_| true);
    print!("{text}");
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    write_between(&readme, "queues", &text)
}
