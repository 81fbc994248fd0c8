//! In which order proxies hear of policies and of the workloads that list them.
//!
//! Both travel by themselves, and either may come first. A policy that is listed and has not come is waited for, and
//! one that is gone stays in force where it is still listed; what is left is told in steps, so that at no moment less
//! or more is allowed than before or after:
//! - a policy about a whole namespace or the mesh is there before workloads cease to list what it replaces, and goes
//!   after they list what replaces it;
//! - a policy that says something else and is about others at the same time gets another name, and each workload
//!   changes from the one to the other by itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use loam_core::policy::{Policy, Scope};

use crate::resource::Name;

/// What became different about who lists what.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Whether somebody lists a policy more than before.
    gains: bool,
    /// Whether somebody lists one less.
    drops: bool,
    /// The policies that are listed by others than before.
    moved: BTreeSet<Arc<str>>,
}

/// What to tell, and in which order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Before workloads.
    pub(super) first: Vec<(Arc<str>, Option<Policy>)>,
    /// After workloads.
    pub(super) last: Vec<(Arc<str>, Option<Policy>)>,
    /// Whether proxies should know the first before they hear of workloads.
    pub(super) pause_after_first: bool,
    /// Whether proxies should know the workloads before they hear of the last.
    pub(super) pause_before_last: bool,
    /// The policies with another name: whoever lists them has to be told.
    pub(super) renamed: BTreeSet<Arc<str>>,
}

/// What proxies were told.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    told: HashMap<Arc<str>, Told>,
    /// What each pod lists.
    listed: HashMap<Name, Arc<[Arc<str>]>>,
    /// How many list each policy.
    lists: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Told {
    policy: Policy,
    /// How often it was renamed.
    version: u32,
}

impl Delivery {
    /// Whether anybody lists a policy.
    pub(super) fn is_listed(&self, key: &str) -> bool {
        self.lists.contains_key(key)
    }

    /// Those who list one of `keys`.
    pub(super) fn who_lists<'a>(&'a self, keys: &'a BTreeSet<Arc<str>>) -> impl Iterator<Item = &'a Name> {
        let some = !keys.is_empty();
        let listed = self.listed.iter().filter(move |_| some);
        listed.filter(|(_, list)| list.iter().any(|key| keys.contains(key))).map(|(name, _)| name)
    }

    /// Compares what pods are to list with what they list.
    pub(super) fn moves(&self, lists: impl Iterator<Item = (Name, Arc<[Arc<str>]>)>) -> Moves {
        let mut moves = Moves::default();
        for (pod, new) in lists {
            let old = self.listed.get(&pod).map(|list| &list[..]).unwrap_or_default();
            for key in new.iter().filter(|key| !old.contains(key)) {
                moves.gains = true;
                moves.moved.insert(Arc::clone(key));
            }
            for key in old.iter().filter(|key| !new.contains(key)) {
                moves.drops = true;
                moves.moved.insert(Arc::clone(key));
            }
        }
        moves
    }

    /// What to tell of `policies`, of which `None` is one that is gone.
    pub(super) fn plan(&mut self, policies: Vec<(Arc<str>, Option<Policy>)>, moves: &Moves) -> Plan {
        let mut plan = Plan::default();
        let (mut widens, mut narrows) = (false, false);
        for (key, new) in policies {
            let old = self.told.remove(&key);
            let (was, is) = (old.as_ref().map(|told| breadth(&told.policy)), new.as_ref().map(breadth));
            let Some(new) = new else {
                if let Some(old) = old {
                    narrows |= was > Some(0);
                    plan.last.push((name(&key, old.version), None));
                }
                continue;
            };
            let mut version = old.as_ref().map_or(0, |told| told.version);
            if old.as_ref().is_some_and(|told| told.policy == new) {
                self.told.insert(key, Told { policy: new, version });
                continue;
            }
            if (was, is) == (Some(0), Some(0)) && moves.moved.contains(&key) {
                plan.last.push((name(&key, version), None));
                version += 1;
                plan.renamed.insert(Arc::clone(&key));
            }
            let wire = name(&key, version);
            let told = (Arc::clone(&wire), Some(Policy { key: wire, ..new.clone() }));
            if is < was {
                narrows = true;
                plan.last.push(told);
            } else {
                widens |= is > Some(0);
                plan.first.push(told);
            }
            self.told.insert(key, Told { policy: new, version });
        }
        plan.pause_after_first = widens && moves.drops;
        plan.pause_before_last = narrows && moves.gains;
        plan
    }

    /// The names that proxies know policies by.
    pub(super) fn names(&self, list: &Arc<[Arc<str>]>) -> Arc<[Arc<str>]> {
        let version = |key: &Arc<str>| self.told.get(key).map_or(0, |told| told.version);
        if list.iter().all(|key| version(key) == 0) {
            return Arc::clone(list);
        }
        let mut names: Vec<_> = list.iter().map(|key| name(key, version(key))).collect();
        names.sort();
        names.into()
    }

    /// Notes what a pod lists. Returns whether a policy is listed for the first time or no more.
    pub(super) fn lists(&mut self, pod: &Name, list: Option<Arc<[Arc<str>]>>) -> bool {
        let list = list.filter(|keys| !keys.is_empty());
        let old = match &list {
            Some(new) if self.listed.get(pod) == Some(new) => return false,
            Some(new) => self.listed.insert(pod.clone(), Arc::clone(new)),
            None => self.listed.remove(pod),
        };
        let mut turned = false;
        for key in old.iter().flat_map(|keys| keys.iter()) {
            if let Some(count) = self.lists.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.lists.remove(key);
                    turned = true;
                }
            }
        }
        for key in list.iter().flat_map(|keys| keys.iter()) {
            let count = self.lists.entry(Arc::clone(key)).or_default();
            *count += 1;
            turned |= *count == 1;
        }
        turned
    }
}

/// How many may be about it without listing it.
fn breadth(policy: &Policy) -> u8 {
    match policy.scope {
        Scope::Workload => 0,
        Scope::Namespace => 1,
        Scope::Global => 2,
    }
}

/// No name of an object of Kubernetes has an underscore.
fn name(key: &Arc<str>, version: u32) -> Arc<str> {
    match version {
        0 => Arc::clone(key),
        _ => format!("{key}_{version}").into(),
    }
}
