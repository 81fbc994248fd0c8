//! One copy of what many resources say: namespaces, nodes, service lists. A mesh of a million workloads repeats a few
//! thousand of them.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use loam_core::ids::{Hostname, NameError, ServiceKey, TrustDomain};
use loam_core::service::Port;
use loam_core::traversal::Traversal;
use loam_core::workload::{GatewayAddr, Locality, ServicePorts};

/// Values known before the first clean-up; from then on a clean-up follows each doubling, so its cost stays a fraction
/// of the work and unused values never outnumber the used ones by much.
const FIRST_CLEANUP: usize = 4096;

/// Remembers values that were met, to hand out the same memory again.
#[derive(Debug, Default)]
pub struct Interner {
    strings: Pool<str>,
    ports: Pool<[Port]>,
    services: Pool<[ServicePorts]>,
    policies: Pool<[Arc<str>]>,
    localities: Pool<Locality>,
    gateways: Pool<GatewayAddr>,
    traversals: Pool<[Traversal]>,
    trust_domains: HashMap<Box<str>, TrustDomain>,
}

/// Most trust domains remembered. A mesh has one; beyond this they are simply not shared.
const MAX_TRUST_DOMAINS: usize = 64;

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    cleanup_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), cleanup_at: FIRST_CLEANUP }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn share<V>(&mut self, value: V) -> Arc<T>
    where
        V: AsRef<T>,
        Arc<T>: From<V>,
    {
        if let Some(known) = self.known.get(value.as_ref()) {
            return known.clone();
        }
        if self.known.len() >= self.cleanup_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.cleanup_at = FIRST_CLEANUP.max(2 * self.known.len());
        }
        let shared = Arc::<T>::from(value);
        self.known.insert(shared.clone());
        shared
    }
}

/// Lets a value itself be looked up where a pool wants a reference to it.
struct Whole<T>(T);

impl<T> AsRef<T> for Whole<T> {
    fn as_ref(&self) -> &T {
        &self.0
    }
}

impl<T> From<Whole<T>> for Arc<T> {
    fn from(value: Whole<T>) -> Self {
        Arc::new(value.0)
    }
}

impl Interner {
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        self.strings.share(text)
    }

    pub(crate) fn ports(&mut self, ports: Vec<Port>) -> Arc<[Port]> {
        self.ports.share(ports)
    }

    pub(crate) fn services(&mut self, services: Vec<ServicePorts>) -> Arc<[ServicePorts]> {
        self.services.share(services)
    }

    pub(crate) fn policies(&mut self, policies: Vec<Arc<str>>) -> Arc<[Arc<str>]> {
        self.policies.share(policies)
    }

    pub(crate) fn locality(&mut self, locality: Locality) -> Arc<Locality> {
        self.localities.share(Whole(locality))
    }

    pub(crate) fn gateway(&mut self, gateway: GatewayAddr) -> Arc<GatewayAddr> {
        self.gateways.share(Whole(gateway))
    }

    pub(crate) fn traversal(&mut self, rules: Vec<Traversal>) -> Arc<[Traversal]> {
        self.traversals.share(rules)
    }

    pub(crate) fn trust_domain(&mut self, text: &str) -> Result<TrustDomain, NameError> {
        if let Some(known) = self.trust_domains.get(text) {
            return Ok(known.clone());
        }
        let domain: TrustDomain = text.parse()?;
        if self.trust_domains.len() < MAX_TRUST_DOMAINS {
            self.trust_domains.insert(text.into(), domain.clone());
        }
        Ok(domain)
    }

    pub(crate) fn hostname(&mut self, text: &str) -> Result<Hostname, NameError> {
        Hostname::try_from(self.text(text))
    }

    pub(crate) fn service_key(&mut self, namespace: &str, hostname: &str) -> Result<ServiceKey, NameError> {
        let hostname = self.hostname(hostname)?;
        ServiceKey::shared(self.text(namespace), hostname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_memory() {
        let mut interner = Interner::default();
        let (a, b) = (interner.text("shop"), interner.text("shop"));
        assert!(Arc::ptr_eq(&a, &b));
        let (a, b) = (interner.locality(Locality::default()), interner.locality(Locality::default()));
        assert!(Arc::ptr_eq(&a, &b));
        let a = interner.service_key("shop", "web.shop.svc").unwrap();
        let b = interner.service_key("shop", "web.shop.svc").unwrap();
        assert!(std::ptr::eq(a.hostname.as_str(), b.hostname.as_str()));
    }

    #[test]
    fn values_that_nobody_uses_are_forgotten() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        for i in 0..10 * FIRST_CLEANUP {
            interner.text(&i.to_string());
        }
        assert!(interner.strings.known.len() <= FIRST_CLEANUP + 1);
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
    }
}
