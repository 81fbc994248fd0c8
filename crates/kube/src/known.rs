//! Which objects of a kind were told, and in which version: what a list is compared with.

use std::collections::{HashMap, HashSet};

use loam_manifest::Key;

/// The objects that were told.
#[derive(Debug, Default)]
pub(crate) struct Known {
    versions: HashMap<Key, Box<str>>,
    /// What a list under way has had so far.
    listed: HashSet<Key>,
}

impl Known {
    /// Begins to compare with a list. What an earlier one had that broke off does not count.
    pub(crate) fn begin(&mut self) {
        self.listed.clear();
    }

    /// An object of the list under way. Returns whether it is to be told.
    pub(crate) fn list(&mut self, key: &Key, version: &str) -> bool {
        self.listed.insert(key.clone());
        self.apply(key, version)
    }

    /// An object of a watch. Returns whether it is to be told.
    pub(crate) fn apply(&mut self, key: &Key, version: &str) -> bool {
        if self.versions.get(key).is_some_and(|known| **known == *version) {
            return false;
        }
        self.versions.insert(key.clone(), version.into());
        true
    }

    /// An object is gone. Returns whether that is to be told.
    pub(crate) fn delete(&mut self, key: &Key) -> bool {
        self.versions.remove(key).is_some()
    }

    /// The list is complete: what it did not have is gone.
    pub(crate) fn end(&mut self) -> Vec<Key> {
        let listed = std::mem::take(&mut self.listed);
        let gone: Vec<Key> = self.versions.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| drop(self.versions.remove(key)));
        gone
    }

    /// Whether nothing was told.
    pub(crate) fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use loam_manifest::Kind;

    use super::*;

    #[test]
    fn only_a_complete_list_takes_objects_away() {
        let key = |name: &str| Key { kind: Kind::Pod, namespace: "shop".into(), name: name.into() };
        let (a, b) = (key("a"), key("b"));
        let mut known = Known::default();
        known.begin();
        assert!(known.list(&a, "1") && known.list(&b, "1"));
        assert!(known.end().is_empty());
        known.begin();
        assert!(!known.list(&a, "1"));
        // That one broke off, and had not come to the other object yet.
        known.begin();
        assert!(known.list(&b, "2"));
        assert_eq!(known.end(), [a]);
        assert!(known.delete(&b) && !known.delete(&b) && known.is_empty());
    }
}
