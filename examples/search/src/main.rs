//! Semantic search over definitions of nouns, and what batches gain there.

#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use microbatch_search::bench::{BATCH, Bench};
use microbatch_search::{Files, Options, Parts, Search};

/// Finds the nouns whose definitions are most like a text, by MiniLM on the CPU.
///
/// It searches 20 000 definitions of WordNet. The first run embeds them and keeps the
/// result. `examples/search/fetch` downloads what it needs.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to search for, such as: a small animal that purrs
    query: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures one query at a time against batches, on the same threads.
    Bench {
        /// Few and short rounds: some ten seconds, and rough figures.
        #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
        quick: bool,
        /// How often each load runs.
        #[arg(long, value_name = "N", default_value = "5")]
        rounds: NonZeroUsize,
        /// How long it runs each time, from 0.1 to 60.
        #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
        seconds: Duration,
        /// Draws throughput and latency into this SVG.
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// How many batches run at a time, each on a thread of its own [default: one a core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: Option<u8>,
    /// Where the files are [default: target/search in the workspace].
    #[arg(long, value_name = "FOLDER")]
    files: Option<PathBuf>,
}

impl Common {
    fn threads(&self) -> usize {
        let cores = || available_parallelism().map_or(1, NonZeroUsize::get).min(64);
        self.threads.map_or_else(cores, usize::from)
    }

    fn load(&self) -> anyhow::Result<Arc<Parts>> {
        let files = self.files.clone().map_or_else(Files::fetched, Files::new);
        Ok(Arc::new(Parts::load(&files, self.threads())?))
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it takes a number from 0.1 to 60".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help goes to standard output and is no failure.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let told = error.render().to_string();
            // Without the usage, which `--help` shows.
            eprintln!("{}", told.lines().next().unwrap_or_default());
            return ExitCode::FAILURE;
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        None => answer(&arguments.query.join(" "), &arguments.common).await,
        Some(Command::Bench {
            quick,
            rounds,
            seconds,
            picture,
            common,
        }) => {
            let bench = Bench {
                threads: common.threads(),
                rounds: if quick { 1 } else { rounds.get() },
                time: if quick {
                    Duration::from_millis(300)
                } else {
                    seconds
                },
                picture,
            };
            Ok(bench.run(&common.load()?).await?)
        }
    }
}

/// Prints what is found for one query.
async fn answer(query: &str, common: &Common) -> anyhow::Result<()> {
    ensure!(!query.trim().is_empty(), "there is no query; see --help");
    let options = Options {
        threads: 1,
        max_batch_size: BATCH,
        similar: true,
    };
    let search = Search::start(&common.load()?, options).await?;
    for found in search.search(query).await? {
        let noun = found.noun;
        println!("{:.3}  {:<16}  {}", found.score, noun.word, noun.definition);
    }
    search.stop().await?;
    Ok(())
}
