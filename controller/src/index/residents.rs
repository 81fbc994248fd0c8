//! Who runs where: what a node may ask certificates for.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use loam_core::ids::{Identity, TrustDomain};

use crate::resource::Name;

/// Identities of the mesh by node. One owner changes them; the authority asks.
#[derive(Debug)]
pub struct Residents {
    trust_domain: TrustDomain,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How many pods of a node speak as somebody.
    nodes: HashMap<Arc<str>, HashMap<Account, usize>>,
    /// What each pod counts for.
    pods: HashMap<Name, Resident>,
    /// The pods of waypoints.
    waypoints: HashMap<Name, Resident>,
}

/// A namespace and a service account in it.
type Account = (Arc<str>, Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Resident {
    node: Arc<str>,
    service_account: Arc<str>,
}

impl Residents {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, inner: RwLock::default() }
    }

    /// Whether a living pod of the mesh on `node` speaks as `identity`. Another trust domain is never ours to vouch
    /// for.
    pub fn runs_on(&self, identity: &Identity, node: &str) -> bool {
        if *identity.trust_domain() != self.trust_domain || node.is_empty() {
            return false;
        }
        let account = (identity.namespace().into(), identity.service_account().into());
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.nodes.get(node).is_some_and(|accounts| accounts.contains_key(&account))
    }

    /// Whether a living pod of a waypoint on `node` speaks as an account.
    pub fn has_waypoint(&self, namespace: &str, service_account: &str, node: &str) -> bool {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let is = |(pod, r): (&Name, &Resident)| {
            (&*pod.namespace, &*r.service_account, &*r.node) == (namespace, service_account, node)
        };
        !node.is_empty() && inner.waypoints.iter().any(is)
    }

    /// Says that a pod is a waypoint's, with its node and service account, or that it is none.
    pub(super) fn set_waypoint(&self, pod: &Name, resident: Option<(&Arc<str>, &Arc<str>)>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        match resident {
            Some((node, account)) => {
                let resident = Resident { node: Arc::clone(node), service_account: Arc::clone(account) };
                inner.waypoints.insert(pod.clone(), resident);
            }
            None => drop(inner.waypoints.remove(pod)),
        }
    }

    /// Says who a pod speaks as and where: node and service account, or nobody.
    pub(super) fn set(&self, pod: &Name, resident: Option<(&Arc<str>, &Arc<str>)>) {
        let resident = resident.filter(|(node, _)| !node.is_empty()).map(|(node, service_account)| Resident {
            node: Arc::clone(node),
            service_account: Arc::clone(service_account),
        });
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if inner.pods.get(pod) == resident.as_ref() {
            return;
        }
        let old = match &resident {
            Some(new) => inner.pods.insert(pod.clone(), new.clone()),
            None => inner.pods.remove(pod),
        };
        if let Some(old) = old {
            inner.leave(&pod.namespace, old);
        }
        if let Some(Resident { node, service_account }) = resident {
            let account = (Arc::clone(&pod.namespace), service_account);
            *inner.nodes.entry(node).or_default().entry(account).or_default() += 1;
        }
    }
}

impl Inner {
    fn leave(&mut self, namespace: &Arc<str>, old: Resident) {
        let Some(accounts) = self.nodes.get_mut(&old.node) else { return };
        let account = (Arc::clone(namespace), old.service_account);
        if let Some(count) = accounts.get_mut(&account) {
            *count -= 1;
            if *count == 0 {
                accounts.remove(&account);
            }
        }
        if accounts.is_empty() {
            self.nodes.remove(&old.node);
        }
    }
}
