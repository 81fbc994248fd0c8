//! The mesh as an immutable value with indexes. Applying changes gives the next one and costs as much as changed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::NetworkAddr;
use crate::authz::Applying;
use crate::balance::{Picker, Tables};
use crate::http::route::ServiceRoutes;
use crate::http::table::ServiceTable;
use crate::http::traffic::ServiceTraffic;
use crate::ids::{Hostname, ServiceKey, WorkloadUid};
use crate::map::Map;
use crate::policy::Policy;
use crate::service::Service;
use crate::workload::{NetworkMode, Workload};

mod index;
mod moves;
mod names;
mod policies;

use index::{Address, Named, Vips};
use policies::Policies;
pub use policies::PolicyVersion;

/// One thing that changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A workload appeared or is different.
    Workload(Workload),
    /// A workload is gone.
    RemoveWorkload(WorkloadUid),
    /// A service appeared or is different.
    Service(Service),
    /// A service is gone.
    RemoveService(ServiceKey),
    /// A service is bound to this waypoint, or its routes are different.
    Routes(ServiceRoutes),
    /// A service is not bound to this waypoint any more.
    RemoveRoutes(ServiceKey),
    /// How a service's endpoints are used appeared or is different.
    Traffic(ServiceTraffic),
    /// Nothing is said any more of how a service's endpoints are used.
    RemoveTraffic(ServiceKey),
    /// A policy appeared or is different.
    Policy(Policy),
    /// A policy that cannot be read appeared, for which [`Policy::unreadable`] stands. Where a version is known that
    /// could be read, that stays in force.
    UnreadablePolicy(Policy),
    /// A policy is gone.
    RemovePolicy(Arc<str>),
    /// The control plane has told of all its policies, perhaps of none.
    PoliciesArrived,
    /// The control plane has told of all its workloads and services, perhaps of none.
    AddressesArrived,
}

/// A service with its endpoints. Endpoints may arrive before their service: then `service` is `None`.
#[derive(Debug)]
pub struct Members {
    key: ServiceKey,
    service: Option<Arc<Service>>,
    /// Workloads that list the service, by uid.
    workloads: Box<[Arc<Workload>]>,
    picker: Option<Picker>,
}

impl Members {
    /// The service, once it has arrived.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    /// The workloads that serve it, sorted by uid, whether or not they may be used.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    /// Its endpoints arranged for picking, once the service has arrived.
    pub fn picker(&self) -> Option<&Picker> {
        self.picker.as_ref()
    }
}

/// The mesh at one moment. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    revision: u64,
    workloads: Map<Arc<Workload>>,
    addresses: Map<Address>,
    services: Map<Arc<Members>>,
    vips: Vips,
    hostnames: Map<Named>,
    /// The services that are bound to this waypoint.
    routes: Map<Arc<ServiceTable>>,
    traffic: Map<Arc<ServiceTraffic>>,
    policies: Policies,
    /// The control plane has not told of its workloads and services yet.
    addresses_expected: bool,
    /// How many workloads each cluster has: a pod's uid can be spelled when its cluster is known.
    clusters: Arc<BTreeMap<Arc<str>, usize>>,
}

/// Memberships to be rebuilt once all changes are in.
type Dirty = HashMap<ServiceKey, BTreeMap<WorkloadUid, Option<Arc<Workload>>>>;

impl Snapshot {
    /// A mesh of which nothing is known yet. Until [`Change::PoliciesArrived`] any policy may apply to anything, and
    /// until [`Change::AddressesArrived`] any address may be a workload's.
    pub fn awaited() -> Self {
        Self { policies: Policies::expected(), addresses_expected: true, ..Self::default() }
    }

    /// The next snapshot; this one stays as it is.
    pub fn apply(&self, changes: Vec<Change>) -> Snapshot {
        self.clone().applied(changes)
    }

    /// The next snapshot in place of this one. What no other clone shares is changed without copying, which makes a
    /// first synchronisation cheap.
    pub fn applied(mut self, changes: Vec<Change>) -> Snapshot {
        let mut dirty = Dirty::new();
        for change in changes {
            match change {
                Change::Workload(workload) => self.put_workload(Arc::new(workload), &mut dirty),
                Change::RemoveWorkload(uid) => self.remove_workload(&uid, &mut dirty),
                Change::Service(service) => self.put_service(Arc::new(service), &mut dirty),
                Change::RemoveService(key) => self.remove_service(&key, &mut dirty),
                Change::Routes(routes) => drop(self.routes.insert(Arc::new(ServiceTable::new(&routes)))),
                Change::RemoveRoutes(key) => drop(self.routes.remove(&key)),
                Change::Traffic(traffic) => self.put_traffic(Arc::new(traffic), &mut dirty),
                Change::RemoveTraffic(key) => self.remove_traffic(&key, &mut dirty),
                Change::Policy(policy) => self.policies.put(policy),
                Change::UnreadablePolicy(stand_in) => self.policies.put_unreadable(stand_in),
                Change::RemovePolicy(key) => self.policies.remove(&key),
                Change::PoliciesArrived => self.policies.arrived(),
                Change::AddressesArrived => self.addresses_expected = false,
            }
        }
        for (key, changes) in dirty {
            self.rebuild(key, changes);
        }
        self.revision += 1;
        self
    }

    /// Counts the applied batches.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Counts the changes that may alter a verdict: while it stays the same, connections need not be judged again.
    pub fn policies_revision(&self) -> u64 {
        self.policies.revision()
    }

    /// The version of the policies that apply to `workload`.
    pub fn policy_version(&self, workload: &Workload) -> PolicyVersion {
        self.policies.version(workload)
    }

    /// Whether an address that is not here is nobody's, as far as the control plane knows.
    pub fn has_addresses(&self) -> bool {
        !self.addresses_expected
    }

    /// The workload of a uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload whose own address `addr` is. When several claim it: pods before others, those in tunnels before
    /// those in the clear, the healthy before others, then by uid.
    pub fn workload_at(&self, addr: &NetworkAddr) -> Option<&Arc<Workload>> {
        self.owner(&addr.network, addr.ip)
    }

    pub(crate) fn owner(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(&ip)?.owners().find(|w| &*w.network == network)
    }

    /// The pod `namespace/name` on `node`.
    pub fn local(&self, namespace: &str, name: &str, node: &str) -> Option<&Arc<Workload>> {
        let uids = self.clusters.keys().map(|cluster| WorkloadUid::of_pod(cluster, namespace, name));
        uids.filter_map(|uid| self.workloads.get(&uid)).find(|w| &*w.node == node)
    }

    /// The service of a key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)?.service()
    }

    /// A service with its endpoints.
    pub fn members(&self, key: &ServiceKey) -> Option<&Arc<Members>> {
        self.services.get(key)
    }

    /// The service that a caller of `namespace` means by the single virtual address `addr`.
    pub fn service_at(&self, addr: &NetworkAddr, namespace: &str) -> Option<&Arc<Service>> {
        self.vips.exact(&addr.network, addr.ip, namespace)
    }

    /// The service that a caller of `namespace` means by an address within the range of a service.
    pub fn service_around(&self, addr: &NetworkAddr, namespace: &str) -> Option<&Arc<Service>> {
        self.vips.within(&addr.network, addr.ip, namespace)
    }

    /// The service that a caller of `namespace` means by a hostname.
    pub fn service_named(&self, hostname: &Hostname, namespace: &str) -> Option<&Arc<Service>> {
        index::preferred(self.hostnames.get(hostname.as_str())?.services(), namespace)
    }

    /// The routes of a service that is bound to this waypoint; there may be none in them.
    pub fn routes(&self, key: &ServiceKey) -> Option<&Arc<ServiceTable>> {
        self.routes.get(key)
    }

    /// How a service's endpoints are used, where something is said of it.
    pub fn traffic(&self, key: &ServiceKey) -> Option<&Arc<ServiceTraffic>> {
        self.traffic.get(key)
    }

    /// The policy of a key, `namespace/name`.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that apply to `workload`; the key of one that is listed and not known.
    pub fn policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Arc<str>>> {
        self.policies.of(workload)
    }

    pub(crate) fn applying<'a>(&'a self, workload: &'a Workload) -> Applying<'a> {
        self.policies.applying(workload)
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// All services with their endpoints, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Members>> {
        self.services.iter().filter(|m| m.service.is_some())
    }

    /// All policies, in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// How many workloads there are.
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    fn put_workload(&mut self, workload: Arc<Workload>, dirty: &mut Dirty) {
        // Counted before the old version is released, so that a policy which both list is never without a reference.
        self.policies.refer(&workload.policies);
        let old = self.workloads.insert(workload.clone());
        let same = match &old {
            Some(old) => old.policies == workload.policies && old.traversal == workload.traversal,
            None => workload.policies.is_empty() && workload.traversal.is_empty(),
        };
        if !same {
            self.policies.changed();
        }
        if let Some(old) = old {
            self.forget(&old, dirty);
        }
        if workload.network_mode == NetworkMode::Standard {
            for ip in &workload.addresses {
                let entry = self.addresses.get(ip).cloned().unwrap_or_else(|| Address::new(*ip));
                self.addresses.insert(entry.with(workload.clone()));
            }
        }
        *Arc::make_mut(&mut self.clusters).entry(workload.cluster.clone()).or_default() += 1;
        for listed in workload.services.iter() {
            dirty.entry(listed.service.clone()).or_default().insert(workload.uid.clone(), Some(workload.clone()));
        }
    }

    fn remove_workload(&mut self, uid: &WorkloadUid, dirty: &mut Dirty) {
        if let Some(old) = self.workloads.remove(uid) {
            if !old.policies.is_empty() || !old.traversal.is_empty() {
                self.policies.changed();
            }
            self.forget(&old, dirty);
        }
    }

    /// Takes a workload out of every index but the first.
    fn forget(&mut self, old: &Arc<Workload>, dirty: &mut Dirty) {
        self.policies.release(&old.policies);
        for ip in &old.addresses {
            let Some(entry) = self.addresses.get(ip).cloned() else { continue };
            match entry.without(&old.uid) {
                Some(entry) => drop(self.addresses.insert(entry)),
                None => drop(self.addresses.remove(ip)),
            }
        }
        let clusters = Arc::make_mut(&mut self.clusters);
        if let Some(count) = clusters.get_mut(&old.cluster) {
            *count -= 1;
            if *count == 0 {
                clusters.remove(&old.cluster);
            }
        }
        for listed in old.services.iter() {
            dirty.entry(listed.service.clone()).or_default().insert(old.uid.clone(), None);
        }
    }

    fn put_service(&mut self, service: Arc<Service>, dirty: &mut Dirty) {
        let key = service.key.clone();
        self.drop_names(&key);
        self.vips.put(&service);
        let named = self.hostnames.get(key.hostname.as_str()).cloned();
        self.hostnames.insert(named.unwrap_or_else(|| Named::new(key.hostname.clone())).with(service.clone()));
        let workloads = self.services.get(&key).map(|m| m.workloads.clone()).unwrap_or_default();
        // Without its picker, which `rebuild` makes.
        self.services.insert(Arc::new(Members { key: key.clone(), service: Some(service), workloads, picker: None }));
        dirty.entry(key).or_default();
    }

    fn remove_service(&mut self, key: &ServiceKey, dirty: &mut Dirty) {
        if self.service(key).is_none() {
            return;
        }
        self.drop_names(key);
        let workloads = self.services.get(key).map(|m| m.workloads.clone()).unwrap_or_default();
        self.services.insert(Arc::new(Members { key: key.clone(), service: None, workloads, picker: None }));
        dirty.entry(key.clone()).or_default();
    }

    fn put_traffic(&mut self, traffic: Arc<ServiceTraffic>, dirty: &mut Dirty) {
        let (key, tables) = (traffic.service.clone(), traffic.tables());
        let old = self.traffic.insert(traffic);
        if old.map(|old| old.tables()).unwrap_or_default() != tables {
            dirty.entry(key).or_default();
        }
    }

    fn remove_traffic(&mut self, key: &ServiceKey, dirty: &mut Dirty) {
        let old = self.traffic.remove(key);
        if old.is_some_and(|old| old.tables() != Tables::default()) {
            dirty.entry(key.clone()).or_default();
        }
    }

    /// Takes the present version of a service out of the indexes by address and name.
    fn drop_names(&mut self, key: &ServiceKey) {
        let Some(old) = self.service(key).cloned() else { return };
        self.vips.remove(&old);
        if let Some(named) = self.hostnames.get(key.hostname.as_str()).cloned() {
            match named.without(key) {
                Some(named) => drop(self.hostnames.insert(named)),
                None => drop(self.hostnames.remove(key.hostname.as_str())),
            }
        }
    }

    fn rebuild(&mut self, key: ServiceKey, changes: BTreeMap<WorkloadUid, Option<Arc<Workload>>>) {
        let old = self.services.get(&key);
        let service = old.and_then(|m| m.service.clone());
        let old: &[Arc<Workload>] = old.map(|m| &*m.workloads).unwrap_or_default();
        let workloads = merge(old, changes);
        if service.is_none() && workloads.is_empty() {
            self.services.remove(&key);
            return;
        }
        let tables = self.traffic.get(&key).map(|traffic| traffic.tables()).unwrap_or_default();
        let picker = service.as_ref().map(|service| Picker::new(service, &workloads, tables));
        self.services.insert(Arc::new(Members { key, service, workloads, picker }));
    }
}

/// Both are sorted by uid; a change replaces, adds or removes.
fn merge(old: &[Arc<Workload>], changes: BTreeMap<WorkloadUid, Option<Arc<Workload>>>) -> Box<[Arc<Workload>]> {
    let mut merged = Vec::with_capacity(old.len() + changes.len());
    let mut old = old.iter().peekable();
    for (uid, change) in changes {
        while let Some(unchanged) = old.next_if(|w| w.uid < uid) {
            merged.push(unchanged.clone());
        }
        old.next_if(|w| w.uid == uid);
        merged.extend(change);
    }
    merged.extend(old.cloned());
    merged.into()
}

#[cfg(test)]
mod tests;
