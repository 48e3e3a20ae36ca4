//! What the simulation has found: each the shortest scenario that shows it.

use super::run;
use super::scenario::{
    Batch, Caller, Change, Ending, Ends, Job, Options, Pause, Scenario, Start, Stays, Step, Storage,
};

fn options() -> Options {
    Options {
        start: Start::Spawned { polls: None },
        max_batch_size: 1,
        max_batch_weight: None,
        interval: Some(5),
        queue_capacity: 2,
        max_in_flight: 1,
        flush_when_idle: false,
        flush_cost: None,
        cancel_on_drop: false,
        shutdown_timeout: Some(50),
        hook: false,
        storage: Storage::Default,
        permits: None,
    }
}

fn submit(stays: Stays) -> Step {
    Step::Submit {
        times: 1,
        job: Job::default(),
        caller: Caller {
            stays,
            ..Caller::default()
        },
    }
}

fn holds(options: Options, batch: Batch, steps: &[(Step, Pause)]) {
    let scenario = Scenario {
        options,
        batches: vec![batch],
        steps: steps.to_vec(),
        ending: Ending::Shutdown,
    };
    if let Err(wrong) = run(&scenario, None) {
        panic!("{wrong}\n\n{scenario}");
    }
}

/// The processor's error was turned into a boxed one outside of the
/// `catch_unwind`. Where that panicked, the batch's task died with it: its jobs
/// were told `Abandoned` and counted as processing for ever after.
#[test]
fn an_error_that_panics_is_a_panic_of_its_batch() {
    let batch = Batch {
        ends: Ends::BadError,
        ..Batch::default()
    };
    let steps = [(submit(Stays::ToTheEnd), Pause::Sleeps(1))];
    holds(options(), batch, &steps);
}

/// A storage that held jobs, gave none and held none afterwards was to be asked
/// again after the interval. With nothing pending nothing was due then, and
/// nothing moved the deadline, which had passed: the loop spun.
#[test]
fn a_storage_that_loses_all_it_holds_leaves_the_loop_at_rest() {
    let options = Options {
        storage: Storage::PanicsOnTake(1),
        ..options()
    };
    let steps = [(submit(Stays::ToTheEnd), Pause::Sleeps(20))];
    holds(options, Batch::default(), &steps);
}

/// While the loop stopped, only its deadline set the timer. A storage that gave
/// nothing when the stop came was not asked again after the interval, and its
/// jobs were abandoned, or waited for ever for want of a deadline.
#[test]
fn a_storage_that_gives_nothing_is_asked_again_while_stopping() {
    let options = Options {
        shutdown_timeout: None,
        storage: Storage::PanicsBeforeTake(1),
        ..options()
    };
    let steps = [(submit(Stays::ToTheEnd), Pause::None)];
    holds(options, Batch::default(), &steps);
}

/// A stop that came upon two requests to flush took up no more than the second
/// meant. When what it meant was withdrawn, so that no batch was in flight, the
/// loop took itself for drained, and abandoned the jobs behind.
#[test]
fn a_stop_drains_what_was_submitted_after_a_flush() {
    let options = Options {
        cancel_on_drop: true,
        ..options()
    };
    let batch = Batch {
        takes: 20,
        ..Batch::default()
    };
    let steps = [
        (submit(Stays::ToTheEnd), Pause::Sleeps(1)),
        (submit(Stays::NotAtAll), Pause::Sleeps(1)),
        (Step::Flush(Stays::ToTheEnd), Pause::Sleeps(1)),
        (Step::Flush(Stays::ToTheEnd), Pause::Sleeps(1)),
        (submit(Stays::ToTheEnd), Pause::Sleeps(1)),
    ];
    holds(options, batch, &steps);
}

/// A weight limit that was raised and lowered between two turns of the loop was the
/// same as before to it. What had been accepted in between, heavier than a batch may
/// be, was never given, and hung.
#[test]
fn a_job_accepted_under_a_limit_that_the_loop_never_saw_goes_alone() {
    let options = Options {
        max_batch_weight: Some(1),
        ..options()
    };
    let heavy = Step::Submit {
        times: 1,
        job: Job {
            weight: 4,
            bites: false,
        },
        caller: Caller::default(),
    };
    let limit = |weight| Step::Reconfigure([Change::MaxBatchWeight(weight), Change::Nothing]);
    let steps = [
        (limit(6), Pause::None),
        (heavy, Pause::None),
        (limit(1), Pause::Sleeps(20)),
    ];
    holds(options, Batch::default(), &steps);
}

/// Once the size was lowered, a queued job could be the first of a batch and yet be
/// timed with the one before it, although it came long after.
#[test]
fn a_job_behind_more_than_a_batch_has_its_own_time() {
    let options = Options {
        max_batch_size: 5,
        interval: None,
        queue_capacity: 5,
        hook: true,
        ..options()
    };
    let batch = Batch {
        takes: 30,
        ..Batch::default()
    };
    let size = Step::Reconfigure([Change::MaxBatchSize(2), Change::Nothing]);
    let submit = |times| Step::Submit {
        times,
        job: Job::default(),
        caller: Caller::default(),
    };
    let steps = [
        (submit(5), Pause::Sleeps(1)),
        (submit(5), Pause::Sleeps(1)),
        (size, Pause::Sleeps(1)),
        (submit(1), Pause::Sleeps(9)),
        (submit(1), Pause::Sleeps(9)),
    ];
    holds(options, batch, &steps);
}
