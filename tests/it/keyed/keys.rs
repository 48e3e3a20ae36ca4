//! Doubles for keys and ids: what they do panics where the test says so.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// A place of a key's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Hash = 1,
    Eq = 2,
    Clone = 4,
    #[cfg_attr(not(feature = "tracked"), allow(dead_code))]
    Borrow = 8,
    Drop = 16,
}

/// Says which places panic, of all keys that have it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fuse(Arc<AtomicU8>);

impl Fuse {
    pub(crate) fn arm(&self, place: Place) {
        self.0.fetch_or(place as u8, Ordering::SeqCst);
    }

    pub(crate) fn disarm(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    pub(crate) fn key(&self, number: u32) -> Key {
        Key {
            number,
            cloned: false,
            fuse: self.clone(),
        }
    }

    fn pass(&self, place: Place) {
        let armed = self.0.load(Ordering::SeqCst) & place as u8 != 0;
        assert!(!armed, "{place:?}");
    }
}

/// Its number is all that is hashed and compared.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) number: u32,
    /// A clone is the processor's, which may be what panics: its drop does not.
    cloned: bool,
    fuse: Fuse,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fuse.pass(Place::Hash);
        self.number.hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.fuse.pass(Place::Eq);
        self.number == other.number
    }
}

impl Eq for Key {}

impl Clone for Key {
    fn clone(&self) -> Self {
        self.fuse.pass(Place::Clone);
        Self {
            number: self.number,
            cloned: true,
            fuse: self.fuse.clone(),
        }
    }
}

impl Borrow<u32> for Key {
    fn borrow(&self) -> &u32 {
        self.fuse.pass(Place::Borrow);
        &self.number
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        if !self.cloned {
            self.fuse.pass(Place::Drop);
        }
    }
}
