//! A file that was left before it was a database. redb marks a file last of all when it
//! makes one, and refuses a file that has contents and no mark: a process killed in
//! between would leave a path that cannot be used.

use std::fs::File;
use std::io;
use std::ops::Bound::Unbounded;
use std::path::Path;

use ::redb::StorageBackend;
use ::redb::backends::FileBackend;

/// The mark has so many bytes, at the front of the file.
const MARK: usize = 9;

/// Beyond it, redb has written nothing yet.
const HEADER: usize = 512;

/// No file that redb has only just begun is as large.
const LARGEST: u64 = 64 << 20;

/// Empties such a file, so that redb makes a database of it. Says whether it did. A file
/// that is in use, or that has anything else in it, is left alone.
pub(super) fn empty(path: &Path) -> io::Result<bool> {
    let file = File::options().read(true).write(true).open(path)?;
    let file = FileBackend::new(file).map_err(io::Error::other)?;
    // The lock that redb takes: nobody makes the database meanwhile.
    let locked = file.try_lock_range(Unbounded, Unbounded);
    let emptied = match locked {
        Ok(true) if is_unmade(&file)? => file.set_len(0).map(|()| true),
        _ => Ok(false),
    };
    file.close()?;
    emptied
}

fn is_unmade(file: &FileBackend) -> io::Result<bool> {
    let len = file.len()?;
    if len > LARGEST {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read(0, &mut bytes)?;
    let zeros = |bytes: Option<&[u8]>| bytes.is_some_and(|b| b.iter().all(|byte| *byte == 0));
    Ok(zeros(bytes.get(..MARK)) && zeros(bytes.get(HEADER..)))
}
