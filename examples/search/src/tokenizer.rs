//! Texts to tokens, as BERT does it for English.

use std::collections::HashMap;
use std::path::Path;
use std::{fmt, fs};

use rten_text::models::{Model as _, WordPiece};
use rten_text::normalizers::{Bert as Normalizer, BertOptions, Normalizer as _};
use rten_text::pre_tokenizers::{Bert as Splitter, PreTokenizer as _};

use crate::Error;

/// How many tokens a text may have, with the two that mark its ends: as many as the model
/// was trained with.
pub const MAX_TOKENS: usize = 128;

/// A text as the model reads it: between 3 and [`MAX_TOKENS`] tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens(Vec<i32>);

impl Tokens {
    /// Returns the tokens, of which the first and the last mark the ends.
    #[must_use]
    pub fn ids(&self) -> &[i32] {
        &self.0
    }

    /// Returns how many tokens there are.
    #[expect(clippy::len_without_is_empty, reason = "there are three or more")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Turns texts into tokens. It may be shared between threads.
pub struct Tokenizer {
    normalizer: Normalizer,
    splitter: Splitter,
    words: WordPiece,
    start: i32,
    end: i32,
}

impl Tokenizer {
    /// Reads a vocabulary: a JSON array of 30 522 strings in the order of their numbers,
    /// where what starts a word has `▁` before it.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Io`], [`Error::Malformed`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let json = fs::read(path).map_err(Error::at(path))?;
        let words: Vec<String> =
            serde_json::from_slice(&json).map_err(|error| Error::malformed(path, error))?;
        let numbered = words.iter().zip(0..);
        let words: HashMap<String, u32> = numbered.map(|(word, id)| (piece(word), id)).collect();
        let number = |word: &str| match words.get(word).map(|id| i32::try_from(*id)) {
            Some(Ok(id)) => Ok(id),
            _ => Err(Error::malformed(path, format!("it has no {word}"))),
        };
        let (start, end, _) = (number("[CLS]")?, number("[SEP]")?, number("[UNK]")?);
        Ok(Self {
            normalizer: Normalizer::new(BertOptions {
                lowercase: true,
                strip_accents: true,
            }),
            splitter: Splitter::new(),
            words: WordPiece::from_vocab(words, Default::default()),
            start,
            end,
        })
    }

    /// Returns the tokens of a text.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] and [`Error::TooLong`].
    pub fn encode(&self, text: &str) -> Result<Tokens, Error> {
        let (text, _) = self.normalizer.normalize(text).map_err(Error::compute)?;
        let mut ids = vec![self.start];
        for word in self.splitter.pre_tokenize(&text).map_err(Error::compute)? {
            let words = &self.words;
            words
                .encode_with_offsets(word, &mut |_, id| ids.push(id.cast_signed()))
                .map_err(Error::compute)?;
        }
        ids.push(self.end);
        match ids.len() {
            ..=2 => Err(Error::Empty),
            3..=MAX_TOKENS => Ok(Tokens(ids)),
            tokens => Err(Error::TooLong {
                tokens,
                limit: MAX_TOKENS,
            }),
        }
    }

    /// Returns a text of exactly so many tokens, between 3 and [`MAX_TOKENS`]: the first
    /// of these texts.
    pub(crate) fn cut(&self, texts: &[&Tokens], len: usize) -> Tokens {
        let inner = texts.iter().flat_map(|text| &text.0[1..text.len() - 1]);
        let mut ids = vec![self.start];
        ids.extend(inner.take(len - 2));
        ids.push(self.end);
        assert_eq!(ids.len(), len, "the texts are too short");
        Tokens(ids)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").finish_non_exhaustive()
    }
}

/// Returns a word of the vocabulary in BERT's own spelling, in which it is what goes on
/// that has a mark.
fn piece(word: &str) -> String {
    if word.len() > 2 && word.starts_with('[') && word.ends_with(']') {
        return word.to_owned();
    }
    match word.strip_prefix('▁') {
        Some("") => "[unused0]".to_owned(),
        Some(start) => start.to_owned(),
        None => format!("##{word}"),
    }
}
