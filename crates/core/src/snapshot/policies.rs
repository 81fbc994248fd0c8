//! Policies by key, and arranged by whom they apply to: the mesh, a namespace, those that list them.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::authz::{Applying, Missing, Set, SetRef};
use crate::map::{Entry, Map};
use crate::policy::{Policy, Scope};
use crate::workload::Workload;

/// All policies. One that is removed while a workload still lists it stays in force for that workload: the two pieces
/// of news may arrive in either order.
#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    by_key: Map<Known>,
    namespaces: Map<OfNamespace>,
    lists: Map<List>,
    global: Set,
    revision: u64,
    /// The control plane has not told of its policies yet.
    expected: bool,
}

/// Says which policies apply to a workload, and in which version: while it stays the same for a workload that stays the
/// same, so does every verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyVersion {
    sets: [u64; 3],
    expected: bool,
}

#[derive(Debug, Clone)]
struct Known {
    key: Arc<str>,
    policy: Option<Arc<Policy>>,
    removed: bool,
    /// The lists that have it.
    lists: Map<ListKey>,
}

impl Entry for Known {
    type Key = str;

    fn key(&self) -> &str {
        &self.key
    }

    fn same(&self, other: &Self) -> bool {
        let version = |k: &Known| (k.policy.as_ref().map(Arc::as_ptr), k.removed);
        version(self) == version(other) && self.lists.is_same(&other.lists)
    }
}

#[derive(Debug, Clone)]
struct OfNamespace {
    namespace: Arc<str>,
    set: Arc<Set>,
}

impl Entry for OfNamespace {
    type Key = str;

    fn key(&self) -> &str {
        &self.namespace
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.set, &other.set)
    }
}

/// What workloads list, which many do alike.
#[derive(Debug, Clone)]
struct List {
    keys: ListKey,
    /// Workloads that have this list.
    workloads: usize,
    /// How many of the keys have no policy.
    missing: usize,
    set: Arc<Set>,
}

impl Entry for List {
    type Key = ListKey;

    fn key(&self) -> &ListKey {
        &self.keys
    }

    fn same(&self, other: &Self) -> bool {
        (self.workloads, self.missing) == (other.workloads, other.missing) && Arc::ptr_eq(&self.set, &other.set)
    }
}

/// The keys in a list. They may be many, and one verdict must not read them all.
#[derive(Debug, Clone, Eq)]
struct ListKey(Arc<[Arc<str>]>);

/// Keys of a list that go into its hash.
const HASHED_KEYS: usize = 16;

impl Hash for ListKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        let step = self.0.len().div_ceil(HASHED_KEYS).max(1);
        self.0.iter().step_by(step).for_each(|key| key.hash(state));
    }
}

impl PartialEq for ListKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Entry for ListKey {
    type Key = ListKey;

    fn key(&self) -> &ListKey {
        self
    }

    fn same(&self, _: &Self) -> bool {
        true
    }
}

impl Policies {
    /// None of them is known, and there may be any.
    pub(super) fn expected() -> Self {
        Self { expected: true, ..Self::default() }
    }

    pub(super) fn arrived(&mut self) {
        if std::mem::take(&mut self.expected) {
            self.changed();
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn changed(&mut self) {
        self.revision += 1;
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key).filter(|k| !k.removed)?.policy.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.iter().filter(|k| !k.removed).filter_map(|k| k.policy.as_ref())
    }

    pub(super) fn of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Arc<str>>> {
        let of_namespace = self.namespaces.get(workload.namespace()).map(|n| &n.set);
        let listed = workload.policies.iter().map(|key| self.in_force(key).ok_or(key));
        self.global.iter().chain(of_namespace.into_iter().flat_map(|set| set.iter())).map(Ok).chain(listed)
    }

    pub(super) fn applying<'a>(&'a self, workload: &'a Workload) -> Applying<'a> {
        let of_namespace = match self.namespaces.get(workload.namespace()) {
            Some(of) => SetRef::Kept(&of.set),
            None => SetRef::None,
        };
        let (listed, complete) = match self.list_of(workload) {
            None if workload.policies.is_empty() => (SetRef::None, true),
            Some(list) => (SetRef::Kept(&list.set), list.missing == 0),
            // The workload is not of this snapshot, but an older or newer version.
            None => {
                let mut set = Set::default();
                workload.policies.iter().filter_map(|key| self.in_force(key)).for_each(|policy| set.insert(policy));
                (SetRef::Made(Box::new(set)), false)
            }
        };
        let first_missing = || workload.policies.iter().find(|key| self.in_force(key).is_none());
        let missing = match self.expected {
            true => Some(Missing::Everything),
            false if complete => None,
            false => first_missing().map(Missing::Policy),
        };
        Applying { sets: [SetRef::Kept(&self.global), of_namespace, listed], missing }
    }

    pub(super) fn version(&self, workload: &Workload) -> PolicyVersion {
        let of_namespace = self.namespaces.get(workload.namespace()).map_or(0, |of| of.set.version);
        let listed = self.list_of(workload).map_or(0, |list| list.set.version);
        PolicyVersion { sets: [self.global.version, of_namespace, listed], expected: self.expected }
    }

    fn list_of(&self, workload: &Workload) -> Option<&List> {
        (!workload.policies.is_empty()).then(|| self.lists.get(&ListKey(workload.policies.clone())))?
    }

    /// The policy of a key for those that list it, for whom a removed one still is in force.
    fn in_force(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key)?.policy.as_ref()
    }

    pub(super) fn put(&mut self, policy: Policy) {
        let mut known = self.by_key.remove(&policy.key).unwrap_or_else(|| Known::new(&policy.key));
        if !known.removed && known.policy.as_deref() == Some(&policy) {
            self.by_key.insert(known);
            return;
        }
        let old = known.policy.take();
        if let Some(old) = old.as_deref().filter(|_| !known.removed) {
            self.edit_scope(old, |set| set.remove(old));
        }
        let policy = Arc::new(policy);
        self.edit_scope(&policy, |set| set.insert(&policy));
        for list in known.lists.iter() {
            self.edit_list(list, |list| {
                match &old {
                    Some(old) => Arc::make_mut(&mut list.set).remove(old),
                    None => list.missing -= 1,
                }
                Arc::make_mut(&mut list.set).insert(&policy);
            });
        }
        // Listed by nobody and of no scope that applies by itself it changes nothing, but is news all the same.
        self.changed();
        self.by_key.insert(Known { policy: Some(policy), removed: false, ..known });
    }

    /// Takes what stands for a policy that cannot be read, unless a version of it is known that could be.
    pub(super) fn put_unreadable(&mut self, stand_in: Policy) {
        if self.get(&stand_in.key).is_none_or(|known| known.unreadable.is_some()) {
            self.put(stand_in);
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        if self.get(key).is_none() {
            return;
        }
        let Some(known) = self.by_key.remove(key) else { return };
        if let Some(policy) = &known.policy {
            self.edit_scope(policy, |set| set.remove(policy));
        }
        self.changed();
        if !known.lists.is_empty() {
            self.by_key.insert(Known { removed: true, ..known });
        }
    }

    /// Changes the set of those that apply without being listed.
    fn edit_scope(&mut self, policy: &Policy, edit: impl FnOnce(&mut Set)) {
        self.changed();
        match policy.scope {
            Scope::Global => {
                edit(&mut self.global);
                self.global.version = self.revision;
            }
            Scope::Namespace => {
                let of = self.namespaces.remove(&policy.namespace);
                let mut of =
                    of.unwrap_or_else(|| OfNamespace { namespace: policy.namespace.clone(), set: Arc::default() });
                let set = Arc::make_mut(&mut of.set);
                edit(set);
                set.version = self.revision;
                if !set.is_empty() {
                    self.namespaces.insert(of);
                }
            }
            Scope::Workload => {}
        }
    }

    fn edit_list(&mut self, keys: &ListKey, edit: impl FnOnce(&mut List)) {
        let Some(mut list) = self.lists.remove(keys) else { return };
        self.changed();
        edit(&mut list);
        Arc::make_mut(&mut list.set).version = self.revision;
        self.lists.insert(list);
    }

    /// Counts a workload that lists `keys`.
    pub(super) fn refer(&mut self, keys: &Arc<[Arc<str>]>) {
        if keys.is_empty() {
            return;
        }
        let keys = ListKey(keys.clone());
        if let Some(mut list) = self.lists.remove(&keys) {
            list.workloads += 1;
            self.lists.insert(list);
            return;
        }
        self.changed();
        let (mut set, mut missing) = (Set { version: self.revision, ..Set::default() }, 0);
        for key in keys.0.iter() {
            let mut known = self.by_key.remove(key).unwrap_or_else(|| Known::new(key));
            // A key may be listed twice.
            if known.lists.insert(keys.clone()).is_none() {
                match &known.policy {
                    Some(policy) => set.insert(policy),
                    None => missing += 1,
                }
            }
            self.by_key.insert(known);
        }
        self.lists.insert(List { keys, workloads: 1, missing, set: Arc::new(set) });
    }

    /// Undoes [`Policies::refer`].
    pub(super) fn release(&mut self, keys: &Arc<[Arc<str>]>) {
        let Some(mut list) = self.lists.remove(&ListKey(keys.clone())) else { return };
        list.workloads -= 1;
        if list.workloads > 0 {
            self.lists.insert(list);
            return;
        }
        for key in list.keys.0.iter() {
            let Some(mut known) = self.by_key.remove(key) else { continue };
            known.lists.remove(&list.keys);
            let forgotten = known.lists.is_empty() && (known.removed || known.policy.is_none());
            if !forgotten {
                self.by_key.insert(known);
            }
        }
    }
}

impl Known {
    fn new(key: &Arc<str>) -> Self {
        Self { key: key.clone(), policy: None, removed: false, lists: Map::default() }
    }
}
