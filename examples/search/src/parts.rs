//! What a search is made of, loaded once and shared by its threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rten::ThreadPool;

use crate::model::DIMENSIONS;
use crate::progress::Progress;
use crate::{Corpus, Error, Files, Index, Model, Noun, Tokenizer, Tokens, cache};

/// How many definitions a pass embeds.
const PASS: usize = 64;

/// Tokeniser, model, index, and the nouns that its rows stand for.
#[derive(Debug)]
pub struct Parts {
    /// Turns texts into tokens.
    pub tokenizer: Tokenizer,
    /// Turns tokens into vectors.
    pub model: Model,
    /// The vectors of the definitions.
    pub index: Index,
    /// What the rows of the index stand for.
    pub nouns: Vec<Noun>,
    /// Nouns that are not in the index.
    pub others: Vec<Noun>,
}

impl Parts {
    /// Loads all of it. The embeddings of the definitions are computed on so many threads
    /// unless they are there from an earlier run, and kept; a line on standard error tells
    /// how far that is.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Io`], [`Error::Malformed`], [`Error::Compute`].
    pub fn load(files: &Files, threads: usize) -> Result<Self, Error> {
        files.check()?;
        let Corpus { searched, others } = Corpus::load(&files.nouns())?;
        Self::with(files, searched, others, threads)
    }

    /// As [`load`](Self::load), with nouns of the caller's choice.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load).
    pub fn with(
        files: &Files,
        nouns: Vec<Noun>,
        others: Vec<Noun>,
        threads: usize,
    ) -> Result<Self, Error> {
        let tokenizer = Tokenizer::load(&files.vocabulary())?;
        let texts = nouns.iter().map(|noun| tokenizer.encode(&noun.definition));
        let texts = texts.collect::<Result<Vec<_>, _>>();
        let texts = texts.map_err(|error| Error::malformed(&files.nouns(), error))?;
        let model = Model::load(&files.model())?;

        let fingerprint = cache::fingerprint(model.fingerprint(), &texts);
        let kept = cache::read(&files.embeddings(), fingerprint, texts.len())?;
        let vectors = match kept {
            Some(vectors) => vectors,
            None => {
                let vectors = embed_all(&model, &texts, threads)?;
                cache::write(&files.embeddings(), fingerprint, &vectors)?;
                vectors
            }
        };
        Ok(Self {
            tokenizer,
            model,
            index: Index::new(&vectors),
            nouns,
            others,
        })
    }
}

/// Embeds all texts. All are there from the start, so they are sorted by length and cut
/// into equal parts: nothing for a micro-batcher.
fn embed_all(model: &Model, texts: &[Tokens], threads: usize) -> Result<Vec<f32>, Error> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&row| texts[row].len());
    let passes: Vec<&[usize]> = order.chunks(PASS).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let vectors = Mutex::new(vec![0.0; texts.len() * DIMENSIONS]);
    let work = || {
        let pool = Arc::new(ThreadPool::with_num_threads(1));
        while let Some(rows) = passes.get(next.fetch_add(1, Ordering::Relaxed)) {
            let batch: Vec<Tokens> = rows.iter().map(|&row| texts[row].clone()).collect();
            let embedded = model.embed(&batch, &pool)?;
            let mut vectors = vectors.lock().unwrap_or_else(PoisonError::into_inner);
            for (vector, row) in embedded.chunks(DIMENSIONS).zip(*rows) {
                vectors[row * DIMENSIONS..][..DIMENSIONS].copy_from_slice(vector);
            }
            done.fetch_add(rows.len(), Ordering::Relaxed);
        }
        Ok::<_, Error>(())
    };
    let mut progress = Progress::new("embedding the definitions, this once", texts.len());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(20));
            progress.show(done.load(Ordering::Relaxed));
        }
        let ended = workers.into_iter().map(|worker| worker.join());
        let ended = ended.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.collect::<Result<Vec<()>, _>>()
    })?;
    progress.end();
    Ok(vectors.into_inner().unwrap_or_else(PoisonError::into_inner))
}
