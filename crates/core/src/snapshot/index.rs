//! The indexes of a snapshot: by address, by virtual address, by name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Members;
use crate::http::table::ServiceTable;
use crate::http::traffic::ServiceTraffic;
use crate::ids::{Hostname, ServiceKey, WorkloadUid};
use crate::map::{Entry, Map};
use crate::service::Service;
use crate::workload::{Health, TunnelProtocol, Workload};

impl Entry for Arc<Workload> {
    type Key = WorkloadUid;

    fn key(&self) -> &WorkloadUid {
        &self.uid
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

impl Entry for Arc<Members> {
    type Key = ServiceKey;

    fn key(&self) -> &ServiceKey {
        &self.key
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

impl Entry for Arc<ServiceTable> {
    type Key = ServiceKey;

    fn key(&self) -> &ServiceKey {
        self.service()
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

impl Entry for Arc<ServiceTraffic> {
    type Key = ServiceKey;

    fn key(&self) -> &ServiceKey {
        &self.service
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

/// Who claims an address, best claim first. One owner is the rule and costs no list.
#[derive(Debug, Clone)]
pub(super) struct Address {
    ip: IpAddr,
    owners: Owners,
}

#[derive(Debug, Clone)]
enum Owners {
    One(Arc<Workload>),
    Some(Arc<Vec<Arc<Workload>>>),
}

impl Entry for Address {
    type Key = IpAddr;

    fn key(&self) -> &IpAddr {
        &self.ip
    }

    fn same(&self, other: &Self) -> bool {
        self.owners().map(Arc::as_ptr).eq(other.owners().map(Arc::as_ptr))
    }
}

impl Address {
    pub(super) fn new(ip: IpAddr) -> Self {
        Self { ip, owners: Owners::Some(Arc::default()) }
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = &Arc<Workload>> {
        let list: &[Arc<Workload>] = match &self.owners {
            Owners::One(owner) => std::slice::from_ref(owner),
            Owners::Some(owners) => owners,
        };
        list.iter()
    }

    pub(super) fn with(&self, workload: Arc<Workload>) -> Self {
        let mut owners: Vec<_> = self.owners().filter(|w| w.uid != workload.uid).cloned().collect();
        let at = owners.partition_point(|w| claim(w) < claim(&workload));
        owners.insert(at, workload);
        Self { ip: self.ip, owners: Owners::of(owners) }
    }

    pub(super) fn without(&self, uid: &WorkloadUid) -> Option<Self> {
        let owners: Vec<_> = self.owners().filter(|w| w.uid != *uid).cloned().collect();
        (!owners.is_empty()).then(|| Self { ip: self.ip, owners: Owners::of(owners) })
    }
}

impl Owners {
    fn of(mut owners: Vec<Arc<Workload>>) -> Self {
        match (owners.pop(), owners.is_empty()) {
            (Some(only), true) => Owners::One(only),
            (last, _) => {
                owners.extend(last);
                Owners::Some(Arc::new(owners))
            }
        }
    }
}

/// How good a workload's claim to an address is; the least is the best.
fn claim(workload: &Workload) -> (bool, bool, bool, &WorkloadUid) {
    let pod = workload.uid.as_str().contains("//Pod/");
    let tunnel = workload.protocol == TunnelProtocol::Hbone;
    let healthy = workload.health == Health::Healthy;
    (!pod, !tunnel, !healthy, &workload.uid)
}

/// Services of one hostname.
#[derive(Debug, Clone)]
pub(super) struct Named {
    hostname: Hostname,
    services: Arc<Vec<Arc<Service>>>,
}

impl Entry for Named {
    type Key = str;

    fn key(&self) -> &str {
        self.hostname.as_str()
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.services, &other.services)
    }
}

impl Named {
    pub(super) fn new(hostname: Hostname) -> Self {
        Self { hostname, services: Arc::default() }
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    pub(super) fn with(&self, service: Arc<Service>) -> Self {
        let mut services: Vec<_> = self.services().filter(|s| s.key != service.key).cloned().collect();
        let at = services.partition_point(|s| s.key < service.key);
        services.insert(at, service);
        Self { hostname: self.hostname.clone(), services: Arc::new(services) }
    }

    pub(super) fn without(&self, key: &ServiceKey) -> Option<Self> {
        let services: Vec<_> = self.services().filter(|s| s.key != *key).cloned().collect();
        (!services.is_empty()).then(|| Self { hostname: self.hostname.clone(), services: Arc::new(services) })
    }
}

/// Which of several services that claim one name or address a caller of `namespace` means: its own namespace's, else
/// the canonical one, else the first by key.
pub(super) fn preferred<'a>(
    services: impl Iterator<Item = &'a Arc<Service>>,
    namespace: &str,
) -> Option<&'a Arc<Service>> {
    services
        .filter(|s| s.is_visible_to(namespace))
        .min_by(|a, b| rank(a, namespace).cmp(&rank(b, namespace)).then_with(|| a.key.cmp(&b.key)))
}

fn rank(service: &Service, namespace: &str) -> (bool, bool) {
    (&*service.key.namespace != namespace, !service.canonical)
}

/// Services by virtual address: single addresses and ranges.
#[derive(Debug, Clone, Default)]
pub(super) struct Vips {
    ranges: Map<Range>,
    /// How many ranges there are of each family and length; single addresses are not counted.
    lengths: Arc<BTreeMap<(bool, u8), usize>>,
}

/// The services that claim one range.
#[derive(Debug, Clone)]
struct Range {
    range: IpNet,
    claims: Arc<Vec<(Arc<str>, Arc<Service>)>>,
}

impl Entry for Range {
    type Key = IpNet;

    fn key(&self) -> &IpNet {
        &self.range
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.claims, &other.claims)
    }
}

impl Vips {
    pub(super) fn put(&mut self, service: &Arc<Service>) {
        for addr in &service.addresses {
            let range = addr.range.trunc();
            let known = self.ranges.get(&range).map(|r| r.claims.clone());
            if known.is_none() && range.prefix_len() < range.max_prefix_len() {
                *Arc::make_mut(&mut self.lengths).entry(length(&range)).or_default() += 1;
            }
            let mut claims = known.unwrap_or_default();
            Arc::make_mut(&mut claims).push((addr.network.clone(), service.clone()));
            self.ranges.insert(Range { range, claims });
        }
    }

    pub(super) fn remove(&mut self, service: &Service) {
        for addr in &service.addresses {
            let range = addr.range.trunc();
            let Some(known) = self.ranges.get(&range) else { continue };
            let mut claims = known.claims.clone();
            Arc::make_mut(&mut claims).retain(|(_, s)| s.key != service.key);
            if !claims.is_empty() {
                self.ranges.insert(Range { range, claims });
                continue;
            }
            self.ranges.remove(&range);
            let lengths = Arc::make_mut(&mut self.lengths);
            if let Some(count) = lengths.get_mut(&length(&range)) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&length(&range));
                }
            }
        }
    }

    pub(super) fn exact(&self, network: &str, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        preferred(self.claims(network, IpNet::from(ip)), namespace)
    }

    /// Ranges around `ip`: those of the caller's namespace first, then the longest, then the canonical.
    pub(super) fn within(&self, network: &str, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let around = self.lengths.keys().filter(|(v6, _)| *v6 == ip.is_ipv6());
        let claims = around.flat_map(|(_, len)| {
            let range = IpNet::new(ip, *len).ok().map(|range| range.trunc());
            range.into_iter().flat_map(|range| self.claims(network, range)).map(|service| (*len, service))
        });
        let order = |(len, service): &(u8, &Arc<Service>)| {
            let (foreign, not_canonical) = rank(service, namespace);
            (foreign, u8::MAX - *len, not_canonical)
        };
        claims
            .filter(|(_, service)| service.is_visible_to(namespace))
            .min_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.1.key.cmp(&b.1.key)))
            .map(|(_, service)| service)
    }

    fn claims<'a>(&'a self, network: &str, range: IpNet) -> impl Iterator<Item = &'a Arc<Service>> {
        let claims = self.ranges.get(&range).map(|r| &r.claims[..]).unwrap_or_default();
        claims.iter().filter(move |(n, _)| **n == *network).map(|(_, service)| service)
    }
}

fn length(range: &IpNet) -> (bool, u8) {
    (matches!(range, IpNet::V6(_)), range.prefix_len())
}
