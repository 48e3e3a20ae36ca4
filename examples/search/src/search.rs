//! The search that many callers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use microbatch::{
    BatchProcessor, BlockingProcessor, CancellationToken, MicroBatch, ShutdownTimeout, Similar,
};
use rten::ThreadPool;
use tokio::sync::Mutex;

use crate::{Error, Hit, Noun, Parts, Scanner, Tokens};

/// How many tokens a batch holds at most, without padding.
///
/// The time of a pass grows with its tokens, and beyond some 250 of them a longer one does
/// little more a second: it only keeps those waiting whose texts are short. This is twice
/// that, for 32 texts of 16 tokens. What is padded comes on top, and depends on which texts
/// meet: a sum of weights cannot tell it, and [`Similar`] keeps it low.
const MAX_BATCH_TOKENS: usize = 512;

/// How long queries wait for others while one thread is busy and another is free. While all
/// are free nothing waits, and while all are busy the next batch grows without it.
const INTERVAL: Duration = Duration::from_millis(1);

/// How many definitions an answer has.
pub const ANSWERS: usize = 5;

/// How to search.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many batches run at a time, each on a thread of its own.
    pub threads: usize,
    /// How many queries a batch holds at most.
    pub max_batch_size: usize,
    /// Whether a batch holds texts of like length, by [`Similar`], or whatever came first.
    pub similar: bool,
}

/// A definition that was found.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// What was found.
    pub noun: &'a Noun,
    /// How like the query it is: 1 at the most.
    pub score: f32,
}

/// Searches for many callers at a time.
///
/// A caller's text is turned into tokens in its own task. So its weight is exact, and a text
/// that is too long is refused before it can fail the batch of others.
#[derive(Debug)]
pub struct Search {
    parts: Arc<Parts>,
    queries: MicroBatch<Tokens, Vec<Hit>>,
    counts: Arc<Counts>,
}

impl Search {
    /// Starts the threads and the loop. It must be called in a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Spawn`] and [`Error::Options`].
    pub async fn start(parts: &Arc<Parts>, options: Options) -> Result<Self, Error> {
        let counts = Arc::new(Counts::default());
        let mut threads = Vec::new();
        for _ in 0..options.threads {
            let (parts, counts) = (Arc::clone(parts), Arc::clone(&counts));
            let thread = BlockingProcessor::spawn(
                || Ok::<_, Error>(Thread::new()),
                move |thread, queries| thread.answer(&parts, &counts, &queries),
            );
            threads.push(Mutex::new(thread.await?));
        }
        let builder = MicroBatch::builder(Threads(threads))
            .flush_when_idle(true)
            .max_in_flight(options.threads)
            .interval(INTERVAL)
            .max_batch_size(options.max_batch_size)
            .max_batch_weight(MAX_BATCH_TOKENS, Tokens::len)
            .queue_capacity(1024);
        let stop = CancellationToken::new();
        let queries = if options.similar {
            let similar = Similar::by(|query: &Tokens| query.len() as u64);
            builder.storage(similar).build_running(stop)?
        } else {
            builder.build_running(stop)?
        };
        Ok(Self {
            parts: Arc::clone(parts),
            queries,
            counts,
        })
    }

    /// Returns the definitions most like the text, the best first.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::TooLong`], [`Error::Job`].
    pub async fn search(&self, text: &str) -> Result<Vec<Found<'_>>, Error> {
        let query = self.parts.tokenizer.encode(text)?;
        let hits = self.queries.submit(query).await?;
        let found = hits.into_iter().map(|hit| Found {
            noun: &self.parts.nouns[hit.row],
            score: hit.score,
        });
        Ok(found.collect())
    }

    /// Returns what was computed so far.
    #[must_use]
    pub fn counted(&self) -> Counted {
        Counted {
            batches: self.counts.batches.load(Ordering::Relaxed),
            queries: self.counts.queries.load(Ordering::Relaxed),
            tokens: self.counts.tokens.load(Ordering::Relaxed),
            computed: self.counts.computed.load(Ordering::Relaxed),
        }
    }

    /// Answers what was accepted and ends the threads.
    ///
    /// # Errors
    ///
    /// [`ShutdownTimeout`] if that takes more than 5 s.
    pub async fn stop(&self) -> Result<(), ShutdownTimeout> {
        self.queries.shutdown().await
    }
}

/// What was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// How many batches.
    pub batches: u64,
    /// How many queries they held.
    pub queries: u64,
    /// How many tokens the queries had.
    pub tokens: u64,
    /// How many tokens the model computed, with the padding.
    pub computed: u64,
}

#[derive(Debug, Default)]
struct Counts {
    batches: AtomicU64,
    queries: AtomicU64,
    tokens: AtomicU64,
    computed: AtomicU64,
}

impl Counts {
    fn add(&self, queries: &[Tokens]) {
        let longest = queries.iter().map(Tokens::len).max().unwrap_or(0);
        let tokens: usize = queries.iter().map(Tokens::len).sum();
        for (counter, by) in [
            (&self.batches, 1),
            (&self.queries, queries.len()),
            (&self.tokens, tokens),
            (&self.computed, queries.len() * longest),
        ] {
            counter.fetch_add(by as u64, Ordering::Relaxed);
        }
    }
}

/// What a thread has for itself.
struct Thread {
    /// Of one thread: one batch has one core, and cores do not wait for each other.
    pool: Arc<ThreadPool>,
    scanner: Scanner,
}

impl Thread {
    fn new() -> Self {
        let pool = Arc::new(ThreadPool::with_num_threads(1));
        let scanner = Scanner::new(Arc::clone(&pool));
        Self { pool, scanner }
    }

    /// Answers a batch: one pass of the model, and one scan.
    fn answer(
        &mut self,
        parts: &Parts,
        counts: &Counts,
        queries: &[Tokens],
    ) -> Result<Vec<Vec<Hit>>, Error> {
        counts.add(queries);
        let vectors = parts.model.embed(queries, &self.pool)?;
        self.scanner.best(&parts.index, &vectors, ANSWERS)
    }
}

/// As many threads as batches are in flight; a batch takes one that is free.
struct Threads(Vec<Mutex<BlockingProcessor<Tokens, Vec<Hit>>>>);

impl BatchProcessor<Tokens, Vec<Hit>> for Threads {
    type Error = Box<dyn std::error::Error + Send + Sync>;

    async fn process(&self, queries: Vec<Tokens>) -> Result<Vec<Vec<Hit>>, Self::Error> {
        let free = self.0.iter().find_map(|thread| thread.try_lock().ok());
        let thread = free.ok_or("no thread is free")?;
        thread.process(queries).await
    }
}
