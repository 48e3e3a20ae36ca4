//! Figures as Markdown.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::figures::{Figures, Measure};
use crate::load::Case;
use crate::subjects::{BARE, Entry, Role, SUBJECTS};

pub const OWN: &str = "microbatch";
pub const IDLE: &str = "microbatch, idle";
pub const FLOOR: &str = "floor";
pub const IMMEDIATE: &str = "batch-aint-one, Immediate";

/// Those that do not let a lone caller wait for company.
pub const EAGER: [&str; 7] = [
    FLOOR,
    IDLE,
    "dataloader",
    IMMEDIATE,
    "batch-aint-one, Immediate, 10 at once",
    "batch-aint-one, Balanced",
    BARE,
];

/// Those whose two builds are compared.
pub const BUILT: &[&str] = &[
    FLOOR,
    OWN,
    IDLE,
    #[cfg(feature = "batchy")]
    "batchy",
    "hand-written",
    "scuffle-batching",
];

/// Those whose futures one task collects.
pub const GATHERED: &[&str] = &[
    OWN,
    "scuffle-batching",
    "ultra-batch",
    #[cfg(feature = "batchy")]
    "batchy",
    "hand-written",
    IMMEDIATE,
];

/// Who listens to the spans, and the two whose callers have them.
pub const TRACED: [(&str, &str, &str); 3] = [
    (
        "nobody",
        "floor, no subscriber",
        "microbatch, no subscriber",
    ),
    (
        "`fmt` at INFO, into a sink",
        "floor, log",
        "microbatch, log",
    ),
    (
        "OpenTelemetry, in memory",
        "floor, OpenTelemetry",
        "microbatch, OpenTelemetry",
    ),
];

pub const TEN: Case = Case::closed(1, 10, 100);
pub const HUNDRED: Case = Case::closed(1, 100, 100);
pub const TEN_THOUSAND: Case = Case::closed(1, 10_000, 100);
pub const LONE: Case = Case::closed(1, 1, 100);
pub const PAIR_HUNDRED: Case = Case::closed(2, 100, 100);
pub const PAIR_THOUSAND: Case = Case::closed(2, 1_000, 100);
pub const PAIR_FLOOD: Case = Case::flood(2, 100);
/// By the task of `block_on` and by a spawned one, on one thread and on two.
pub const COLLECTED: [Case; 4] = [
    Case::collected(1, 30_000, 100),
    Case::collected(1, 30_000, 100).spawned(),
    Case::collected(2, 30_000, 100),
    Case::collected(2, 30_000, 100).spawned(),
];
/// A queue that holds all callers; and a batch that does.
pub const ROOMY: Case = TEN_THOUSAND.queue(16_384);
pub const BROAD: Case = Case::closed(1, 10_000, 10_000).queue(16_384);

/// Lays out rows of cells.
pub fn markdown(head: &[String], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let line = |text: &mut String, cells: &[String]| {
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    line(&mut text, head);
    let rule: Vec<_> = (0..head.len())
        .map(|column| if column == 0 { "---" } else { "---:" }.to_owned())
        .collect();
    line(&mut text, &rule);
    for row in rows {
        line(&mut text, row);
    }
    text
}

/// A cell, or why it is empty.
fn cell(figures: &Figures, case: Case, subject: &'static str, text: Option<String>) -> String {
    match (figures.problem(case, subject), text) {
        (Some(_), _) => "✗".to_owned(),
        (None, Some(text)) => text,
        (None, None) => "–".to_owned(),
    }
}

pub fn instructions(figures: &Figures, case: Case, subject: &'static str) -> String {
    instructions_of(Measure::Instructions, figures, case, subject)
}

/// Of that build.
fn instructions_of(
    measure: Measure,
    figures: &Figures,
    case: Case,
    subject: &'static str,
) -> String {
    let count = figures.median(measure, case, subject);
    cell(figures, case, subject, count.map(|n| format!("{n:.0}")))
}

fn rate(figures: &Figures, case: Case, subject: &'static str) -> String {
    rate_over(figures, case, OWN, subject)
}

/// Thousands of jobs a second, and how many times as many `own` does in the
/// same round.
pub fn rate_over(
    figures: &Figures,
    case: Case,
    own: &'static str,
    subject: &'static str,
) -> String {
    let rate = figures.median(Measure::Rate, case, subject);
    let ratio = figures.paired(case, own, subject, |own, other| own / other);
    let text = rate.zip(ratio).map(|(rate, ratio)| {
        let thousands = rate / 1e3;
        match subject == own {
            true => format!("{thousands:.0} k"),
            false => format!("{thousands:.0} k ({ratio:.2})"),
        }
    });
    cell(figures, case, subject, text)
}

/// Microseconds a job, where there is one caller.
fn micros(figures: &Figures, case: Case, subject: &'static str) -> String {
    let rate = figures.median(Measure::Rate, case, subject);
    let text = rate.map(|rate| match 1e6 / rate {
        micros if micros < 100.0 => format!("{micros:.2}"),
        micros => format!("{micros:.0}"),
    });
    cell(figures, case, subject, text)
}

fn plain(figures: &Figures, measure: Measure, case: Case, subject: &'static str) -> String {
    let value = figures.median(measure, case, subject);
    let text = value.map(|value| match measure {
        Measure::Bytes => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    });
    cell(figures, case, subject, text)
}

fn name_of(subject: &str) -> String {
    match subject {
        OWN | IDLE => format!("**{subject}**"),
        _ => subject.to_owned(),
    }
}

/// The plain build beside the one that is optimized further.
pub fn builds_table(figures: &Figures) -> String {
    let head = [
        "",
        "plain, 10 callers",
        "plain, 100 callers",
        "`peers`, 10 callers",
        "`peers`, 100 callers",
    ]
    .map(str::to_owned);
    let row = |&subject: &&'static str| {
        let plain = |case| instructions_of(Measure::PlainInstructions, figures, case, subject);
        vec![
            name_of(subject),
            plain(TEN),
            plain(HUNDRED),
            instructions(figures, TEN, subject),
            instructions(figures, HUNDRED, subject),
        ]
    };
    let rows: Vec<_> = BUILT.iter().map(row).collect();
    markdown(&head, &rows) + &problems(figures, |case| [TEN, HUNDRED].contains(&case))
}

/// What the spans of batches and their links cost under a subscriber, beyond those of
/// the callers.
pub fn traces_table(figures: &Figures) -> String {
    let head = [
        "who listens",
        "floor, instr/job",
        "microbatch, instr/job",
        "spans of batches and links, instr/job",
    ]
    .map(str::to_owned);
    let count = |subject| figures.median(Measure::Instructions, HUNDRED, subject);
    let beyond = |(_, floor, own)| Some(count(own)? - count(floor)?);
    let rows = TRACED.map(|row| {
        let own = beyond(row).zip(beyond(TRACED[0]));
        vec![
            row.0.to_owned(),
            instructions(figures, HUNDRED, row.1),
            instructions(figures, HUNDRED, row.2),
            own.map_or("–".to_owned(), |(now, base)| format!("{:.0}", now - base)),
        ]
    });
    markdown(&head, &rows) + &problems(figures, |case| case == HUNDRED)
}

/// One task that collects many futures.
pub fn collected_table(figures: &Figures) -> String {
    let head = [
        "",
        "one thread, main task",
        "one thread, spawned task",
        "two threads, main task",
        "two threads, spawned task",
    ]
    .map(str::to_owned);
    let time = |case, subject| {
        let rate = figures.median(Measure::Rate, case, subject);
        let ratio = figures.paired(case, OWN, subject, |own, other| own / other);
        let text = rate.zip(ratio).map(|(rate, ratio)| match subject {
            OWN => format!("{:.2}", 1e6 / rate),
            _ => format!("{:.2} ({ratio:.2})", 1e6 / rate),
        });
        cell(figures, case, subject, text)
    };
    let row = |&subject: &&'static str| {
        let times = COLLECTED.map(|case| time(case, subject));
        [name_of(subject)].into_iter().chain(times).collect()
    };
    let rows: Vec<_> = GATHERED.iter().map(row).collect();
    markdown(&head, &rows) + &problems(figures, |case| COLLECTED.contains(&case))
}

/// The main table.
pub fn main_table(figures: &Figures) -> String {
    let head = [
        "",
        "10 callers, instr/job",
        "100 callers, instr/job",
        "10 000 callers, instr/job",
        "two threads, 100 callers, jobs/s",
        "two threads, 1 000 callers, jobs/s",
        "two threads, flood, jobs/s",
        "lone caller, µs/job",
        "lone caller, instr/job",
        "allocations/job",
        "bytes/job",
    ]
    .map(str::to_owned);
    let row = |subject: &'static str| {
        vec![
            name_of(subject),
            instructions(figures, TEN, subject),
            instructions(figures, HUNDRED, subject),
            instructions(figures, TEN_THOUSAND, subject),
            rate(figures, PAIR_HUNDRED, subject),
            rate(figures, PAIR_THOUSAND, subject),
            rate(figures, PAIR_FLOOD, subject),
            micros(figures, LONE, subject),
            instructions(figures, LONE, subject),
            plain(figures, Measure::Allocations, HUNDRED, subject),
            plain(figures, Measure::Bytes, HUNDRED, subject),
        ]
    };
    let names = SUBJECTS.iter().map(|entry| entry.name);
    let rows: Vec<_> = names.chain([BARE]).map(row).collect();
    markdown(&head, &rows) + &problems(figures, |case| !COLLECTED.contains(&case))
}

/// What went wrong in these cases, a paragraph each.
pub fn problems(figures: &Figures, cases: impl Fn(Case) -> bool) -> String {
    let problems = figures.problems().filter(|(_, case, _)| cases(*case));
    problems
        .map(|(subject, case, problem)| format!("\n✗ {subject}, {case}: {problem}\n"))
        .collect()
}

/// Those that the marks compare with.
fn peers() -> impl Iterator<Item = &'static str> {
    let peers = SUBJECTS
        .iter()
        .filter(|Entry { role, .. }| matches!(role, Role::Peer | Role::HandWritten));
    peers.map(|entry| entry.name)
}

/// The marks: what was aimed at and what is.
pub fn marks(figures: &Figures) -> String {
    let count = |case, subject| figures.median(Measure::Instructions, case, subject);
    let over = |one: Option<f64>, other: Option<f64>| Some(one? / other?);
    let cheapest = |case| {
        let counts = peers().filter_map(|peer| Some((count(case, peer)?, peer)));
        counts.min_by(|one, other| one.0.total_cmp(&other.0))
    };
    let nearest = |case, own| {
        let ratios = peers().filter_map(|peer| {
            let ratio = figures.paired(case, own, peer, |own, peer| own / peer);
            Some((ratio?, peer))
        });
        ratios.min_by(|one, other| one.0.total_cmp(&other.0))
    };
    let mut rows = Vec::new();
    let mut mark = |what: String, most: bool, limit: f64, own: Option<f64>, idle: Option<f64>| {
        let figure = |figure: Option<f64>| match figure {
            None => "–".to_owned(),
            Some(figure) => {
                let holds = if most {
                    figure <= limit
                } else {
                    figure >= limit
                };
                let sign = if holds { "" } else { " ✗" };
                format!("{figure:.2}{sign}")
            }
        };
        let sign = if most { "≤" } else { "≥" };
        let limit = format!("{sign} {limit:.2}");
        rows.push(vec![what, limit, figure(own), figure(idle)]);
    };
    let both = |figure: &dyn Fn(&'static str) -> Option<f64>| [figure(OWN), figure(IDLE)];

    let [own, idle] = both(&|own| over(count(HUNDRED, own), count(HUNDRED, FLOOR)));
    mark(
        "100 callers: instr/job, over the floor".to_owned(),
        true,
        1.2,
        own,
        idle,
    );

    let best = cheapest(TEN);
    let [own, idle] = both(&|own| over(count(TEN, own), best.map(|best| best.0)));
    let name = best.map_or("the best peer", |best| best.1);
    mark(
        format!("10 callers: instr/job, over the best peer ({name})"),
        true,
        0.85,
        own,
        idle,
    );

    let [own, idle] = both(&|own| over(count(TEN_THOUSAND, own), count(HUNDRED, own)));
    mark(
        "10 000 callers, queue 1 024: instr/job, over 100 callers".to_owned(),
        true,
        1.3,
        own,
        idle,
    );

    for (case, callers) in [(PAIR_HUNDRED, "100"), (PAIR_THOUSAND, "1 000")] {
        let [own, idle] = both(&|own| nearest(case, own).map(|nearest| nearest.0));
        let name = nearest(case, OWN).map_or("the best peer", |nearest| nearest.1);
        let what = format!("two threads, {callers} callers: jobs/s, over the best peer ({name})");
        mark(what, false, 1.5, own, idle);
    }

    let [own, idle] = both(&|own| figures.median(Measure::Allocations, HUNDRED, own));
    mark(
        "100 callers: allocations/job".to_owned(),
        true,
        1.05,
        own,
        idle,
    );

    let bare = figures.median(Measure::Rate, LONE, BARE).map(f64::recip);
    let beyond = |one: f64, other: f64| {
        (one.recip() - bare.unwrap_or(0.0)) / (other.recip() - bare.unwrap_or(0.0))
    };
    let idle = figures.paired(LONE, IDLE, IMMEDIATE, beyond);
    let what =
        "lone caller: µs/job beyond the bare processor, over that of batch-aint-one, Immediate";
    mark(what.to_owned(), true, 1.0 / 3.0, None, idle);

    let [own, idle] = both(&|own| over(count(ROOMY, own), count(HUNDRED, own)));
    mark(
        "10 000 callers, queue 16 384: instr/job, over 100 callers".to_owned(),
        true,
        1.15,
        own,
        idle,
    );
    let [own, idle] = both(&|own| over(count(BROAD, own), count(ROOMY, own)));
    mark(
        "10 000 callers: instr/job, batch 10 000 over batch 100".to_owned(),
        true,
        1.15,
        own,
        idle,
    );

    let head = ["mark", "limit", "interval", "idle"].map(str::to_owned);
    markdown(&head, &rows)
}

/// The whole matrix: a table for each batch size and kind of figure.
pub fn matrix(figures: &Figures, callers: &[usize], batches: &[usize]) -> String {
    let mut text = String::new();
    type Figure = fn(&Figures, Case, &'static str) -> String;
    let kinds: [(&str, usize, Figure); 3] = [
        ("instr/job, one thread", 1, instructions),
        ("jobs/s, one thread", 1, rate),
        ("jobs/s, two threads", 2, rate),
    ];
    for (what, threads, figure) in kinds {
        for &batch in batches {
            let _ = write!(text, "\n{what}, batch {batch}:\n\n");
            let cases: Vec<_> = callers
                .iter()
                .map(|&callers| Case::closed(threads, callers, batch))
                .chain([Case::flood(threads, batch)])
                .collect();
            let mut head = vec![String::new()];
            head.extend(callers.iter().map(|callers| format!("{callers} callers")));
            head.push("flood".to_owned());
            let rows: Vec<_> = SUBJECTS
                .iter()
                .map(|entry| {
                    let figures = cases.iter().map(|case| figure(figures, *case, entry.name));
                    [entry.name.to_owned()].into_iter().chain(figures).collect()
                })
                .collect();
            text += &markdown(&head, &rows);
        }
    }
    text
}

/// Says which commit the sources of this crate are of.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let output = git.args(args).args(["--", "src"]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["log", "-1", "--format=%h"]) else {
        return "`src` is of an unknown commit.\n".to_owned();
    };
    match git(&["status", "--porcelain"]) {
        Some(changes) if changes.is_empty() => format!("`src` is that of commit {commit}.\n"),
        _ => format!("`src` is that of commit {commit}, with changes.\n"),
    }
}

/// Replaces what a file has between two comments of that name.
pub fn write_between(file: &Path, name: &str, text: &str) -> io::Result<()> {
    let old = fs::read_to_string(file)?;
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let parts = old.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts
        .ok_or_else(|| io::Error::other(format!("no place for {name} in {}", file.display())))?;
    fs::write(file, format!("{before}{begin}\n\n{text}\n{end}{after}"))
}
