//! From ServiceEntries to services, and to workloads for the endpoints that are written down in them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use loam_core::ids::{Hostname, ServiceKey, WorkloadUid};
use loam_core::service::{Balancing, BalancingMode, Port, Service, ServiceAddr};
use loam_core::workload::{ServicePorts, Workload};
use loam_manifest::{Key, Kind};

use super::Resource;
use crate::index::entries::{Told, ports_at};
use crate::index::waypoints::{Binding, User};
use crate::index::{Index, Problem};
use crate::resource::Name;
use crate::resource::service::{Target, toward};
use crate::resource::service_entry::{Addresses, Resolution, ServiceEntry};
use crate::resource::workload_entry::{Address, WorkloadEntry};

type Changes = Vec<(Arc<str>, Option<Resource>)>;

impl Index {
    /// The services that go by a host's name: one in each namespace that declares it. One of them is meant where no
    /// other is nearer: that of Kubernetes, else the eldest.
    pub(super) fn host_services(&mut self, host: &Hostname, changes: &mut Changes) {
        let before = self.entries.told.remove(host).unwrap_or_default();
        let mut told = Told::default();
        let kubernetes = self.kubernetes_service(host);
        let mut canonical = kubernetes.is_none();
        let mut bindings = Vec::new();
        for name in self.entries.of_host(host) {
            let mut problem = |message: String| {
                let object = Key {
                    kind: Kind::ServiceEntry,
                    namespace: Arc::clone(&name.namespace),
                    name: Arc::clone(&name.name),
                };
                told.problems.push(Problem::of(object, message));
            };
            if let Some(service) = kubernetes.as_ref().filter(|s| s.namespace == name.namespace) {
                problem(format!("host {host} is left out: it belongs to Service {service}, so use another host"));
                continue;
            }
            if told.namespaces.contains(&name.namespace) {
                let mut here = self.entries.of_host(host).filter(|n| n.namespace == name.namespace);
                if let Some(elder) = here.next() {
                    problem(format!("host {host} is left out: it belongs to ServiceEntry {elder}, so merge the two"));
                }
                continue;
            }
            let Some(entry) = self.entries.all.get(name) else { continue };
            let Ok(key) = ServiceKey::shared(Arc::clone(&name.namespace), host.clone()) else { continue };
            let binding = self.binding(&User::Entry(name.clone()), &entry.waypoint);
            let service = self.host_service(name, entry, &key, canonical, &binding, &mut problem);
            bindings.push((name.clone(), binding));
            canonical = false;
            told.namespaces.insert(Arc::clone(&name.namespace));
            changes.push((key.to_string().into(), Some(Resource::Service(service))));
        }
        for (entry, binding) in bindings {
            let (namespace, user) = (Arc::clone(&entry.namespace), User::Entry(entry));
            self.parent_touched(user.clone());
            let was_protected = self.is_protected(&user);
            self.waypoints.bind(user.clone(), Some(binding));
            if was_protected || self.is_protected(&user) {
                self.dirty.pods.extend(self.pods_in.of(&namespace).cloned());
            }
        }
        for namespace in before.namespaces.difference(&told.namespaces) {
            let theirs = kubernetes.as_ref().is_some_and(|s| s.namespace == *namespace);
            if let (false, Ok(key)) = (theirs, ServiceKey::shared(Arc::clone(namespace), host.clone())) {
                changes.push((key.to_string().into(), None));
            }
        }
        if !told.namespaces.is_empty() || !told.problems.is_empty() {
            self.entries.told.insert(host.clone(), told);
        }
    }

    fn host_service(
        &self,
        name: &Name,
        entry: &ServiceEntry,
        key: &ServiceKey,
        canonical: bool,
        binding: &Binding,
        problem: &mut impl FnMut(String),
    ) -> Service {
        let mut addresses: Vec<IpNet> = Vec::new();
        match &entry.addresses {
            Addresses::Given(given) => {
                for range in given {
                    match self.owner_of(*range) {
                        // Whoever dials it means that pod or service: an entry must not be able to catch it.
                        Some(owner) => problem(format!("address {} is left out: it belongs to {owner}", range.addr())),
                        None => addresses.push(*range),
                    }
                }
            }
            Addresses::Allocated => match self.entries.slot(key) {
                Some(slot) => addresses.extend(slot.addresses().map(IpNet::from)),
                None if key.hostname.as_str().starts_with("*.") => problem(format!(
                    "host {} has no address: a pattern gets none, so callers reach what it means as unknown \
                     destinations; declare the names themselves, or addresses",
                    key.hostname
                )),
                None => problem(format!("host {} has no address: all are given away, so declare one", key.hostname)),
            },
            Addresses::None => {}
        }
        let of_namespace = self.namespaces.get(&name.namespace).and_then(|n| n.distribution);
        let balancing = match entry.resolution {
            Resolution::None => Balancing { mode: BalancingMode::Passthrough, ..Balancing::default() },
            Resolution::Static | Resolution::Dns | Resolution::Hosts => toward(entry.distribution.or(of_namespace)),
        };
        let port = |port: &crate::resource::service::Port| Port {
            service_port: port.number,
            target_port: match &port.target {
                Target::Number(number) => *number,
                Target::Name(_) => 0,
            },
            app_protocol: port.protocol,
        };
        let addr = |range| ServiceAddr { network: Arc::clone(&self.mesh.network), range };
        Service {
            addresses: addresses.into_iter().map(addr).collect(),
            ports: entry.membership.ports.iter().map(port).collect(),
            subject_alt_names: entry.subject_alt_names.clone(),
            balancing,
            waypoint: binding.waypoint.clone(),
            weighted_waypoints: binding.weighted.clone(),
            canonical,
            visibility: entry.visibility.clone().unwrap_or_default(),
            ..Service::new(key.clone(), Arc::clone(&name.name))
        }
    }

    /// Whom a single address belongs to before any entry may have it.
    fn owner_of(&self, range: IpNet) -> Option<String> {
        if range.prefix_len() != range.max_prefix_len() {
            return None;
        }
        let ip: IpAddr = range.addr();
        let pod = self.pod_addresses.owner(ip).map(|name| format!("pod {name}"));
        pod.or_else(|| self.service_addresses.owner(ip).map(|name| format!("service {name}")))
    }

    /// Workloads for the endpoints of an entry that are nobody else's. An address that is a pod's means that pod.
    pub(super) fn entry_workloads(&mut self, name: &Name, changes: &mut Changes) {
        let gone = self.entries.workloads.remove(name).unwrap_or_default();
        let mut there = std::collections::BTreeSet::new();
        if let Some(entry) = self.entries.all.get(name) {
            for (endpoint, services) in self.entry_endpoints(name, entry) {
                let Some(workload) = self.entry_workload(name, &endpoint, services) else { continue };
                there.insert(workload.uid.clone());
                changes.push((Arc::clone(workload.uid.as_shared()), Some(Resource::Workload(workload))));
            }
        }
        changes.extend(gone.difference(&there).map(|uid| (Arc::clone(uid.as_shared()), None)));
        if !there.is_empty() {
            self.entries.workloads.insert(name.clone(), there);
        }
    }

    fn entry_endpoints(&self, name: &Name, entry: &ServiceEntry) -> Vec<(WorkloadEntry, Arc<[ServicePorts]>)> {
        let keys = self.declared(name, entry);
        let ports = &entry.membership.ports;
        if keys.is_empty() {
            return Vec::new();
        }
        let is_pod = |endpoint: &&WorkloadEntry| match &endpoint.address {
            Address::Ip(ip) => self.pod_addresses.owner(*ip).is_some(),
            Address::Name(_) => false,
        };
        let serving = |endpoint: WorkloadEntry, keys: &[ServiceKey]| {
            let ports = ports_at(&endpoint, ports);
            let served = |key: &ServiceKey| ServicePorts { service: key.clone(), ports: Arc::clone(&ports) };
            let mut services: Vec<_> = keys.iter().map(served).collect();
            services.sort_by(|a, b| a.service.cmp(&b.service));
            (endpoint, services.into())
        };
        if entry.resolution == Resolution::Hosts {
            let endpoint =
                |key: &ServiceKey| serving(WorkloadEntry::named(key.hostname.clone()), std::slice::from_ref(key));
            return keys.iter().map(endpoint).collect();
        }
        let endpoint = |endpoint: &WorkloadEntry| serving(endpoint.clone(), &keys);
        entry.endpoints.iter().filter(|e| !is_pod(e)).map(endpoint).collect()
    }

    fn entry_workload(&self, name: &Name, endpoint: &WorkloadEntry, services: Arc<[ServicePorts]>) -> Option<Workload> {
        let cluster = &self.mesh.cluster;
        let uid = format!("{cluster}/networking.istio.io/ServiceEntry/{name}/{}", endpoint.address);
        let uid: WorkloadUid = uid.parse().ok()?;
        self.machine(uid, name, endpoint, services)
    }
}
