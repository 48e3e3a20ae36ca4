//! A file whose creation was cut short, by a full disk or the end of the process. redb makes
//! it long first and writes its magic number last, and calls it foreign ever after.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Bound::Unbounded;
use std::path::Path;

use ::redb::StorageBackend;
use ::redb::backends::FileBackend;

const MAGIC: usize = 9;
const HEADER: usize = 320;
/// A new file is smaller.
const LARGEST: u64 = 16 << 20;

/// Makes such a file empty, so that it is a new one: no magic number, at most a part of the
/// header, and no byte behind that.
pub(super) fn empty(path: &Path) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut magic = [0; MAGIC];
    file.read_exact(&mut magic)?;
    if magic != [0; MAGIC] || file.metadata()?.len() > LARGEST {
        return Ok(());
    }
    // Whoever creates the file at this moment has it locked.
    let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
    if let Ok(true) = backend.try_lock_range(Unbounded, Unbounded) {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let (magic, rest) = (bytes.iter().take(MAGIC), bytes.iter().skip(HEADER));
        if magic.chain(rest).all(|byte| *byte == 0) {
            tracing::info!(path = %path.display(), "its creation was cut short; creating it anew");
            file.set_len(0)?;
        }
        backend.close()?;
    }
    Ok(())
}
