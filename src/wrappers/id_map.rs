//! The keys of `Keyed` and the ids of `Tracked`, in a form in which no map runs
//! users' code but where it is safe.
//!
//! # Invariants
//!
//! - An [`Id`] is hashed once, when it is made. To a map it is equal to itself
//!   alone, so what is put under an id is found and removed by that id whatever
//!   the user's `Hash`, `Eq` and `Drop` do.
//! - By value ids are looked up with a [`Needle`] only. It compares with ids of
//!   the same hash, and a comparison that panics counts as unequal.
//! - A cache whose entries are removed by itself has to find equal keys equal,
//!   and so has ids as [`ByValue`]. To itself each is equal all the same.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::Arc;

use tracing::error;

use crate::engine::panics::{Shielded, catch, trace};

/// A user's key. Its drop may run the user's code, and does not panic.
pub(crate) struct Id<K>(Arc<Hashed<K>>);

struct Hashed<K> {
    hash: u64,
    key: Shielded<K>,
}

impl<K: Hash> Id<K> {
    /// Hashes the key; or returns the message of the panic.
    pub(crate) fn new(hasher: &RandomState, key: Shielded<K>) -> Result<Self, Arc<str>> {
        let hash = catch(|| hasher.hash_one(&*key))?;
        Ok(Self(Arc::new(Hashed { hash, key })))
    }
}

impl<K> Id<K> {
    pub(crate) fn key(&self) -> &K {
        &self.0.key
    }

    /// Finds the ids with an equal key.
    pub(crate) fn needle(&self) -> Needle<'_, K> {
        Needle::with(self.0.hash, self.key())
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<K> Eq for Id<K> {}

impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

/// A map by ids.
pub(crate) type IdMap<K, V> = HashMap<Id<K>, V, Hashes>;

/// Takes the hash that an id has.
pub(crate) type Hashes = BuildHasherDefault<Same>;

#[derive(Default)]
pub(crate) struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, bytes: &[u8]) {
        // An id writes one number, so this is not how it comes.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Gives the memory of a flood back once most of it is unused.
pub(crate) fn shrink<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 64 && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

/// An id that is equal to those whose key is.
#[cfg(feature = "tracked")]
pub(crate) struct ByValue<K>(pub(crate) Id<K>);

#[cfg(feature = "tracked")]
impl<K: Eq> PartialEq for ByValue<K> {
    fn eq(&self, other: &Self) -> bool {
        let (one, two): (&dyn Probe<K>, &dyn Probe<K>) = (&self.0, &other.0);
        self.0 == other.0 || one == two
    }
}

#[cfg(feature = "tracked")]
impl<K: Eq> Eq for ByValue<K> {}

#[cfg(feature = "tracked")]
impl<K> Hash for ByValue<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Hash::hash(&self.0, state);
    }
}

#[cfg(feature = "tracked")]
impl<'a, K: Borrow<Q> + 'a, Q: ?Sized + 'a> Borrow<dyn Probe<Q> + 'a> for ByValue<K> {
    fn borrow(&self) -> &(dyn Probe<Q> + 'a) {
        &self.0
    }
}

/// A key to look for. What its comparisons threw is logged by its drop, which
/// must not be under a lock, unless it is [`taken`](Self::panicked).
pub(crate) struct Needle<'a, Q: ?Sized> {
    hash: u64,
    key: &'a Q,
    panicked: Cell<Option<Arc<str>>>,
}

impl<'a, Q: ?Sized> Needle<'a, Q> {
    /// Hashes the key; where that panics nothing equals it.
    #[cfg(feature = "tracked")]
    pub(crate) fn new(hasher: &RandomState, key: &'a Q) -> Option<Self>
    where
        Q: Hash,
    {
        match catch(|| hasher.hash_one(key)) {
            Ok(hash) => Some(Self::with(hash, key)),
            Err(error) => {
                trace(|| error!(%error, "the hash of a key panicked"));
                None
            }
        }
    }

    fn with(hash: u64, key: &'a Q) -> Self {
        Self {
            hash,
            key,
            panicked: Cell::new(None),
        }
    }

    /// What a map is to be asked for.
    pub(crate) fn probe(&self) -> &(dyn Probe<Q> + '_) {
        self
    }

    /// Returns the message of a comparison that panicked, if one did, instead
    /// of having it logged.
    pub(crate) fn panicked(&self) -> Option<Arc<str>> {
        self.panicked.take()
    }
}

impl<Q: ?Sized> Drop for Needle<'_, Q> {
    fn drop(&mut self) {
        if let Some(error) = self.panicked.take() {
            trace(|| error!(%error, "the comparison of a key panicked"));
        }
    }
}

/// What an id and a needle have in common, as a map sees them.
pub(crate) trait Probe<Q: ?Sized> {
    fn hash(&self) -> u64;
    fn key(&self) -> &Q;
    /// Hears of a comparison that panicked.
    fn note(&self, panic: &Arc<str>);
}

impl<Q: ?Sized> Probe<Q> for Needle<'_, Q> {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn key(&self) -> &Q {
        self.key
    }

    fn note(&self, panic: &Arc<str>) {
        self.panicked.set(Some(Arc::clone(panic)));
    }
}

impl<K: Borrow<Q>, Q: ?Sized> Probe<Q> for Id<K> {
    fn hash(&self) -> u64 {
        self.0.hash
    }

    fn key(&self) -> &Q {
        (*self.0.key).borrow()
    }

    fn note(&self, _panic: &Arc<str>) {}
}

impl<'a, K: Borrow<Q> + 'a, Q: ?Sized + 'a> Borrow<dyn Probe<Q> + 'a> for Id<K> {
    fn borrow(&self) -> &(dyn Probe<Q> + 'a) {
        self
    }
}

impl<Q: Eq + ?Sized> PartialEq for dyn Probe<Q> + '_ {
    fn eq(&self, other: &Self) -> bool {
        if self.hash() != other.hash() {
            return false;
        }
        // Borrowing a key is the user's code as well.
        catch(|| self.key() == other.key()).unwrap_or_else(|panic| {
            self.note(&panic);
            other.note(&panic);
            false
        })
    }
}

impl<Q: Eq + ?Sized> Eq for dyn Probe<Q> + '_ {}

impl<Q: ?Sized> Hash for dyn Probe<Q> + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(Probe::hash(self));
    }
}
