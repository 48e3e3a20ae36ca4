//! What was measured, and what can be said of it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::load::{Case, Shape};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measure {
    /// Instructions a job.
    Instructions,
    /// The same in a plain `--release` build.
    PlainInstructions,
    /// Jobs a second, one value a round.
    Rate,
    /// Mean number of jobs in a batch, one value a round.
    MeanBatch,
    /// Allocations a job.
    Allocations,
    /// Bytes a job.
    Bytes,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions_per_job",
            Self::PlainInstructions => "plain_instructions_per_job",
            Self::Rate => "jobs_per_second",
            Self::MeanBatch => "mean_batch",
            Self::Allocations => "allocations_per_job",
            Self::Bytes => "bytes_per_job",
        }
    }
}

#[derive(Debug, Default)]
pub struct Figures {
    values: BTreeMap<(Measure, Case, &'static str), Vec<f64>>,
    /// What went wrong, where something did.
    problems: BTreeMap<(&'static str, Case), String>,
}

impl Figures {
    pub fn push(&mut self, measure: Measure, case: Case, subject: &'static str, value: f64) {
        let key = (measure, case, subject);
        self.values.entry(key).or_default().push(value);
    }

    pub fn note_problem(&mut self, case: Case, subject: &'static str, problem: String) {
        self.problems.entry((subject, case)).or_insert(problem);
    }

    pub fn problem(&self, case: Case, subject: &'static str) -> Option<&str> {
        self.problems.get(&(subject, case)).map(String::as_str)
    }

    pub fn problems(&self) -> impl Iterator<Item = (&'static str, Case, &str)> {
        let problems = self.problems.iter();
        problems.map(|((subject, case), problem)| (*subject, *case, problem.as_str()))
    }

    fn all(&self, measure: Measure, case: Case, subject: &'static str) -> &[f64] {
        let values = self.values.get(&(measure, case, subject));
        values.map_or(&[], Vec::as_slice)
    }

    pub fn median(&self, measure: Measure, case: Case, subject: &'static str) -> Option<f64> {
        median(self.all(measure, case, subject).iter().copied())
    }

    /// The median, over the rounds, of what `compare` says of the two rates of
    /// a round.
    pub fn paired(
        &self,
        case: Case,
        one: &'static str,
        other: &'static str,
        compare: impl Fn(f64, f64) -> f64,
    ) -> Option<f64> {
        let rates = |subject| self.all(Measure::Rate, case, subject).iter();
        median(rates(one).zip(rates(other)).map(|(a, b)| compare(*a, *b)))
    }

    /// Writes every value that was measured.
    pub fn write_csv(&self, to: &mut impl Write) -> io::Result<()> {
        let header = "measure,subject,shape,threads,callers,batch,queue,round,value";
        writeln!(to, "{header}")?;
        for ((measure, case, subject), values) in &self.values {
            let measure = measure.name();
            let shape = match case.shape {
                Shape::Closed => "closed",
                Shape::Flood => "flood",
                Shape::Collected => "collected",
                Shape::CollectedSpawned => "collected-spawned",
            };
            let Case {
                threads,
                callers,
                batch,
                queue,
                ..
            } = case;
            let rounds = values.iter().enumerate();
            for (round, value) in rounds.filter(|(_, value)| value.is_finite()) {
                writeln!(
                    to,
                    "{measure},\"{subject}\",{shape},{threads},{callers},{batch},{queue},{round},{value:.3}"
                )?;
            }
        }
        Ok(())
    }
}

/// Returns the median of those that are numbers.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let above = values.get(values.len() / 2)?;
    let below = values[(values.len() - 1) / 2];
    Some(f64::midpoint(below, *above))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), Some(2.5));
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([].into_iter()), None);
    }

    #[test]
    fn rates_are_compared_within_a_round() {
        let case = Case::closed(2, 100, 100);
        let mut figures = Figures::default();
        for (one, other) in [(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)] {
            figures.push(Measure::Rate, case, "one", one);
            figures.push(Measure::Rate, case, "other", other);
        }
        let ratio = figures.paired(case, "one", "other", |one, other| one / other);
        assert_eq!(ratio, Some(3.0));
    }
}
