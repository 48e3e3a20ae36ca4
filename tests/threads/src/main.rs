//! The real `MicroBatch` on real threads: jobs by the million with faults mixed
//! in, whose outcomes must match to the last one, and a soak whose heap must
//! stay flat.

#![forbid(unsafe_code)]

mod checks;
mod flood;
mod load;
mod progress;
mod soak;

use std::alloc::System;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const THREADS: usize = 4;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Tasks that submit at the same time
    #[arg(long, global = true, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    tasks: u32,
}

#[derive(Subcommand)]
enum What {
    /// Sends that many jobs through one batcher and compares all counts
    Flood {
        #[arg(long, default_value_t = 10_000_000)]
        jobs: u32,
    },
    /// Repeats a smaller flood for that long and watches the heap
    Soak {
        #[arg(long, default_value_t = 5.0)]
        minutes: f64,
    },
}

fn runtime() -> Runtime {
    let builder = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_time()
        .build();
    builder.expect("a runtime")
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    load::silence_panics_on_purpose();
    let holds = match arguments.what {
        What::Flood { jobs } => flood::run(jobs, arguments.tasks),
        What::Soak { minutes } => soak::run(minutes, arguments.tasks),
    };
    if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
