//! From the index to resources: what each proxy may know, which is the whole mesh.

mod hosts;
mod machines;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use loam_core::egress::Egress;
use loam_core::http::route::ServiceRoutes;
use loam_core::http::traffic::ServiceTraffic;
use loam_core::ids::{Hostname, Identity, NameError, ServiceKey, WorkloadUid};
use loam_core::policy::Policy;
use loam_core::service::{Port, Service, ServiceAddr};
use loam_core::workload::{Health, Locality, NetworkMode, ServicePorts, TunnelProtocol, Workload};

use super::delivery::Plan;
use super::entries::ports_at;
use super::routes::Told;
use super::waypoints::{Binding, User};
use super::{Index, claimed};
use crate::resource::pod::Pod;
use crate::resource::service::{self, Target};
use crate::resource::slice::{Endpoint, Slice};
use crate::resource::workload_entry::Address;
use crate::resource::{Labels, Name};

/// What became different.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// Resources by name; `None` is one that is gone, if it ever was there.
    pub changes: Vec<(Arc<str>, Option<Resource>)>,
    /// Policies by key that proxies should know before that; `None` is one that is gone.
    pub policies: Vec<(Arc<str>, Option<Policy>)>,
    /// Policies that they should hear of after it.
    pub last: Vec<(Arc<str>, Option<Policy>)>,
    /// Routes of services by the waypoints that serve them; with the changes, and after them those that are gone: a
    /// waypoint is asked until everybody knows of another.
    pub routes: Told<ServiceRoutes>,
    /// How services are spoken to; like the routes.
    pub traffic: Told<ServiceTraffic>,
    /// Whether it has to be so, since for a moment more or less would be allowed than before or after.
    pub pause_before_changes: bool,
    /// The same after the changes.
    pub pause_before_last: bool,
}

impl Compiled {
    /// The steps in which to tell proxies, with a pause between each two.
    pub fn steps(self) -> Vec<Compiled> {
        let (routes, gone_routes): (Vec<_>, Vec<_>) = self.routes.into_iter().partition(|(_, told)| told.is_some());
        let (traffic, gone_traffic): (Vec<_>, Vec<_>) = self.traffic.into_iter().partition(|(_, told)| told.is_some());
        let mut steps = vec![Compiled { policies: self.policies, ..Compiled::default() }];
        if self.pause_before_changes {
            steps.push(Compiled::default());
        }
        if let Some(step) = steps.last_mut() {
            step.changes = self.changes;
            (step.routes, step.traffic) = (routes, traffic);
        }
        if self.pause_before_last || !gone_routes.is_empty() || !gone_traffic.is_empty() {
            steps.push(Compiled::default());
        }
        if let Some(step) = steps.last_mut() {
            step.last = self.last;
            step.routes.extend(gone_routes);
            step.traffic.extend(gone_traffic);
        }
        steps
    }
}

/// One resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// A workload, by its uid.
    Workload(Workload),
    /// A service, by its key.
    Service(Service),
}

impl Index {
    /// Compiles what depends on the changes since the last time, and nothing else.
    pub fn compile(&mut self) -> Compiled {
        let gateways = std::mem::take(&mut self.dirty.gateways);
        self.gateways_moved(gateways);
        let mut dirty = std::mem::take(&mut self.dirty);
        // They come last, with what the others have to do with them.
        self.dirty.routes = std::mem::take(&mut dirty.routes);
        let listed = |index: &Self, name: &Name| {
            let pod = index.pods.get(name).filter(|pod| !pod.ended && !pod.addresses.is_empty());
            pod.map_or_else(Arc::default, |pod| index.policies.listed_by(&name.namespace, &pod.labels))
        };
        let lists: Vec<_> = dirty.pods.iter().map(|name| (name.clone(), listed(self, name))).collect();
        let plan = self.policies.plan(lists.into_iter());
        dirty.pods.extend(self.policies.who_lists(&plan.renamed).cloned());
        if !plan.renamed.is_empty() {
            dirty.machines.extend(self.entries.machines.keys().cloned());
            dirty.entries.extend(self.entries.all.keys().cloned());
        }
        let mut changes = Vec::new();
        // Services first: who hears of an endpoint wants to know what it is one of.
        if dirty.allocation {
            self.allocate();
        }
        dirty.hosts.append(&mut self.dirty.hosts);
        for name in &dirty.services {
            let Ok(key) = self.service_key(name) else { continue };
            let binding = self.services.get(name).map(|service| self.service_binding(name, service));
            let service = self.services.get(name).zip(binding.as_ref());
            let service = service.map(|(s, binding)| Resource::Service(self.service(name, &key, s, binding)));
            let user = User::Service(name.clone());
            let was_protected = self.is_protected(&user);
            self.waypoints.bind(user.clone(), binding);
            self.backend_touched(name);
            if was_protected || self.is_protected(&user) {
                dirty.pods.extend(self.pods_in.of(&name.namespace).cloned());
            }
            changes.push((key.to_string().into(), service));
        }
        for host in &dirty.hosts {
            self.host_services(host, &mut changes);
        }
        dirty.pods.append(&mut self.dirty.pods);
        for name in &dirty.slices {
            self.slice_workloads(name, &mut changes);
        }
        for name in &dirty.entries {
            self.entry_workloads(name, &mut changes);
        }
        for name in &dirty.machines {
            changes.extend(self.machine_workload(name));
        }
        for name in &dirty.pods {
            let uid = WorkloadUid::of_pod(&self.mesh.cluster, &name.namespace, &name.name);
            let pod = self.pods.get(name);
            // A pod may have its certificate before the world knows where it is.
            let resident = pod.filter(|pod| !pod.ended && self.in_mesh(name, pod));
            self.residents.set(name, resident.map(|pod| (&pod.node, &pod.service_account)));
            let of_waypoint = |pod: &&Pod| {
                let gateway = pod.gateway().map(|gateway| Name::new(Arc::clone(&name.namespace), gateway));
                gateway.is_some_and(|gateway| self.waypoints.view(&gateway).is_some())
            };
            let waypoint = resident.filter(of_waypoint);
            self.residents.set_waypoint(name, waypoint.map(|pod| (&pod.node, &pod.service_account)));
            let mut workload = pod.and_then(|pod| self.pod_workload(name, pod, uid.clone()));
            let binding = pod.filter(|_| workload.is_some()).map(|pod| self.pod_binding(name, pod));
            let way = binding.as_ref().and_then(|binding| binding.waypoint.clone());
            self.waypoints.bind(User::Pod(name.clone()), binding);
            if let Some(workload) = &mut workload {
                workload.waypoint = way;
                workload.traversal = self.traversal(&User::Pod(name.clone()), &workload.services);
            }
            let list = workload.is_some().then(|| listed(self, name));
            if let (Some(workload), Some(list)) = (&mut workload, &list) {
                workload.policies = self.policies.names(list);
            }
            self.policies.lists(name, list);
            changes.push((Arc::clone(uid.as_shared()), workload.map(Resource::Workload)));
        }
        self.policies.tell();
        let (routes, traffic) = self.compile_routes();
        let Plan { first, last, pause_after_first, pause_before_last, .. } = plan;
        Compiled {
            changes,
            policies: first,
            last,
            routes,
            traffic,
            pause_before_changes: pause_after_first,
            pause_before_last,
        }
    }

    fn in_mesh(&self, name: &Name, pod: &Pod) -> bool {
        pod.in_mesh(self.namespaces.get(&name.namespace).is_some_and(|n| n.in_mesh))
    }

    pub(super) fn service_key(&self, name: &Name) -> Result<ServiceKey, NameError> {
        let hostname = format!("{}.{}.svc.{}", name.name, name.namespace, self.mesh.cluster_domain);
        ServiceKey::shared(Arc::clone(&name.namespace), Hostname::try_from(Arc::<str>::from(hostname))?)
    }

    /// A gateway's own service has nothing in front of it.
    fn service_binding(&self, name: &Name, record: &service::Service) -> Binding {
        match record.of_gateway || self.waypoints.view(name).is_some() {
            true => Binding::default(),
            false => self.binding(&User::Service(name.clone()), &record.waypoint),
        }
    }

    /// Nor has a gateway's own pod.
    fn pod_binding(&self, name: &Name, pod: &Pod) -> Binding {
        match pod.gateway().is_some() {
            true => Binding::default(),
            false => self.binding(&User::Pod(name.clone()), &pod.waypoint),
        }
    }

    fn service(&self, name: &Name, key: &ServiceKey, record: &service::Service, binding: &Binding) -> Service {
        let own = record.addresses.iter().filter(|ip| self.service_addresses.owner(**ip) == Some(name));
        let addr = |ip: &IpAddr| ServiceAddr { network: Arc::clone(&self.mesh.network), range: IpNet::from(*ip) };
        let port = |port: &service::Port| Port {
            service_port: port.number,
            target_port: match &port.target {
                Target::Number(number) => *number,
                Target::Name(_) => 0,
            },
            app_protocol: port.protocol,
        };
        let of_namespace = self.namespaces.get(&name.namespace).and_then(|n| n.distribution);
        Service {
            addresses: own.map(addr).collect(),
            ports: record.membership.ports.iter().map(port).collect(),
            balancing: record.balancing(of_namespace),
            ip_families: record.ip_families,
            waypoint: binding.waypoint.clone(),
            weighted_waypoints: binding.weighted.clone(),
            canonical: true,
            ..Service::new(key.clone(), Arc::clone(&name.name))
        }
    }

    /// `None` for a pod that is nobody: it has ended, has no address yet, or a name that no identity can have.
    fn pod_workload(&self, name: &Name, pod: &Pod, uid: WorkloadUid) -> Option<Workload> {
        if pod.ended || pod.addresses.is_empty() {
            return None;
        }
        let account = Arc::clone(&pod.service_account);
        let identity = Identity::shared(self.mesh.trust_domain.clone(), Arc::clone(&name.namespace), account).ok()?;
        let own = |ip: &IpAddr| pod.host_network || self.pod_addresses.owner(*ip) == Some(name);
        Some(Workload {
            addresses: pod.addresses.iter().copied().filter(own).collect(),
            network: Arc::clone(&self.mesh.network),
            protocol: if self.in_mesh(name, pod) { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            node: Arc::clone(&pod.node),
            canonical_name: Arc::clone(&pod.canonical_name),
            canonical_revision: Arc::clone(&pod.canonical_revision),
            kind: pod.kind,
            owner: Arc::clone(&pod.owner),
            cluster: Arc::clone(&self.mesh.cluster),
            locality: self.nodes.get(&pod.node).cloned().unwrap_or_default(),
            health: pod.health,
            services: self.services_of(name, pod),
            egress: if self.in_mesh(name, pod) { self.egress(&name.namespace) } else { Egress::default() },
            ..Workload::new(uid, Arc::clone(&name.name), identity)
        })
    }

    /// The services that a pod serves, by selector, slice and entry, and where it serves their ports.
    fn services_of(&self, name: &Name, pod: &Pod) -> Arc<[ServicePorts]> {
        let mut served = self.selected(&name.namespace, &pod.labels, |ports| {
            let port = |port: &service::Port| {
                let target = match &port.target {
                    Target::Number(number) => Some(*number),
                    Target::Name(name) => pod.port(name),
                };
                served_at(port, target)
            };
            ports.iter().filter_map(port).collect()
        });
        let own: Vec<IpAddr> = claimed(pod).filter(|ip| self.pod_addresses.owner(*ip) == Some(name)).collect();
        let by_ip = own.iter().flat_map(|ip| self.slices_of_ip.of(ip));
        let slices: BTreeSet<&Name> = self.slices_of_pod.of(name).chain(by_ip).collect();
        // Services of which every slice says that the pod takes nothing new.
        let mut withdrawn: BTreeMap<&Name, bool> = BTreeMap::new();
        for slice in slices.into_iter().filter_map(|slice| self.slices.get(slice)) {
            *withdrawn.entry(&slice.service).or_insert(true) &= slice.health_of(name, &own) == Some(Health::Unhealthy);
            if let Some((key, ports)) = self.slice_ports(slice) {
                join(&mut served, ServicePorts { service: key, ports });
            }
        }
        for (service, _) in withdrawn.into_iter().filter(|(service, is)| *is && !self.takes_unready(service)) {
            if let Ok(key) = self.service_key(service) {
                served.retain(|s| s.service != key);
            }
        }
        for (entry, ip) in own.iter().flat_map(|ip| self.entries.of_endpoint.of(ip).map(move |entry| (entry, ip))) {
            let Some(record) = self.entries.all.get(entry) else { continue };
            let at = Address::Ip(*ip);
            let Some(endpoint) = record.endpoints.iter().find(|e| e.address == at) else { continue };
            let ports = ports_at(endpoint, &record.membership.ports);
            for key in self.declared(entry, record) {
                join(&mut served, ServicePorts { service: key, ports: Arc::clone(&ports) });
            }
        }
        served.sort_by(|a, b| a.service.cmp(&b.service));
        served.into()
    }

    /// What selects something with `labels`, and where it serves the ports.
    fn selected(
        &self,
        namespace: &str,
        labels: &Labels,
        place: impl Fn(&[service::Port]) -> Arc<[Port]>,
    ) -> Vec<ServicePorts> {
        let mut served = Vec::new();
        for service in self.selectors.candidates(namespace, labels) {
            let Some(record) = self.services.get(service).filter(|s| s.membership.selector.select(labels)) else {
                continue;
            };
            let Ok(key) = self.service_key(service) else { continue };
            served.push(ServicePorts { service: key, ports: place(&record.membership.ports) });
        }
        for entry in self.entries.selectors.candidates(namespace, labels) {
            let Some(record) = self.entries.all.get(entry).filter(|e| e.membership.selector.select(labels)) else {
                continue;
            };
            let ports = place(&record.membership.ports);
            for key in self.declared(entry, record) {
                served.push(ServicePorts { service: key, ports: Arc::clone(&ports) });
            }
        }
        served
    }

    fn takes_unready(&self, service: &Name) -> bool {
        self.services.get(service).is_some_and(|s| s.allow_unhealthy)
    }

    /// The service whose endpoints a slice tells, and where they serve its ports. A service with a selector has its
    /// endpoints from there: slices of it only repeat them.
    fn slice_ports(&self, slice: &Slice) -> Option<(ServiceKey, Arc<[Port]>)> {
        let record = self.services.get(&slice.service).filter(|s| s.membership.selector.is_empty())?;
        let key = self.service_key(&slice.service).ok()?;
        let ports = record.membership.ports.iter().filter_map(|port| {
            let target = match &port.target {
                Target::Number(number) => Some(*number),
                Target::Name(_) => None,
            };
            served_at(port, slice.port(&port.name, target))
        });
        Some((key, ports.collect()))
    }

    /// Workloads for those whom a slice knows only by address. An address that is a pod's means that pod: it is
    /// reached as such, and never in the clear because somebody wrote down its address.
    fn slice_workloads(&mut self, name: &Name, changes: &mut Vec<(Arc<str>, Option<Resource>)>) {
        let mut gone = self.slice_workloads.remove(name).unwrap_or_default();
        let mut there = BTreeSet::new();
        if let Some(slice) = self.slices.get(name)
            && let Some((key, ports)) = self.slice_ports(slice)
        {
            let services: Arc<[ServicePorts]> = [ServicePorts { service: key, ports }].into();
            for endpoint in &slice.endpoints {
                let Endpoint::Address { ip, health, node, zone } = endpoint else { continue };
                if self.pod_addresses.owner(*ip).is_some() || !there.insert(*ip) {
                    continue;
                }
                gone.remove(ip);
                let Some(mut workload) = self.address_workload(name, slice, *ip) else { continue };
                workload.node = Arc::clone(node);
                workload.health = *health;
                workload.services = Arc::clone(&services);
                if !zone.is_empty() {
                    workload.locality = Arc::new(Locality { zone: Arc::clone(zone), ..Locality::default() });
                }
                changes.push((Arc::clone(workload.uid.as_shared()), Some(Resource::Workload(workload))));
            }
        }
        for ip in gone {
            if let Ok(uid) = self.address_uid(name, ip) {
                changes.push((Arc::clone(uid.as_shared()), None));
            }
        }
        if !there.is_empty() {
            self.slice_workloads.insert(name.clone(), there);
        }
    }

    fn address_uid(&self, slice: &Name, ip: IpAddr) -> Result<WorkloadUid, NameError> {
        format!("{}/discovery.k8s.io/EndpointSlice/{slice}/{ip}", self.mesh.cluster).parse()
    }

    fn address_workload(&self, name: &Name, slice: &Slice, ip: IpAddr) -> Option<Workload> {
        let uid = self.address_uid(name, ip).ok()?;
        // Nobody vouches for it: the account is a name on the wire that no certificate will ever carry.
        let identity = Identity::new(self.mesh.trust_domain.clone(), &name.namespace, "default").ok()?;
        let owner = Arc::clone(&slice.service.name);
        Some(Workload {
            addresses: vec![ip],
            network: Arc::clone(&self.mesh.network),
            network_mode: NetworkMode::HostNetwork,
            cluster: Arc::clone(&self.mesh.cluster),
            canonical_name: Arc::clone(&owner),
            canonical_revision: "latest".into(),
            owner,
            health: Health::Healthy,
            ..Workload::new(uid, Arc::clone(&name.name), identity)
        })
    }
}

/// Adds ports to those that a service is known to be served on: one slice for each address family says the same, and
/// several may each have some of the ports.
fn join(served: &mut Vec<ServicePorts>, more: ServicePorts) {
    let Some(known) = served.iter_mut().find(|s| s.service == more.service) else { return served.push(more) };
    let is_new = |p: &&Port| known.ports.iter().all(|k| k.service_port != p.service_port);
    let all: Vec<Port> = known.ports.iter().chain(more.ports.iter().filter(is_new)).copied().collect();
    known.ports = all.into();
}

fn served_at(port: &service::Port, target: Option<u16>) -> Option<Port> {
    target.map(|target_port| Port { service_port: port.number, target_port, app_protocol: port.protocol })
}
