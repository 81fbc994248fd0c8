//! Policies by key, by namespace and for the whole mesh.

use std::sync::Arc;

use crate::map::{Entry, Map};
use crate::policy::{Policy, Scope};
use crate::workload::Workload;

/// All policies. One that is removed while a workload still lists it stays in force for that workload: the two pieces
/// of news may arrive in either order.
#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    by_key: Map<Known>,
    by_namespace: Map<OfNamespace>,
    global: Arc<Vec<Arc<Policy>>>,
    revision: u64,
}

#[derive(Debug, Clone)]
struct Known {
    key: Arc<str>,
    policy: Option<Arc<Policy>>,
    removed: bool,
    /// Workloads that list it.
    references: usize,
}

impl Entry for Known {
    type Key = str;

    fn key(&self) -> &str {
        &self.key
    }

    fn same(&self, other: &Self) -> bool {
        let version = |k: &Known| (k.policy.as_ref().map(Arc::as_ptr), k.removed, k.references);
        version(self) == version(other)
    }
}

#[derive(Debug, Clone)]
struct OfNamespace {
    namespace: Arc<str>,
    policies: Arc<Vec<Arc<Policy>>>,
}

impl Entry for OfNamespace {
    type Key = str;

    fn key(&self) -> &str {
        &self.namespace
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policies, &other.policies)
    }
}

impl Policies {
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
        let of_namespace = self.by_namespace.get(workload.namespace()).map(|n| &n.policies[..]).unwrap_or_default();
        let listed = workload.policies.iter().map(|key| {
            // A removed policy is in force for those that still list it.
            self.by_key.get(key).and_then(|k| k.policy.as_ref()).ok_or(key)
        });
        self.global.iter().chain(of_namespace).map(Ok).chain(listed)
    }

    pub(super) fn put(&mut self, policy: Arc<Policy>) {
        self.changed();
        let references = self.withdraw(&policy.key);
        match policy.scope {
            Scope::Global => insert(&mut self.global, policy.clone()),
            Scope::Namespace => {
                let mut of = self
                    .by_namespace
                    .get(&policy.namespace)
                    .cloned()
                    .unwrap_or_else(|| OfNamespace { namespace: policy.namespace.clone(), policies: Arc::default() });
                insert(&mut of.policies, policy.clone());
                self.by_namespace.insert(of);
            }
            Scope::Workload => {}
        }
        self.by_key.insert(Known { key: policy.key.clone(), policy: Some(policy), removed: false, references });
    }

    pub(super) fn remove(&mut self, key: &str) {
        if self.get(key).is_none() {
            return;
        }
        self.changed();
        let references = self.withdraw(key);
        match self.by_key.get(key).cloned() {
            Some(known) if references > 0 => drop(self.by_key.insert(Known { removed: true, ..known })),
            _ => drop(self.by_key.remove(key)),
        }
    }

    /// Takes a policy out of those that apply without being listed; says how many list it.
    fn withdraw(&mut self, key: &str) -> usize {
        let Some(known) = self.by_key.get(key) else { return 0 };
        let references = known.references;
        let Some(policy) = known.policy.clone() else { return references };
        match policy.scope {
            Scope::Global => Arc::make_mut(&mut self.global).retain(|p| &*p.key != key),
            Scope::Namespace => {
                if let Some(mut of) = self.by_namespace.get(&policy.namespace).cloned() {
                    Arc::make_mut(&mut of.policies).retain(|p| &*p.key != key);
                    match of.policies.is_empty() {
                        true => drop(self.by_namespace.remove(&policy.namespace)),
                        false => drop(self.by_namespace.insert(of)),
                    }
                }
            }
            Scope::Workload => {}
        }
        references
    }

    /// Counts a workload that lists `keys`.
    pub(super) fn refer(&mut self, keys: &[Arc<str>]) {
        for key in keys {
            let mut known = self.by_key.get(key).cloned().unwrap_or_else(|| Known {
                key: key.clone(),
                policy: None,
                removed: false,
                references: 0,
            });
            known.references += 1;
            self.by_key.insert(known);
        }
    }

    /// Undoes [`Policies::refer`].
    pub(super) fn release(&mut self, keys: &[Arc<str>]) {
        for key in keys {
            let Some(mut known) = self.by_key.get(key).cloned() else { continue };
            known.references -= 1;
            match known.references == 0 && (known.removed || known.policy.is_none()) {
                true => drop(self.by_key.remove(key)),
                false => drop(self.by_key.insert(known)),
            }
        }
    }
}

/// Sorted by key, so that the policy named in a verdict does not depend on the order of arrival.
fn insert(policies: &mut Arc<Vec<Arc<Policy>>>, policy: Arc<Policy>) {
    let policies = Arc::make_mut(policies);
    let at = policies.partition_point(|p| p.key < policy.key);
    policies.insert(at, policy);
}
