//! Queries, made of definitions that are not in the index.

use std::sync::Arc;

use crate::{Error, MAX_TOKENS, Parts};

/// How many queries there are, before they repeat.
const QUERIES: usize = 2000;

/// Short queries: the first six words of a definition.
pub fn short(parts: &Parts) -> Arc<[String]> {
    let definitions = parts.others.iter().map(|noun| &noun.definition);
    let words = definitions.map(|text| text.split(' ').take(6).collect::<Vec<_>>());
    let long = words.filter(|words| words.len() == 6);
    long.map(|words| words.join(" ")).take(QUERIES).collect()
}

/// Queries of all lengths: of ten, seven are short, two are a whole definition, and one is a
/// passage of up to [`MAX_TOKENS`] tokens.
pub fn mixed(parts: &Parts) -> Result<Arc<[String]>, Error> {
    let short = short(parts);
    let mut definitions = parts.others.iter().rev().map(|noun| &noun.definition);
    let mut queries = Vec::new();
    for (number, short) in short.iter().enumerate() {
        let mut query = short.clone();
        match number % 10 {
            0..7 => {}
            7..9 => query.clone_from(definitions.next().unwrap_or(short)),
            _ => {
                // From 40 tokens to the most that the model takes.
                let least = 40 + number * 7 % (MAX_TOKENS - 40);
                for more in definitions.by_ref() {
                    let longer = format!("{query}; {more}");
                    match parts.tokenizer.encode(&longer) {
                        Ok(tokens) if tokens.len() < least => query = longer,
                        Ok(_) => {
                            query = longer;
                            break;
                        }
                        Err(Error::TooLong { .. }) => break,
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        queries.push(query);
    }
    Ok(queries.into())
}
