//! What the errors say, and what can be got out of them.

use std::error::Error;
use std::sync::Arc;

use microbatch::{
    BuildError, Closed, JobError, MicroBatch, ShutdownTimeout, StartError, TrySubmitError,
};

use crate::support::{Cause, Gate};

/// All that a user reads: the error and its causes.
fn shown(error: &dyn Error) -> Vec<String> {
    let mut told = vec![error.to_string()];
    told.extend(error.source().map(shown).unwrap_or_default());
    told
}

fn job_errors() -> Vec<JobError> {
    vec![
        JobError::Closed,
        JobError::TooHeavy {
            weight: 9,
            limit: 5,
        },
        JobError::Failed(Arc::new(Cause(7))),
        JobError::Panicked(Arc::from("boom")),
        JobError::ResultCount {
            expected: 3,
            actual: 2,
        },
        JobError::Abandoned,
    ]
}

#[test]
fn messages_are_lowercase_and_without_a_period() {
    let mut errors: Vec<Box<dyn Error>> = Vec::new();
    errors.extend(job_errors().into_iter().map(Box::<dyn Error>::from));
    errors.push(Box::new(TrySubmitError::Full(1)));
    errors.push(Box::new(TrySubmitError::Closed(1)));
    errors.push(Box::new(TrySubmitError::TooHeavy(1)));
    errors.push(Box::new(StartError::AlreadyStarted));
    errors.push(Box::new(ShutdownTimeout { abandoned: 3 }));
    errors.push(Box::new(Closed));
    for message in errors.iter().map(ToString::to_string) {
        assert!(message.starts_with(char::is_lowercase), "{message}");
        assert!(!message.ends_with('.'), "{message}");
    }
}

#[test]
fn messages_carry_the_figures() {
    let shown: Vec<_> = job_errors().iter().map(ToString::to_string).collect();
    assert!(shown[1].contains('9') && shown[1].contains('5'));
    assert!(shown[3].contains("boom"));
    assert!(shown[4].contains('3') && shown[4].contains('2'));
    assert!(ShutdownTimeout { abandoned: 42 }.to_string().contains("42"));
}

#[test]
fn the_cause_is_the_source_and_not_told_twice() {
    let failed = JobError::Failed(Arc::new(Cause(7)));
    let chain = shown(&failed);
    assert_eq!(chain.len(), 2);
    assert!(!chain[0].contains("cause 7"));
    assert_eq!(chain[1], "cause 7");
    let source = failed.source().expect("a cause");
    assert_eq!(source.downcast_ref(), Some(&Cause(7)));
}

#[test]
fn only_a_failure_has_a_source() {
    let with_source = job_errors()
        .into_iter()
        .filter(|error| error.source().is_some());
    assert_eq!(with_source.count(), 1);
}

#[test]
fn a_timeout_at_the_start_is_told_once() {
    let error = StartError::from(ShutdownTimeout { abandoned: 3 });
    assert_eq!(
        error,
        StartError::ShutdownTimeout(ShutdownTimeout { abandoned: 3 })
    );
    let told = shown(&error).concat();
    assert_eq!(told.matches("abandoned").count(), 1, "{told}");
}

#[test]
fn a_refusal_gives_the_job_back_whatever_it_is() {
    // Neither `Debug` nor `Clone`.
    struct Job(u32);
    let refusals = [
        TrySubmitError::Full(Job(1)),
        TrySubmitError::Closed(Job(2)),
        TrySubmitError::TooHeavy(Job(3)),
    ];
    let shown = refusals.each_ref().map(|refusal| format!("{refusal:?}"));
    assert!(shown[0].starts_with("Full"));
    assert!(shown[1].starts_with("Closed"));
    assert!(shown[2].starts_with("TooHeavy"));
    assert_eq!(refusals.map(|refusal| refusal.into_job().0), [1, 2, 3]);
}

#[test]
fn a_refused_option_is_named() {
    let refused = MicroBatch::builder(Gate::open()).max_in_flight(0).build();
    let error = refused.expect_err("zero batches");
    assert_eq!(error, BuildError::Zero("max_in_flight"));
    assert!(error.to_string().contains("max_in_flight"));
}
