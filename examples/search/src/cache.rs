//! Vectors kept in a file between runs.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::Path;

use crate::model::DIMENSIONS;
use crate::{Error, Tokens};

/// The file starts with this, what the vectors were made of, and a hash of them.
const MAGIC: &[u8; 8] = b"mbvecs01";
const HEADER: usize = MAGIC.len() + 16;

/// Tells apart what vectors are made of: the model, by its own
/// fingerprint, and the texts. Another version
/// of Rust may tell another number, and then the vectors are computed again.
#[must_use]
pub fn fingerprint(model: u64, texts: &[Tokens]) -> u64 {
    let mut hasher = DefaultHasher::new();
    model.hash(&mut hasher);
    for text in texts {
        text.ids().hash(&mut hasher);
    }
    hasher.finish()
}

/// Returns the vectors in the file: as many as `rows`, made of what has this fingerprint.
/// None if there is no such file, or if it is cut off, damaged, or made of something else.
///
/// # Errors
///
/// [`Error::Io`].
pub fn read(path: &Path, fingerprint: u64, rows: usize) -> Result<Option<Vec<f32>>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::at(path)(error)),
    };
    if bytes.len() != HEADER + rows * DIMENSIONS * size_of::<f32>() {
        return Ok(None);
    }
    let (start, vectors) = bytes.split_at(HEADER);
    if start != header(fingerprint, vectors) {
        return Ok(None);
    }
    let (numbers, _) = vectors.as_chunks();
    Ok(Some(
        numbers.iter().map(|&x| f32::from_le_bytes(x)).collect(),
    ))
}

/// Writes the file: under another name first, so that nobody reads half of it.
///
/// # Errors
///
/// [`Error::Io`].
pub fn write(path: &Path, fingerprint: u64, vectors: &[f32]) -> Result<(), Error> {
    let vectors: Vec<u8> = vectors.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut bytes = header(fingerprint, &vectors);
    bytes.extend(vectors);
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        let path = path.to_owned();
        Error::Io {
            path,
            source: error,
        }
    })
}

fn header(fingerprint: u64, vectors: &[u8]) -> Vec<u8> {
    let numbers = [fingerprint, hash(vectors)].map(u64::to_le_bytes);
    [MAGIC.as_slice(), numbers.as_flattened()].concat()
}

pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
