//! Runs subjects as child processes and measures them.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::figures::{Figures, Measure};
use crate::load::{Case, Load, Shape};
use crate::progress::Progress;
use crate::subject::Outcome;

/// Beyond that a child is taken to hang.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_UNDER_VALGRIND: Duration = Duration::from_secs(600);

/// The clock is not slowed down with the program under valgrind, so there the
/// interval is longer, lest batches that fill in good time fall due.
const INTERVAL_UNDER_VALGRIND: Duration = Duration::from_millis(50);

/// How long a run takes by the clock, about.
const RUN: Duration = Duration::from_millis(150);

/// One case to be measured, and of whom.
#[derive(Debug)]
pub struct Task {
    /// Instructions of either build, allocations (with bytes) or rate (with mean
    /// batch).
    pub measure: Measure,
    pub case: Case,
    pub subjects: Vec<&'static str>,
}

impl Task {
    pub fn new(measure: Measure, case: Case, subjects: &[&'static str]) -> Self {
        Self {
            measure,
            case,
            subjects: subjects.to_vec(),
        }
    }
}

/// Who measures: knows the binaries and keeps the figures.
#[derive(Debug)]
pub struct Lab {
    subject: PathBuf,
    counted: PathBuf,
    plain: PathBuf,
    pub figures: Figures,
    progress: Progress,
    /// Seconds a job takes, about.
    paces: BTreeMap<(Case, &'static str), f64>,
}

impl Lab {
    pub fn new(subject: &str, counted: &str) -> Self {
        Self {
            subject: subject.into(),
            counted: counted.into(),
            plain: PathBuf::new(),
            figures: Figures::default(),
            progress: Progress::new(),
            paces: BTreeMap::new(),
        }
    }

    /// Builds the subjects as a plain `cargo build --release` does, into the same
    /// target directory, for the plan to measure.
    pub fn build_plain(&mut self) -> io::Result<()> {
        let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--release", "--package", "peers"])
            .args(["--bin", "subject"]);
        if !cfg!(feature = "batchy") {
            cargo.arg("--no-default-features");
        }
        let target = self.subject.ancestors().nth(2);
        let target = target.ok_or_else(|| io::Error::other("no target directory"))?;
        cargo.arg("--target-dir").arg(target);
        if !cargo.status()?.success() {
            return Err(io::Error::other("the plain build failed"));
        }
        self.plain = target.join("release").join("subject");
        Ok(())
    }

    /// Measures everything in the plan, rates in so many rounds.
    pub fn run(&mut self, plan: &[Task], rounds: usize) {
        let runs = |task: &Task| match task.measure {
            Measure::Rate => rounds,
            _ => 2,
        };
        let steps = plan.iter().map(|task| runs(task) * task.subjects.len());
        self.progress.expect(steps.sum());
        for task in plan {
            match task.measure {
                Measure::Instructions | Measure::PlainInstructions => {
                    self.instructions(task.measure, task.case, &task.subjects);
                }
                Measure::Allocations => self.allocations(task.case, &task.subjects),
                Measure::Rate => self.rates(task.case, &task.subjects, rounds),
                measure => unreachable!("{measure:?} comes with another"),
            }
        }
        self.progress.finish();
    }

    /// Counts instructions a job: the difference between a run and a longer
    /// one, by the difference in jobs.
    fn instructions(&mut self, measure: Measure, case: Case, subjects: &[&'static str]) {
        let binary = match measure {
            Measure::PlainInstructions => self.plain.clone(),
            _ => self.subject.clone(),
        };
        let waits = case.shape == Shape::Closed && case.callers < case.batch;
        for &subject in subjects {
            let counts = self.lengths(case, subject).and_then(|(lengths, more)| {
                let mut counts = [0.0; 2];
                for (count, mut load) in counts.iter_mut().zip(lengths) {
                    self.progress
                        .step(&format!("instructions, {case}"), subject);
                    if !waits {
                        load.interval = INTERVAL_UNDER_VALGRIND;
                    }
                    let mut command = Command::new("valgrind");
                    command
                        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
                        .arg(&binary);
                    let (_, log) = self.child(command, subject, load, PATIENCE_UNDER_VALGRIND)?;
                    let collected = log.lines().find_map(|l| l.split_once("Collected : "));
                    *count = collected?.1.trim().parse().ok()?;
                }
                Some((counts[1] - counts[0]) / more)
            });
            if let Some(count) = counts {
                self.figures.push(measure, case, subject, count);
            }
        }
    }

    /// Counts allocations and bytes a job, likewise.
    fn allocations(&mut self, case: Case, subjects: &[&'static str]) {
        for &subject in subjects {
            let Some((lengths, more)) = self.lengths(case, subject) else {
                continue;
            };
            let outcomes = lengths.map(|load| {
                self.progress.step(&format!("allocations, {case}"), subject);
                self.child(Command::new(&self.counted), subject, load, PATIENCE)
            });
            if let [Some((short, _)), Some((long, _))] = outcomes {
                let a_job = |short: u64, long: u64| (long as f64 - short as f64) / more;
                let allocations = a_job(short.allocations, long.allocations);
                let bytes = a_job(short.bytes, long.bytes);
                let figures = &mut self.figures;
                figures.push(Measure::Allocations, case, subject, allocations);
                figures.push(Measure::Bytes, case, subject, bytes);
            }
        }
    }

    /// Measures jobs a second in rounds. In each round every subject has its
    /// turn, one after the other and each time beginning with another, so that
    /// what disturbs a round disturbs them alike.
    fn rates(&mut self, case: Case, subjects: &[&'static str], rounds: usize) {
        let loads: Vec<_> = subjects
            .iter()
            .filter_map(|&subject| {
                let load = match case.shape {
                    Shape::Closed => case.clock(RUN),
                    Shape::Flood => {
                        let pace = self.pace(case, subject)?;
                        case.jobs((RUN.as_secs_f64() / pace) as usize)
                    }
                    Shape::Collected | Shape::CollectedSpawned => case.jobs(case.callers),
                };
                Some((subject, load))
            })
            .collect();
        for round in 0..rounds {
            for turn in 0..loads.len() {
                let (subject, load) = loads[(round + turn) % loads.len()];
                self.progress
                    .step(&format!("jobs a second, {case}"), subject);
                let outcome = self.child(Command::new(&self.subject), subject, load, PATIENCE);
                // A round that failed is in no pair; the problem is reported.
                let (rate, batch) = outcome.map_or((f64::NAN, f64::NAN), |(outcome, _)| {
                    let jobs = outcome.tally.jobs as f64;
                    (jobs / outcome.elapsed.as_secs_f64(), outcome.mean_batch)
                });
                self.figures.push(Measure::Rate, case, subject, rate);
                self.figures.push(Measure::MeanBatch, case, subject, batch);
            }
        }
    }

    /// Two loads long enough to tell what a job costs, and no longer, and the
    /// difference in jobs.
    fn lengths(&mut self, case: Case, subject: &'static str) -> Option<([Load; 2], f64)> {
        let pace = self.pace(case, subject)?;
        let jobs = ((2.0 / pace) as usize).clamp(500, 100_000);
        // As many for each caller.
        let callers = case.callers.max(1);
        let more = jobs.div_ceil(callers) * callers;
        let short = (jobs / 2).div_ceil(callers) * callers;
        let loads = [case.jobs(short), case.jobs(short + more)];
        Some((loads, more as f64))
    }

    /// Returns how long a job takes, about, in seconds.
    fn pace(&mut self, case: Case, subject: &'static str) -> Option<f64> {
        if let Some(pace) = self.paces.get(&(case, subject)) {
            return Some(*pace);
        }
        let load = match case.shape {
            Shape::Closed => case.clock(RUN / 3),
            Shape::Flood => case.jobs(20_000),
            Shape::Collected | Shape::CollectedSpawned => case.jobs(case.callers),
        };
        let (outcome, _) = self.child(Command::new(&self.subject), subject, load, PATIENCE)?;
        let pace = outcome.elapsed.as_secs_f64() / outcome.tally.jobs as f64;
        self.paces.insert((case, subject), pace);
        Some(pace)
    }

    /// Runs a subject, checks that it did its work, and returns what it says
    /// with what it wrote to stderr.
    fn child(
        &mut self,
        mut command: Command,
        subject: &'static str,
        load: Load,
        patience: Duration,
    ) -> Option<(Outcome, String)> {
        command.arg(subject).args(load.to_args());
        let ended = run(command, patience).and_then(|(out, log)| {
            let told = Outcome::from_lines(&out);
            let outcome = told.ok_or_else(|| last_line(&log))?;
            check(&outcome, load.case)?;
            Ok((outcome, log))
        });
        match ended {
            Ok(ended) => Some(ended),
            Err(problem) => {
                self.figures.note_problem(load.case, subject, problem);
                None
            }
        }
    }
}

/// Says what is wrong with an outcome.
fn check(outcome: &Outcome, case: Case) -> Result<(), String> {
    let tally = &outcome.tally;
    let error = outcome.error.as_deref().unwrap_or("no error");
    if tally.wrong > 0 {
        Err(format!("{} wrong results", tally.wrong))
    } else if tally.panicked > 0 {
        Err(format!("{} callers panicked", tally.panicked))
    } else if tally.failed > 0 {
        Err(format!("{} jobs failed: {error}", tally.failed))
    } else if outcome.largest > case.batch {
        Err(format!("a batch of {}", outcome.largest))
    } else {
        Ok(())
    }
}

/// Runs a command that ends by itself or is ended, and returns what it wrote to
/// stdout and stderr.
fn run(mut command: Command, patience: Duration) -> Result<(String, String), String> {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    let out = read(child.stdout.take());
    let log = read(child.stderr.take());
    while !has_ended(&mut child) {
        if began.elapsed() > patience {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("not done within {} s", patience.as_secs()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let [out, log] = [out, log].map(|text| text.join().unwrap_or_default());
    Ok((out, log))
}

fn has_ended(child: &mut Child) -> bool {
    child.try_wait().is_ok_and(|status| status.is_some())
}

fn read(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn last_line(log: &str) -> String {
    log.lines().last().unwrap_or("ended early").to_owned()
}
