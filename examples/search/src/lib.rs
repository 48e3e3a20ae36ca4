//! Semantic search over definitions, with one pass of the model and one scan of the index
//! for all queries that come together.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod bench;
pub mod cache;
pub mod model;
pub mod progress;

mod corpus;
mod error;
mod files;
mod index;
mod parts;
mod search;
mod tokenizer;

pub use corpus::{Corpus, Noun, SEARCHED};
pub use error::Error;
pub use files::Files;
pub use index::{Hit, Index, Scanner};
pub use model::Model;
pub use parts::Parts;
pub use search::{ANSWERS, Counted, Found, Options, Search};
pub use tokenizer::{MAX_TOKENS, Tokenizer, Tokens};
