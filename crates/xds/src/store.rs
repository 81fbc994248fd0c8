//! The resources of one type, as a server offers them: the newest state of each name, ordered by when it last changed.
//!
//! A client's position is one number, the revision up to which it was told. What it missed is what changed since, each
//! name once with its newest state: a slow client costs no memory, and many changes to one name cost one message.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use tokio::sync::watch;

/// Names that are gone are remembered so that clients can be told; a client that misses more than this many removals
/// is asked to connect again, when it says what it holds.
pub const MAX_TOMBSTONES: usize = 100_000;

/// One resource as a client is told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Unique within its type.
    pub name: Arc<str>,
    /// Hash of the body: the same body has the same version also after the server restarts.
    pub version: Arc<str>,
    /// Encoded message.
    pub body: Bytes,
}

/// What changed after a position.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// New or changed.
    pub resources: Vec<Resource>,
    /// Gone.
    pub removed: Vec<Arc<str>>,
    /// Position after this batch.
    pub cursor: u64,
    /// Whether there is more than what fitted.
    pub more: bool,
}

/// The resources of one type. One owner applies changes; any number of streams read.
#[derive(Debug)]
pub struct Store {
    inner: RwLock<Inner>,
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: u64,
    by_name: HashMap<Arc<str>, Entry>,
    by_revision: BTreeMap<u64, Arc<str>>,
    tombstones: usize,
    /// Removals up to here were forgotten.
    floor: u64,
}

#[derive(Debug)]
struct Entry {
    revision: u64,
    /// None: gone.
    live: Option<(Arc<str>, Bytes)>,
}

impl Default for Store {
    fn default() -> Self {
        Self { inner: RwLock::default(), revision: watch::Sender::new(0) }
    }
}

impl Store {
    /// Puts (`Some`) or removes (`None`) resources by name; what is unchanged costs nothing downstream. Returns how
    /// many really changed.
    pub fn apply(&self, changes: impl IntoIterator<Item = (Arc<str>, Option<Bytes>)>) -> usize {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let changed = changes.into_iter().map(|(name, body)| inner.put(name, body)).filter(|changed| *changed).count();
        inner.forget_old_tombstones();
        let revision = inner.revision;
        drop(inner);
        if changed > 0 {
            self.revision.send_replace(revision);
        }
        changed
    }

    /// Wakes when something changed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        let inner = self.read();
        inner.by_name.len() - inner.tombstones
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One resource by name.
    pub fn get(&self, name: &str) -> Option<Resource> {
        let inner = self.read();
        let (name, entry) = inner.by_name.get_key_value(name)?;
        let (version, body) = entry.live.clone()?;
        Some(Resource { name: name.clone(), version, body })
    }

    /// What changed after `cursor`, up to about `max_bytes` (at least one resource). None: removals since then were
    /// forgotten, so only a comparison of all names can tell; a `cursor` of 0 is always served.
    pub fn since(&self, cursor: u64, max_bytes: usize) -> Option<Batch> {
        let inner = self.read();
        if cursor > 0 && cursor < inner.floor {
            return None;
        }
        let mut batch = Batch { cursor, ..Batch::default() };
        let mut bytes = 0;
        for (revision, name) in inner.by_revision.range(cursor + 1..) {
            if bytes >= max_bytes {
                batch.more = true;
                return Some(batch);
            }
            bytes += name.len();
            match inner.by_name.get(name).and_then(|entry| entry.live.as_ref()) {
                Some((version, body)) => {
                    bytes += body.len();
                    batch.resources.push(Resource { name: name.clone(), version: version.clone(), body: body.clone() });
                }
                None => batch.removed.push(name.clone()),
            }
            batch.cursor = *revision;
        }
        batch.cursor = inner.revision;
        Some(batch)
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, name: Arc<str>, body: Option<Bytes>) -> bool {
        let live = body.map(|body| (version_of(&body), body));
        let old = self.by_name.get(&name);
        match (old.and_then(|entry| entry.live.as_ref()), &live) {
            (None, None) => return false,
            (Some((old, _)), Some((new, _))) if old == new => return false,
            _ => {}
        }
        if let Some(entry) = old {
            self.by_revision.remove(&entry.revision);
            self.tombstones -= usize::from(entry.live.is_none());
        }
        self.tombstones += usize::from(live.is_none());
        self.revision += 1;
        self.by_revision.insert(self.revision, name.clone());
        self.by_name.insert(name, Entry { revision: self.revision, live });
        true
    }

    fn forget_old_tombstones(&mut self) {
        if self.tombstones <= MAX_TOMBSTONES {
            return;
        }
        let gone: Vec<(u64, Arc<str>)> = self
            .by_revision
            .iter()
            .filter(|(_, name)| self.by_name.get(*name).is_some_and(|entry| entry.live.is_none()))
            .take(self.tombstones - MAX_TOMBSTONES / 2)
            .map(|(revision, name)| (*revision, name.clone()))
            .collect();
        for (revision, name) in gone {
            self.by_revision.remove(&revision);
            self.by_name.remove(&name);
            self.tombstones -= 1;
            self.floor = revision;
        }
    }
}

fn version_of(body: &Bytes) -> Arc<str> {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("{:016x}", hasher.finish()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(name: &str, body: &str) -> (Arc<str>, Option<Bytes>) {
        (name.into(), Some(Bytes::copy_from_slice(body.as_bytes())))
    }

    fn names(batch: &Batch) -> (Vec<&str>, Vec<&str>) {
        (batch.resources.iter().map(|r| &*r.name).collect(), batch.removed.iter().map(|n| &**n).collect())
    }

    #[test]
    fn a_reader_sees_each_name_once_in_its_newest_state() {
        let store = Store::default();
        assert_eq!(store.apply([put("a", "1"), put("b", "1"), put("c", "1")]), 3);
        let first = store.since(0, usize::MAX).unwrap();
        assert_eq!(names(&first), (vec!["a", "b", "c"], vec![]));
        store.apply([put("a", "2"), put("b", "2"), put("b", "3")]);
        store.apply([("a".into(), None)]);
        let next = store.since(first.cursor, usize::MAX).unwrap();
        assert_eq!(names(&next), (vec!["b"], vec!["a"]));
        assert_eq!(next.resources[0].body, "3");
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn an_unchanged_resource_is_not_told_again() {
        let store = Store::default();
        store.apply([put("a", "1")]);
        let before = store.watch();
        assert_eq!(store.apply([put("a", "1"), ("unknown".into(), None)]), 0);
        assert!(!before.has_changed().unwrap());
    }

    #[test]
    fn a_batch_ends_at_its_size_and_the_next_one_continues() {
        let store = Store::default();
        store.apply((0..10).map(|i| put(&format!("r{i}"), "xxxxxxxxxx")));
        let (mut cursor, mut seen, mut batches) = (0, 0, 0);
        loop {
            let batch = store.since(cursor, 30).unwrap();
            (cursor, seen, batches) = (batch.cursor, seen + batch.resources.len(), batches + 1);
            if !batch.more {
                break;
            }
        }
        assert_eq!((seen, batches), (10, 4));
    }

    #[test]
    fn a_reader_that_missed_forgotten_removals_is_told_so() {
        let store = Store::default();
        store.apply([put("kept", "1")]);
        let early = store.since(0, usize::MAX).unwrap().cursor;
        let many = 0..=MAX_TOMBSTONES;
        store.apply(many.clone().map(|i| put(&format!("r{i}"), "1")));
        store.apply(many.map(|i| (format!("r{i}").into(), None)));
        assert_eq!(store.since(early, usize::MAX), None);
        let all = store.since(0, usize::MAX).unwrap();
        assert_eq!(names(&all).0, ["kept"]);
        assert!(all.removed.len() <= MAX_TOMBSTONES / 2);
    }
}
