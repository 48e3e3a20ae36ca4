//! The keys of `Keyed` and the ids of `Tracked`, in a form in which a map runs user
//! code only inside `catch`.
//!
//! # Invariants
//!
//! - An [`Id`] is hashed once, when it is made. In a map it is equal to itself and to
//!   its clones only, so an entry that was inserted under an id is found and removed by
//!   that id, whatever the user's `Hash`, `Eq` and `Drop` do.
//! - To find an entry by the value of its key, a map is asked for a [`Lookup`]. It is
//!   compared with ids of the same hash only, and a comparison that panics counts as
//!   unequal.
//! - A cache that removes entries by itself must treat equal keys as equal. So its keys
//!   are of type [`EqByKey`], each of which is equal to itself even if the comparison of
//!   its key panics.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::Arc;

use tracing::error;

use crate::engine::panics::{Shielded, catch, trace};

/// A user's key. Its drop may run user code, but does not panic.
pub(crate) struct Id<K>(Arc<Hashed<K>>);

struct Hashed<K> {
    hash: u64,
    key: Shielded<K>,
}

impl<K: Hash> Id<K> {
    /// Hashes the key. Returns the message of the panic if that panics.
    pub(crate) fn new(hasher: &RandomState, key: Shielded<K>) -> Result<Self, Arc<str>> {
        let hash = catch(|| hasher.hash_one(&*key))?;
        Ok(Self(Arc::new(Hashed { hash, key })))
    }
}

impl<K> Id<K> {
    pub(crate) fn key(&self) -> &K {
        &self.0.key
    }

    /// Returns a lookup that finds the ids with an equal key.
    pub(crate) fn lookup(&self) -> Lookup<'_, K> {
        Lookup::from_hash(self.0.hash, self.key())
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

/// A map whose keys are ids.
pub(crate) type IdMap<K, V> = HashMap<Id<K>, V, BuildIdentityHasher>;

pub(crate) type BuildIdentityHasher = BuildHasherDefault<IdentityHasher>;

/// Returns the number that was written to it: the hash that an id has stored.
#[derive(Default)]
pub(crate) struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Not called for an id, which writes one `u64`.
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

/// Gives back the memory of a burst once most of it is unused.
pub(crate) fn shrink<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 64 && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

/// An id that is equal to all ids with an equal key.
#[cfg(feature = "tracked")]
pub(crate) struct EqByKey<K>(pub(crate) Id<K>);

#[cfg(feature = "tracked")]
impl<K: Eq> PartialEq for EqByKey<K> {
    fn eq(&self, other: &Self) -> bool {
        let (one, two): (&dyn LookupKey<K>, &dyn LookupKey<K>) = (&self.0, &other.0);
        self.0 == other.0 || one == two
    }
}

#[cfg(feature = "tracked")]
impl<K: Eq> Eq for EqByKey<K> {}

#[cfg(feature = "tracked")]
impl<K> Hash for EqByKey<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Hash::hash(&self.0, state);
    }
}

#[cfg(feature = "tracked")]
impl<'a, K: Borrow<Q> + 'a, Q: ?Sized + 'a> Borrow<dyn LookupKey<Q> + 'a> for EqByKey<K> {
    fn borrow(&self) -> &(dyn LookupKey<Q> + 'a) {
        &self.0
    }
}

/// A key to look up in a map. Its drop logs the panic of a comparison, unless
/// [`take_panic`](Self::take_panic) took it; so it must not be dropped under a lock.
pub(crate) struct Lookup<'a, Q: ?Sized> {
    hash: u64,
    key: &'a Q,
    panic: Cell<Option<Arc<str>>>,
}

impl<'a, Q: ?Sized> Lookup<'a, Q> {
    /// Hashes the key. Returns `None` if that panics: the key is equal to no other then.
    #[cfg(feature = "tracked")]
    pub(crate) fn new(hasher: &RandomState, key: &'a Q) -> Option<Self>
    where
        Q: Hash,
    {
        match catch(|| hasher.hash_one(key)) {
            Ok(hash) => Some(Self::from_hash(hash, key)),
            Err(error) => {
                trace(|| error!(%error, "the hash of a key panicked"));
                None
            }
        }
    }

    fn from_hash(hash: u64, key: &'a Q) -> Self {
        Self {
            hash,
            key,
            panic: Cell::new(None),
        }
    }

    /// Returns the key to ask a map for.
    pub(crate) fn as_key(&self) -> &(dyn LookupKey<Q> + '_) {
        self
    }

    /// Returns the message of a comparison that panicked, if one did. The drop does not
    /// log it then.
    pub(crate) fn take_panic(&self) -> Option<Arc<str>> {
        self.panic.take()
    }
}

impl<Q: ?Sized> Drop for Lookup<'_, Q> {
    fn drop(&mut self) {
        if let Some(error) = self.panic.take() {
            trace(|| error!(%error, "the comparison of a key panicked"));
        }
    }
}

/// What a map compares: an [`Id`] or a [`Lookup`].
pub(crate) trait LookupKey<Q: ?Sized> {
    fn hash(&self) -> u64;
    fn key(&self) -> &Q;
    /// Called with the message if the comparison panicked.
    fn note_panic(&self, panic: &Arc<str>);
}

impl<Q: ?Sized> LookupKey<Q> for Lookup<'_, Q> {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn key(&self) -> &Q {
        self.key
    }

    fn note_panic(&self, panic: &Arc<str>) {
        self.panic.set(Some(Arc::clone(panic)));
    }
}

impl<K: Borrow<Q>, Q: ?Sized> LookupKey<Q> for Id<K> {
    fn hash(&self) -> u64 {
        self.0.hash
    }

    fn key(&self) -> &Q {
        (*self.0.key).borrow()
    }

    fn note_panic(&self, _panic: &Arc<str>) {}
}

impl<'a, K: Borrow<Q> + 'a, Q: ?Sized + 'a> Borrow<dyn LookupKey<Q> + 'a> for Id<K> {
    fn borrow(&self) -> &(dyn LookupKey<Q> + 'a) {
        self
    }
}

impl<Q: Eq + ?Sized> PartialEq for dyn LookupKey<Q> + '_ {
    fn eq(&self, other: &Self) -> bool {
        if self.hash() != other.hash() {
            return false;
        }
        // Inside `catch` with the comparison, because `borrow` is user code, too.
        catch(|| self.key() == other.key()).unwrap_or_else(|panic| {
            self.note_panic(&panic);
            other.note_panic(&panic);
            false
        })
    }
}

impl<Q: Eq + ?Sized> Eq for dyn LookupKey<Q> + '_ {}

impl<Q: ?Sized> Hash for dyn LookupKey<Q> + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(LookupKey::hash(self));
    }
}
