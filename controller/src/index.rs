//! Everything the controller knows, indexed so that one change touches only what depends on it.
//!
//! Pure: objects are applied and deleted, [`Index::compile`] answers what became different. One task owns it.

mod allocate;
mod claims;
mod compile;
mod delivery;
mod egress;
mod entries;
mod policies;
mod protection;
mod residents;
mod routes;
mod selectors;
#[cfg(test)]
mod tests;
mod waypoints;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use loam_core::http::route::RouteKey;
use loam_core::ids::{Hostname, TrustDomain};
use loam_core::workload::Locality;
use loam_manifest::istio::{Custom, Place};
use loam_manifest::{Change, Key, Kind, Object, Severity};

pub use compile::{Compiled, Resource};
pub use residents::Residents;
pub use waypoints::WAYPOINT_BOUND;
pub use wishes::{Wish, Wishes};

use crate::policy::status::Status;
use crate::resource::egress::{Mode, of_sidecar};
use crate::resource::gateway;
use crate::resource::place::{self, Namespace};
use crate::resource::pod::{self, Pod};
use crate::resource::service::{self, Service};
use crate::resource::slice::{self, Endpoint, Slice};
use crate::resource::use_waypoint::UseWaypoint;
use crate::resource::{Flaw, Name};
use crate::resource::{service_entry, workload_entry};
use crate::routes::{Spec, Written, backend_tls, backend_traffic};
use claims::Claims;
use egress::Sidecars;
use entries::Entries;
use policies::{Audience, Policies};
use protection::Protected;
use routes::{Routes, route_kind};
use selectors::Selectors;
use waypoints::Waypoints;

/// What all resources of this controller have in common.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// Domain below which services have their names.
    pub cluster_domain: Arc<str>,
    /// Domain of all identities.
    pub trust_domain: TrustDomain,
    /// Other names of it, from before or beside: policies that mean one mean all.
    pub trust_domain_aliases: Arc<[TrustDomain]>,
    /// The namespace whose policies are about the whole mesh.
    pub root_namespace: Arc<str>,
    /// Network of all addresses.
    pub network: Arc<str>,
    /// What workloads may do with destinations that nobody declared, where nothing nearer says.
    pub egress: Mode,
}

/// A part of an object that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The object.
    pub object: Key,
    /// How much it matters.
    pub severity: Severity,
    /// The file and the line, where they are known.
    pub file: Option<Arc<str>>,
    /// The line.
    pub line: Option<u32>,
    /// What is wrong and what was done about it.
    pub message: String,
}

impl Problem {
    /// One whose place is not known.
    fn of(object: Key, message: String) -> Self {
        Self { object, severity: Severity::Error, file: None, line: None, message }
    }
}

/// The objects, and who depends on whom.
#[derive(Debug)]
pub struct Index {
    mesh: Mesh,
    pods: HashMap<Name, Pod>,
    services: HashMap<Name, Service>,
    slices: HashMap<Name, Slice>,
    namespaces: HashMap<Arc<str>, Namespace>,
    nodes: HashMap<Arc<str>, Arc<Locality>>,
    pods_in: Groups<Arc<str>>,
    pods_on: Groups<Arc<str>>,
    services_in: Groups<Arc<str>>,
    slices_of_service: Groups<Name>,
    slices_of_pod: Groups<Name>,
    slices_of_ip: Groups<IpAddr>,
    selectors: Selectors,
    pod_addresses: Claims,
    service_addresses: Claims,
    /// Addresses for which each slice has workloads of its own.
    slice_workloads: HashMap<Name, BTreeSet<IpAddr>>,
    entries: Entries,
    sidecars: Sidecars,
    policies: Policies,
    waypoints: Waypoints,
    routes: Routes,
    protected: Protected,
    residents: Arc<Residents>,
    flaws: BTreeMap<Key, Vec<Flaw>>,
    /// Where entries and Sidecars are written.
    places: HashMap<Key, Place>,
    dirty: Dirty,
}

/// Members of groups: all pods of each node, say.
#[derive(Debug)]
struct Groups<K>(HashMap<K, BTreeSet<Name>>);

/// What has to be compiled again.
#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<Name>,
    services: BTreeSet<Name>,
    slices: BTreeSet<Name>,
    /// Hosts of ServiceEntries.
    hosts: BTreeSet<Hostname>,
    /// ServiceEntries with their endpoints.
    entries: BTreeSet<Name>,
    /// WorkloadEntries.
    machines: BTreeSet<Name>,
    /// Gateways of which somebody may depend.
    gateways: BTreeSet<Name>,
    routes: routes::Dirty,
    /// Whether addresses have to be given to hosts.
    allocation: bool,
}

impl Index {
    /// An empty index.
    pub fn new(mesh: Mesh) -> Self {
        let residents = Arc::new(Residents::new(mesh.trust_domain.clone()));
        let policies = Policies::new(&mesh);
        Self {
            mesh,
            policies,
            pods: HashMap::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            namespaces: HashMap::new(),
            nodes: HashMap::new(),
            pods_in: Groups::default(),
            pods_on: Groups::default(),
            services_in: Groups::default(),
            slices_of_service: Groups::default(),
            slices_of_pod: Groups::default(),
            slices_of_ip: Groups::default(),
            selectors: Selectors::default(),
            pod_addresses: Claims::default(),
            service_addresses: Claims::default(),
            slice_workloads: HashMap::new(),
            entries: Entries::default(),
            sidecars: Sidecars::default(),
            waypoints: Waypoints::default(),
            routes: Routes::default(),
            protected: Protected::default(),
            residents,
            flaws: BTreeMap::new(),
            places: HashMap::new(),
            dirty: Dirty::default(),
        }
    }

    /// Who runs where, as of the last [`Index::compile`].
    pub fn residents(&self) -> Arc<Residents> {
        Arc::clone(&self.residents)
    }

    /// How many pods, services and slices it holds.
    pub fn counts(&self) -> [usize; 3] {
        [self.pods.len(), self.services.len(), self.slices.len()]
    }

    /// Takes in one change.
    pub fn change(&mut self, change: Change) {
        match change {
            Change::Applied(object) => self.apply(object),
            Change::Deleted(key) => self.delete(&key),
        }
    }

    /// Takes in an object that is there or is different.
    pub fn apply(&mut self, object: Object) {
        let key = object.key();
        let mut flaws = Vec::new();
        let name = || Name { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) };
        match object {
            Object::Pod(object) => {
                let pod = pod::read(*object, &mut flaws);
                self.set_pod(&name(), Some(pod));
            }
            Object::Service(object) => {
                let service = service::read(*object, &mut flaws);
                let service = match self.service_key(&name()) {
                    Ok(_) => service,
                    Err(error) => {
                        flaws.push(format!("the service is left out: {error}"));
                        None
                    }
                };
                self.set_service(&name(), service);
            }
            Object::EndpointSlice(object) => {
                let slice = slice::read(*object, &mut flaws);
                self.set_slice(&name(), slice);
            }
            Object::Namespace(object) => {
                let namespace = place::namespace(&object, &mut flaws);
                self.set_namespace(&key.name, Some(namespace));
            }
            Object::Node(object) => {
                let locality = place::locality(&object, &mut flaws);
                self.set_node(&key.name, Some(locality));
            }
            // A pod names its account, and nothing more is to be known of it.
            Object::ServiceAccount(_) | Object::NetworkPolicy(_) => {}
            Object::PeerAuthentication(object) => {
                let audiences = self.policies.set_peer(&name(), Some(*object));
                self.policies_moved(audiences);
            }
            Object::AuthorizationPolicy(object) => {
                let audiences = self.policies.set_authorization(&name(), Some(*object));
                self.policies_moved(audiences);
                self.protection_moved();
            }
            Object::Sidecar(object) => {
                self.places.insert(key.clone(), object.place.clone());
                let mode = of_sidecar(&object.spec, &mut flaws);
                self.set_sidecar(&name(), mode);
            }
            Object::ServiceEntry(object) => {
                self.places.insert(key.clone(), object.place.clone());
                let entry = service_entry::read(&object.metadata, object.spec, &mut flaws);
                self.set_service_entry(&name(), entry);
            }
            Object::GatewayClass(object) => {
                self.places.insert(key.clone(), object.place.clone());
                let class = gateway::class(&object.metadata, &object.spec, &mut flaws);
                self.set_class(&key.name, Some(class));
            }
            Object::Gateway(object) => {
                self.places.insert(key.clone(), object.place.clone());
                let gateway = gateway::gateway(object.metadata, object.spec, &mut flaws);
                self.set_gateway(&name(), Some(gateway));
            }
            // A route of a mesh sends callers where they could go by themselves, and needs no grant (GEP-1294).
            Object::ReferenceGrant(_) => {}
            Object::HttpRoute(object) => self.apply_route(&key, *object, Spec::Http),
            Object::GrpcRoute(object) => self.apply_route(&key, *object, Spec::Grpc),
            Object::TlsRoute(object) => self.apply_route(&key, *object, Spec::Tls),
            Object::TcpRoute(object) => self.apply_route(&key, *object, Spec::Tcp),
            Object::BackendTlsPolicy(object) => {
                let policy = backend_tls(&object.spec, object.metadata.generation);
                self.set_tls_policy(&name(), Some((age(&object.metadata), policy)));
            }
            Object::BackendTrafficPolicy(object) => {
                let policy = backend_traffic(&object.spec, object.metadata.generation);
                self.set_traffic_policy(&name(), Some((age(&object.metadata), policy)));
            }
            Object::WorkloadEntry(object) => {
                self.places.insert(key.clone(), object.place.clone());
                let mut machine = workload_entry::read(object.spec, &mut flaws);
                if let Some(machine) = &mut machine {
                    machine.waypoint = UseWaypoint::read(&object.metadata, &key.namespace, &mut flaws);
                }
                self.set_workload_entry(&name(), machine);
            }
        }
        if flaws.is_empty() {
            self.flaws.remove(&key);
        } else {
            self.flaws.insert(key, flaws);
        }
    }

    fn apply_route<S>(&mut self, key: &Key, object: Custom<S>, spec: impl Fn(S) -> Spec) {
        let Some(kind) = route_kind(key.kind) else { return };
        self.places.insert(key.clone(), object.place);
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let written = Written { spec: spec(object.spec), created, generation: object.metadata.generation };
        let (namespace, name) = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        self.set_route(&RouteKey { kind, namespace, name }, Some(written));
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &Key) {
        let name = Name { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) };
        self.flaws.remove(key);
        self.places.remove(key);
        match key.kind {
            Kind::Pod => self.set_pod(&name, None),
            Kind::Service => self.set_service(&name, None),
            Kind::EndpointSlice => self.set_slice(&name, None),
            Kind::Namespace => self.set_namespace(&key.name, None),
            Kind::Node => self.set_node(&key.name, None),
            Kind::ServiceAccount | Kind::NetworkPolicy => {}
            Kind::PeerAuthentication => {
                let audiences = self.policies.set_peer(&name, None);
                self.policies_moved(audiences);
            }
            Kind::AuthorizationPolicy => {
                let audiences = self.policies.set_authorization(&name, None);
                self.policies_moved(audiences);
                self.protection_moved();
            }
            Kind::Sidecar => self.set_sidecar(&name, None),
            Kind::ServiceEntry => self.set_service_entry(&name, None),
            Kind::WorkloadEntry => self.set_workload_entry(&name, None),
            Kind::ReferenceGrant => {}
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                if let Some(kind) = route_kind(key.kind) {
                    let (namespace, name) = (name.namespace, name.name);
                    self.set_route(&RouteKey { kind, namespace, name }, None);
                }
            }
            Kind::BackendTlsPolicy => self.set_tls_policy(&name, None),
            Kind::BackendTrafficPolicy => self.set_traffic_policy(&name, None),
            Kind::GatewayClass => self.set_class(&key.name, None),
            Kind::Gateway => self.set_gateway(&name, None),
        }
    }

    /// All that is not in force, in the order of the objects.
    pub fn problems(&self) -> Vec<Problem> {
        let flaws = self
            .flaws
            .iter()
            .flat_map(|(object, flaws)| flaws.iter().map(|message| Problem::of(object.clone(), message.clone())));
        let refused = |kind: Kind, what: &'static str, claims: &Claims| -> Vec<Problem> {
            let problem = |(ip, name, owner): (IpAddr, &Name, &Name)| {
                let object = Key { kind, namespace: Arc::clone(&name.namespace), name: Arc::clone(&name.name) };
                Problem::of(object, format!("address {ip} is left out: it belongs to {what} {owner}"))
            };
            claims.refused().map(problem).collect()
        };
        let mut problems: Vec<_> = flaws
            .chain(refused(Kind::Pod, "pod", &self.pod_addresses))
            .chain(refused(Kind::Service, "service", &self.service_addresses))
            .chain(self.sidecars.problems())
            .chain(self.entries.problems())
            .chain(self.policies.problems().iter().cloned())
            .chain(self.waypoint_problems())
            .chain(self.route_problems())
            .collect();
        for problem in &mut problems {
            if let Some(place) = self.places.get(&problem.object) {
                (problem.file, problem.line) = (Some(Arc::clone(&place.file)), Some(place.line));
            }
        }
        problems.sort();
        problems
    }

    /// What is told about each policy, as of the last [`Index::compile`].
    pub fn policies(&self) -> Arc<[Status]> {
        self.policies.statuses()
    }

    /// Workloads list the policies that are about them.
    fn policies_moved(&mut self, audiences: Vec<Audience>) {
        for audience in audiences {
            let namespace = match &audience {
                Audience::Mesh | Audience::Selected(None, _) => None,
                Audience::Namespace(namespace) | Audience::Selected(Some(namespace), _) => Some(namespace),
            };
            let of = |name: &&Name| namespace.is_none_or(|namespace| name.namespace == *namespace);
            self.dirty.machines.extend(self.entries.machines.keys().filter(of).cloned());
            self.dirty.entries.extend(self.entries.all.keys().filter(of).cloned());
            match audience {
                Audience::Mesh => self.dirty.pods.extend(self.pods.keys().cloned()),
                Audience::Namespace(namespace) => self.dirty.pods.extend(self.pods_in.of(&namespace).cloned()),
                Audience::Selected(Some(namespace), labels) => {
                    let selected = |name: &&Name| self.pods.get(*name).is_some_and(|pod| labels.select(&pod.labels));
                    self.dirty.pods.extend(self.pods_in.of(&namespace).filter(selected).cloned());
                }
                Audience::Selected(None, labels) => {
                    let selected = self.pods.iter().filter(|(_, pod)| labels.select(&pod.labels));
                    self.dirty.pods.extend(selected.map(|(name, _)| name.clone()));
                }
            }
        }
    }

    fn set_pod(&mut self, name: &Name, pod: Option<Pod>) {
        if self.pods.get(name) == pod.as_ref() {
            return;
        }
        self.dirty.pods.insert(name.clone());
        let old = self.pods.remove(name);
        if old.as_ref().map(claims) != pod.as_ref().map(claims) {
            for ip in old.as_ref().map(claimed).into_iter().flatten() {
                let others = self.pod_addresses.remove(ip, name);
                self.address_moved(ip, others);
            }
            for (pod, ip) in pod.iter().flat_map(|pod| claimed(pod).map(move |ip| (pod, ip))) {
                let others = self.pod_addresses.add(ip, name, pod.deleting);
                self.address_moved(ip, others);
            }
        }
        let gateways = [&old, &pod].map(|pod| pod.as_ref().and_then(Pod::gateway));
        self.waypoints.set_pod(name, gateways[0], gateways[1]);
        let gateway = |gateway: &str| Name::new(Arc::clone(&name.namespace), gateway);
        self.dirty.gateways.extend(gateways.into_iter().flatten().map(gateway));
        match &old {
            Some(old) => self.pods_on.remove(&old.node, name),
            None => self.pods_in.add(&name.namespace, name),
        }
        match pod {
            Some(pod) => {
                self.pods_on.add(&pod.node, name);
                self.pods.insert(name.clone(), pod);
            }
            None => self.pods_in.remove(&name.namespace, name),
        }
    }

    /// Pods that claim an address, and slices that know somebody only by it, depend on who has it.
    fn address_moved(&mut self, ip: IpAddr, claimants: Vec<Name>) {
        self.dirty.pods.extend(claimants);
        self.dirty.slices.extend(self.slices_of_ip.of(&ip).cloned());
        self.address_taken(ip);
    }

    fn set_service(&mut self, name: &Name, service: Option<Service>) {
        let old = self.services.remove(name);
        if old == service {
            self.services.extend(service.map(|s| (name.clone(), s)));
            return;
        }
        self.dirty.services.insert(name.clone());
        if old.as_ref().map(|s| &s.membership) != service.as_ref().map(|s| &s.membership) {
            for membership in [&old, &service].into_iter().flatten().map(|s| &s.membership) {
                let pods = self.pods_in.of(&name.namespace);
                let selected =
                    pods.filter(|p| self.pods.get(*p).is_some_and(|p| membership.selector.select(&p.labels)));
                self.dirty.pods.extend(selected.cloned());
            }
            let slices: Vec<Name> = self.slices_of_service.of(name).cloned().collect();
            slices.iter().for_each(|slice| self.slice_touched(slice));
            let machines = self.machines_selected(name, [&old, &service]);
            self.dirty.machines.extend(machines);
        }
        let taken = [&old, &service].into_iter().flatten().flat_map(|s| s.addresses.clone());
        taken.collect::<Vec<_>>().into_iter().for_each(|ip| self.address_taken(ip));
        let moved = old.is_none() != service.is_none();
        if moved {
            self.dirty.gateways.insert(name.clone());
        }
        if let Some(old) = old {
            self.services_in.remove(&name.namespace, name);
            self.selectors.remove(name, &old.membership.selector);
            for ip in old.addresses {
                self.dirty.services.extend(self.service_addresses.remove(ip, name));
            }
        }
        if let Some(service) = service {
            self.services_in.add(&name.namespace, name);
            self.selectors.add(name, &service.membership.selector);
            for ip in &service.addresses {
                self.dirty.services.extend(self.service_addresses.add(*ip, name, false));
            }
            self.services.insert(name.clone(), service);
        }
        if let (true, Ok(key)) = (moved, self.service_key(name)) {
            self.host_touched(&key.hostname);
        }
    }

    fn set_slice(&mut self, name: &Name, slice: Option<Slice>) {
        if self.slices.get(name) == slice.as_ref() {
            return;
        }
        self.slice_touched(name);
        if let Some(old) = self.slices.remove(name) {
            self.slices_of_service.remove(&old.service, name);
            for endpoint in &old.endpoints {
                match endpoint {
                    Endpoint::Pod { pod, .. } => self.slices_of_pod.remove(pod, name),
                    Endpoint::Address { ip, .. } => self.slices_of_ip.remove(ip, name),
                }
            }
        }
        let Some(slice) = slice else { return };
        self.slices_of_service.add(&slice.service, name);
        for endpoint in &slice.endpoints {
            match endpoint {
                Endpoint::Pod { pod, .. } => self.slices_of_pod.add(pod, name),
                Endpoint::Address { ip, .. } => self.slices_of_ip.add(ip, name),
            }
        }
        self.slices.insert(name.clone(), slice);
        self.slice_touched(name);
    }

    /// A slice and the pods that it makes endpoints depend on what it says.
    fn slice_touched(&mut self, name: &Name) {
        self.dirty.slices.insert(name.clone());
        let Some(slice) = self.slices.get(name) else { return };
        for endpoint in &slice.endpoints {
            let pod = match endpoint {
                Endpoint::Pod { pod, .. } => Some(pod),
                Endpoint::Address { ip, .. } => self.pod_addresses.owner(*ip),
            };
            self.dirty.pods.extend(pod.cloned());
        }
    }

    fn set_namespace(&mut self, name: &Arc<str>, namespace: Option<Namespace>) {
        let old = self.namespaces.remove(name).unwrap_or_default();
        let new = namespace.clone().unwrap_or_default();
        let waypoint_moved = old.waypoint != new.waypoint;
        if old.labels != new.labels {
            // Waypoints choose by them whom they admit.
            self.waypoints.users_in(name).into_iter().for_each(|user| self.user_touched(user));
        }
        if old.in_mesh != new.in_mesh || waypoint_moved {
            self.dirty.pods.extend(self.pods_in.of(name).cloned());
        }
        if old.distribution != new.distribution || waypoint_moved {
            self.dirty.services.extend(self.services_in.of(name).cloned());
            self.entries_in_touched(name);
        }
        if waypoint_moved {
            let machines: Vec<Name> = self.entries.machines_in(name).cloned().collect();
            self.dirty.machines.extend(machines);
        }
        let egress_moved = old.egress != new.egress;
        self.namespaces.extend(namespace.map(|n| (Arc::clone(name), n)));
        if egress_moved {
            self.egress_touched(name);
        }
    }

    fn set_node(&mut self, name: &Arc<str>, locality: Option<Locality>) {
        let old = self.nodes.remove(name).unwrap_or_default();
        let new = Arc::new(locality.unwrap_or_default());
        if old != new {
            self.dirty.pods.extend(self.pods_on.of(name).cloned());
        }
        if *new != Locality::default() {
            self.nodes.insert(Arc::clone(name), new);
        }
    }
}

/// The older of two objects counts; one without a date is younger than one with.
fn age(metadata: &ObjectMeta) -> (bool, Option<Timestamp>) {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created.is_none(), created)
}

/// What a pod's standing among those who claim its addresses depends on.
fn claims(pod: &Pod) -> (bool, Vec<IpAddr>) {
    (pod.deleting, claimed(pod).collect())
}

/// The addresses that are a pod's own.
fn claimed(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let own = !pod.host_network && !pod.ended;
    pod.addresses.clone().into_iter().filter(move |_| own)
}

impl<K> Default for Groups<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq + Clone> Groups<K> {
    fn add(&mut self, group: &K, member: &Name) {
        self.0.entry(group.clone()).or_default().insert(member.clone());
    }

    fn remove(&mut self, group: &K, member: &Name) {
        if let Some(members) = self.0.get_mut(group) {
            members.remove(member);
            if members.is_empty() {
                self.0.remove(group);
            }
        }
    }

    fn of(&self, group: &K) -> impl Iterator<Item = &Name> {
        self.0.get(group).into_iter().flatten()
    }
}
