//! What is searched: nouns of `WordNet` and their definitions.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::Error;

/// How many nouns are searched.
pub const SEARCHED: usize = 20_000;

/// A noun in one of its meanings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noun {
    /// The first of the words with that meaning.
    pub word: String,
    /// What it means, without examples.
    pub definition: String,
}

/// Nouns to search, and others to make queries of.
#[derive(Debug)]
pub struct Corpus {
    /// What is searched: [`SEARCHED`] of them.
    pub searched: Vec<Noun>,
    /// What is not.
    pub others: Vec<Noun>,
}

impl Corpus {
    /// Reads `WordNet`'s nouns. Of those of one word in small letters, the ones with the
    /// shortest words are searched: they are the common ones.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Io`]; [`Error::Malformed`] with the number of the line.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|error| match error.kind() {
            ErrorKind::InvalidData => Error::malformed(path, "it is no text"),
            _ => Error::at(path)(error),
        })?;
        let mut searched = Vec::new();
        // The licence comes first, in lines that start with spaces.
        let lines = (1..).zip(text.lines());
        for (number, line) in lines.filter(|(_, line)| !line.starts_with(' ')) {
            let noun = noun(line)
                .ok_or_else(|| Error::malformed(path, format!("line {number} is no noun")))?;
            if noun.word.bytes().all(|byte| byte.is_ascii_lowercase()) {
                searched.push(noun);
            }
        }
        if searched.len() < SEARCHED {
            let why = format!("it has {} plain nouns, too few", searched.len());
            return Err(Error::malformed(path, why));
        }
        searched.sort_by_key(|noun| noun.word.len());
        let others = searched.split_off(SEARCHED);
        Ok(Self { searched, others })
    }
}

/// Reads a line: numbers, words, and a definition after a bar.
fn noun(line: &str) -> Option<Noun> {
    let (fields, gloss) = line.split_once(" | ")?;
    let mut fields = fields.split(' ');
    let kind = fields.nth(2)?;
    let word = fields.nth(1)?;
    let definition = gloss.split("; \"").next()?.trim();
    let whole = kind == "n" && !word.is_empty() && !definition.is_empty();
    whole.then(|| Noun {
        word: word.to_owned(),
        definition: definition.to_owned(),
    })
}
