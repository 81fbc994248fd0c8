//! A map that shares what did not change with its earlier versions.
//!
//! Cloning costs one reference count. A change copies the path to one small leaf, or nothing when no other version
//! holds it, so a bulk load into an unpublished map works in place. Two versions are compared by walking only the
//! parts that they do not share.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// An element of a [`Map`], which carries its own key.
pub trait Entry: Clone {
    /// What it is found by.
    type Key: Hash + Eq + ?Sized;

    /// Its key.
    fn key(&self) -> &Self::Key;

    /// Whether two entries of one key are the same version, judged cheaply (by pointer or version, not by content).
    fn same(&self, other: &Self) -> bool;
}

/// Children per branch: 4 bits of the hash per level.
const FANOUT: usize = 16;
/// A leaf beyond this is split; small enough that copying one is cheap, large enough that a million entries do not
/// drown in nodes.
const MAX_LEAF: usize = 48;
/// Levels that the 64 bits of a hash allow; below the last one a leaf may grow.
const MAX_DEPTH: u32 = 15;

#[derive(Debug, Clone)]
enum Node<E> {
    /// Sorted by hash.
    Leaf(Vec<(u64, E)>),
    Branch(Box<[Option<Arc<Node<E>>>; FANOUT]>),
}

/// A persistent hash map of [`Entry`] values.
#[derive(Debug, Clone)]
pub struct Map<E> {
    root: Option<Arc<Node<E>>>,
    len: usize,
}

impl<E> Default for Map<E> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

fn hash_of<K: Hash + ?Sized>(key: &K) -> u64 {
    // Fixed keys: the same content gives the same shape in every process.
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn slot(hash: u64, depth: u32) -> usize {
    (hash >> (60 - 4 * depth.min(MAX_DEPTH))) as usize % FANOUT
}

/// Entries of one hash within a sorted leaf.
fn same_hash<E>(entries: &[(u64, E)], hash: u64) -> std::ops::Range<usize> {
    let start = entries.partition_point(|(h, _)| *h < hash);
    let len = entries[start..].iter().take_while(|(h, _)| *h == hash).count();
    start..start + len
}

fn find<E: Entry>(entries: &[(u64, E)], hash: u64, key: &E::Key) -> Result<usize, usize> {
    let range = same_hash(entries, hash);
    range.clone().find(|i| entries[*i].1.key() == key).ok_or(range.end)
}

impl<E: Entry> Map<E> {
    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry of `key`.
    pub fn get(&self, key: &E::Key) -> Option<&E> {
        let hash = hash_of(key);
        let mut node = self.root.as_deref()?;
        let mut depth = 0;
        loop {
            match node {
                Node::Leaf(entries) => return find(entries, hash, key).ok().map(|i| &entries[i].1),
                Node::Branch(children) => node = children[slot(hash, depth)].as_deref()?,
            }
            depth += 1;
        }
    }

    /// Puts `entry` in and returns the one it replaces.
    pub fn insert(&mut self, entry: E) -> Option<E> {
        let hash = hash_of(entry.key());
        let old = insert(&mut self.root, hash, entry, 0);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes the entry of `key` out.
    pub fn remove(&mut self, key: &E::Key) -> Option<E> {
        // A miss must not copy the path.
        self.get(key)?;
        let old = remove(&mut self.root, hash_of(key), key, 0);
        self.len -= usize::from(old.is_some());
        old
    }

    /// All entries; the order depends only on the keys.
    pub fn iter(&self) -> Iter<'_, E> {
        Iter { nodes: self.root.as_deref().into_iter().collect(), leaf: [].iter() }
    }

    /// Calls `visit(old, new)` for each key whose entry is not the same in `old` and `self`.
    /// Parts that both share are skipped, so the cost follows the difference and not the size.
    pub fn diff<'a>(&'a self, old: &'a Self, visit: &mut dyn FnMut(Option<&'a E>, Option<&'a E>)) {
        diff(old.root.as_ref(), self.root.as_ref(), visit);
    }

    /// Whether both are one version of one map.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.root, &other.root) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

fn insert<E: Entry>(place: &mut Option<Arc<Node<E>>>, hash: u64, entry: E, depth: u32) -> Option<E> {
    let Some(node) = place else {
        *place = Some(Arc::new(Node::Leaf(vec![(hash, entry)])));
        return None;
    };
    match Arc::make_mut(node) {
        Node::Branch(children) => insert(&mut children[slot(hash, depth)], hash, entry, depth + 1),
        Node::Leaf(entries) => {
            match find(entries, hash, entry.key()) {
                Ok(i) => return Some(std::mem::replace(&mut entries[i].1, entry)),
                Err(i) => {
                    if entries.len() == entries.capacity() {
                        // Grown by a few: doubling would waste a third of the memory of a large map.
                        entries.reserve_exact(4);
                    }
                    entries.insert(i, (hash, entry));
                }
            }
            if entries.len() > MAX_LEAF && depth <= MAX_DEPTH {
                let branch = split(std::mem::take(entries), depth);
                *node = Arc::new(branch);
            }
            None
        }
    }
}

fn split<E: Entry>(entries: Vec<(u64, E)>, depth: u32) -> Node<E> {
    let mut children: [Option<Arc<Node<E>>>; FANOUT] = Default::default();
    let mut rest = entries.into_iter().peekable();
    // The leaf is sorted by hash and the slot is its next bits: the entries of a child stand together.
    while let Some((hash, _)) = rest.peek() {
        let child = slot(*hash, depth);
        let mut part = Vec::new();
        while let Some(entry) = rest.next_if(|(h, _)| slot(*h, depth) == child) {
            part.push(entry);
        }
        part.shrink_to_fit();
        children[child] = Some(Arc::new(Node::Leaf(part)));
    }
    Node::Branch(Box::new(children))
}

fn remove<E: Entry>(place: &mut Option<Arc<Node<E>>>, hash: u64, key: &E::Key, depth: u32) -> Option<E> {
    let node = Arc::make_mut(place.as_mut()?);
    let (old, empty) = match node {
        Node::Branch(children) => {
            let old = remove(&mut children[slot(hash, depth)], hash, key, depth + 1);
            (old, children.iter().all(Option::is_none))
        }
        Node::Leaf(entries) => {
            let old = find(entries, hash, key).ok().map(|i| entries.remove(i).1);
            (old, entries.is_empty())
        }
    };
    if empty {
        *place = None;
    }
    old
}

fn diff<'a, E: Entry>(
    old: Option<&'a Arc<Node<E>>>,
    new: Option<&'a Arc<Node<E>>>,
    visit: &mut dyn FnMut(Option<&'a E>, Option<&'a E>),
) {
    match (old.map(|n| &**n), new.map(|n| &**n)) {
        (None, None) => {}
        (Some(a), Some(b)) if std::ptr::eq(a, b) => {}
        (Some(Node::Branch(a)), Some(Node::Branch(b))) => {
            for (a, b) in a.iter().zip(b.iter()) {
                diff(a.as_ref(), b.as_ref(), visit);
            }
        }
        (a, b) => merge(&sorted(a), &sorted(b), visit),
    }
}

/// Everything beneath a node, sorted by hash.
fn sorted<E>(node: Option<&Node<E>>) -> Vec<(u64, &E)> {
    let mut all = Vec::new();
    let mut nodes: Vec<&Node<E>> = node.into_iter().collect();
    while let Some(node) = nodes.pop() {
        match node {
            Node::Leaf(entries) => all.extend(entries.iter().map(|(h, e)| (*h, e))),
            Node::Branch(children) => nodes.extend(children.iter().rev().flatten().map(|n| &**n)),
        }
    }
    all
}

fn merge<'a, E: Entry>(
    old: &[(u64, &'a E)],
    new: &[(u64, &'a E)],
    visit: &mut dyn FnMut(Option<&'a E>, Option<&'a E>),
) {
    let among = |entries: &[(u64, &'a E)], hash: u64, key: &E::Key| {
        let range = same_hash(entries, hash);
        entries[range].iter().map(|(_, e)| *e).find(|e| e.key() == key)
    };
    for (hash, entry) in old {
        match among(new, *hash, entry.key()) {
            None => visit(Some(entry), None),
            Some(now) if !entry.same(now) => visit(Some(entry), Some(now)),
            Some(_) => {}
        }
    }
    for (hash, entry) in new {
        if among(old, *hash, entry.key()).is_none() {
            visit(None, Some(entry));
        }
    }
}

/// Iterates over the entries of a [`Map`].
#[derive(Debug)]
pub struct Iter<'a, E> {
    nodes: Vec<&'a Node<E>>,
    leaf: std::slice::Iter<'a, (u64, E)>,
}

impl<'a, E> Iterator for Iter<'a, E> {
    type Item = &'a E;

    fn next(&mut self) -> Option<&'a E> {
        loop {
            if let Some((_, entry)) = self.leaf.next() {
                return Some(entry);
            }
            match self.nodes.pop()? {
                Node::Leaf(entries) => self.leaf = entries.iter(),
                Node::Branch(children) => self.nodes.extend(children.iter().rev().flatten().map(|n| &**n)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
    struct Pair(u32, u32);

    impl Entry for Pair {
        type Key = u32;
        fn key(&self) -> &u32 {
            &self.0
        }
        fn same(&self, other: &Self) -> bool {
            self.1 == other.1
        }
    }

    fn contents(map: &Map<Pair>) -> BTreeMap<u32, u32> {
        map.iter().map(|p| (p.0, p.1)).collect()
    }

    /// A fixed sequence that looks random.
    fn numbers() -> impl Iterator<Item = u32> {
        let mut x = 1u64;
        std::iter::repeat_with(move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as u32
        })
    }

    #[test]
    fn it_holds_what_an_ordinary_map_holds_after_any_edits() {
        let mut map: Map<Pair> = Map::default();
        let mut model = BTreeMap::new();
        let mut random = numbers();
        for step in 0..20_000u32 {
            let key = random.next().unwrap() % 3000;
            if random.next().unwrap().is_multiple_of(3) {
                assert_eq!(map.remove(&key).map(|p| p.1), model.remove(&key));
            } else {
                assert_eq!(map.insert(Pair(key, step)).map(|p| p.1), model.insert(key, step));
            }
            assert_eq!(map.len(), model.len());
        }
        assert_eq!(contents(&map), model);
        for key in 0..3000 {
            assert_eq!(map.get(&key).map(|p| p.1), model.get(&key).copied());
        }
    }

    #[test]
    fn an_earlier_version_is_untouched_by_later_edits() {
        let mut map = Map::default();
        for i in 0..1000 {
            map.insert(Pair(i, 0));
        }
        let before = map.clone();
        for i in 0..500 {
            map.remove(&i);
            map.insert(Pair(i + 500, 1));
        }
        assert_eq!(before.len(), 1000);
        assert!(before.iter().all(|p| p.1 == 0));
        assert_eq!(map.len(), 500);
    }

    #[test]
    fn the_difference_of_two_versions_turns_one_into_the_other() {
        let mut random = numbers();
        let mut old: Map<Pair> = Map::default();
        for _ in 0..30 {
            let mut new = old.clone();
            for _ in 0..random.next().unwrap() % 2000 {
                let key = random.next().unwrap() % 2500;
                match random.next().unwrap() % 2 {
                    0 => drop(new.remove(&key)),
                    _ => drop(new.insert(Pair(key, random.next().unwrap() % 3))),
                }
            }
            let mut replayed = contents(&old);
            new.diff(&old, &mut |was, is| {
                assert_ne!(was, is, "a pair without difference was reported");
                match is {
                    Some(is) => assert_eq!(replayed.insert(is.0, is.1), was.map(|p| p.1)),
                    None => assert_eq!(replayed.remove(&was.unwrap().0), was.map(|p| p.1)),
                }
            });
            assert_eq!(replayed, contents(&new));
            old = new;
        }
    }

    #[test]
    fn keys_of_equal_hash_live_side_by_side() {
        #[derive(Debug, Clone)]
        struct Colliding(u32);
        #[derive(PartialEq, Eq)]
        struct Key(u32);
        impl Hash for Key {
            fn hash<H: Hasher>(&self, _: &mut H) {}
        }
        impl Entry for (Key, Colliding) {
            type Key = Key;
            fn key(&self) -> &Key {
                &self.0
            }
            fn same(&self, other: &Self) -> bool {
                self.1.0 == other.1.0
            }
        }
        impl Clone for Key {
            fn clone(&self) -> Self {
                Key(self.0)
            }
        }
        let mut map = Map::default();
        for i in 0..200 {
            map.insert((Key(i), Colliding(i)));
        }
        assert_eq!(map.len(), 200);
        for i in 0..200 {
            assert_eq!(map.remove(&Key(i)).map(|e| e.1.0), Some(i));
        }
        assert!(map.is_empty());
    }
}
