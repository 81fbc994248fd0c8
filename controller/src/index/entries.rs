//! ServiceEntries and WorkloadEntries: who depends on what they say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use loam_core::ids::{Hostname, ServiceKey, WorkloadUid};
use loam_core::service::Port;
use loam_manifest::{Key, Kind};

use super::allocate::{Slot, allocate};
use super::claims::Claims;
use super::selectors::Selectors;
use super::{Groups, Index, Problem};
use crate::resource::service::{self, Service, Target};
use crate::resource::service_entry::{Addresses, ServiceEntry};
use crate::resource::workload_entry::{Address, WorkloadEntry};
use crate::resource::{Labels, Name};

/// The entries of one index.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) all: HashMap<Name, ServiceEntry>,
    /// Who declares a host, in the order in which they are believed.
    of_host: HashMap<Hostname, BTreeSet<Seniority>>,
    in_namespace: Groups<Arc<str>>,
    of_vip: Groups<IpAddr>,
    pub(super) of_endpoint: Groups<IpAddr>,
    pub(super) selectors: Selectors,
    slots: BTreeMap<ServiceKey, Slot>,
    /// What was compiled from each host.
    pub(super) told: HashMap<Hostname, Told>,
    /// Workloads that each entry has of its own.
    pub(super) workloads: HashMap<Name, BTreeSet<WorkloadUid>>,
    /// Workloads outside Kubernetes.
    pub(super) machines: HashMap<Name, WorkloadEntry>,
    machines_in: Groups<Arc<str>>,
    pub(super) machine_addresses: Claims,
    /// Of machines that have no workload, why.
    pub(super) refused: BTreeMap<Name, String>,
}

/// The elder of two is believed; when nobody says how old they are, the first by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seniority {
    is_ageless: bool,
    created: Option<Timestamp>,
    name: Name,
}

/// What was compiled from a host.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Namespaces that have a service of its name.
    pub(super) namespaces: BTreeSet<Arc<str>>,
    pub(super) problems: Vec<Problem>,
}

impl Seniority {
    fn of(name: &Name, entry: &ServiceEntry) -> Self {
        Self { is_ageless: entry.created.is_none(), created: entry.created, name: name.clone() }
    }
}

impl Entries {
    /// Who declares a host, best first.
    pub(super) fn of_host(&self, host: &Hostname) -> impl Iterator<Item = &Name> {
        self.of_host.get(host).into_iter().flatten().map(|s| &s.name)
    }

    /// The addresses that a host was given.
    pub(super) fn slot(&self, key: &ServiceKey) -> Option<Slot> {
        self.slots.get(key).copied()
    }

    /// Parts of entries that are not in force because of others.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let machine = |(name, message): (&Name, &String)| {
            let (namespace, name) = (Arc::clone(&name.namespace), Arc::clone(&name.name));
            Problem::of(Key { kind: Kind::WorkloadEntry, namespace, name }, message.clone())
        };
        let told = self.told.values().flat_map(|told| &told.problems).cloned();
        told.chain(self.refused.iter().map(machine))
    }

    /// WorkloadEntries of a namespace.
    pub(super) fn machines_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Name> {
        self.machines_in.of(namespace)
    }

    fn file(&mut self, name: &Name, entry: &ServiceEntry) {
        // Whom nobody sees, declares nothing.
        if entry.visibility.is_some() {
            for host in &entry.hosts {
                self.of_host.entry(host.clone()).or_default().insert(Seniority::of(name, entry));
            }
        }
        self.in_namespace.add(&name.namespace, name);
        self.selectors.add(name, &entry.membership.selector);
        entry.single_addresses().for_each(|ip| self.of_vip.add(&ip, name));
        endpoint_addresses(entry).for_each(|ip| self.of_endpoint.add(&ip, name));
    }

    fn forget(&mut self, name: &Name, entry: &ServiceEntry) {
        for host in &entry.hosts {
            if let Some(declarers) = self.of_host.get_mut(host) {
                declarers.remove(&Seniority::of(name, entry));
                if declarers.is_empty() {
                    self.of_host.remove(host);
                }
            }
        }
        self.in_namespace.remove(&name.namespace, name);
        self.selectors.remove(name, &entry.membership.selector);
        entry.single_addresses().for_each(|ip| self.of_vip.remove(&ip, name));
        endpoint_addresses(entry).for_each(|ip| self.of_endpoint.remove(&ip, name));
    }
}

fn endpoint_addresses(entry: &ServiceEntry) -> impl Iterator<Item = IpAddr> {
    entry.endpoints.iter().filter_map(|endpoint| match &endpoint.address {
        Address::Ip(ip) => Some(*ip),
        Address::Name(_) => None,
    })
}

impl Index {
    pub(super) fn set_service_entry(&mut self, name: &Name, entry: Option<ServiceEntry>) {
        if self.entries.all.get(name) == entry.as_ref() {
            return;
        }
        let mut hosts = BTreeSet::new();
        self.entry_parent_moves(name);
        if let Some(old) = self.entries.all.remove(name) {
            self.members_touched(name, &old);
            self.waypoints.bind(super::waypoints::User::Entry(name.clone()), None);
            self.entries.forget(name, &old);
            hosts.extend(old.hosts);
        }
        if let Some(new) = entry {
            hosts.extend(new.hosts.iter().cloned());
            self.entries.file(name, &new);
            self.members_touched(name, &new);
            self.entries.all.insert(name.clone(), new);
        }
        hosts.iter().for_each(|host| self.host_touched(host));
        self.dirty.allocation = true;
    }

    /// Whoever declares `host` may have gained or lost it, and their members with them.
    pub(super) fn host_touched(&mut self, host: &Hostname) {
        self.dirty.hosts.insert(host.clone());
        let declarers: Vec<Name> = self.entries.of_host(host).cloned().collect();
        // Who loses a host to a service of Kubernetes needs no address for it.
        self.dirty.allocation |= !declarers.is_empty();
        for name in declarers {
            if let Some(entry) = self.entries.all.remove(&name) {
                self.members_touched(&name, &entry);
                self.entries.all.insert(name, entry);
            }
        }
    }

    /// Everybody whom an entry makes an endpoint depends on what it says.
    fn members_touched(&mut self, name: &Name, entry: &ServiceEntry) {
        self.dirty.entries.insert(name.clone());
        let selector = &entry.membership.selector;
        let pods = self.pods_in.of(&name.namespace);
        let pods = pods.filter(|p| self.pods.get(*p).is_some_and(|pod| selector.select(&pod.labels)));
        let written = endpoint_addresses(entry).filter_map(|ip| self.pod_addresses.owner(ip));
        self.dirty.pods.extend(pods.chain(written).cloned());
        let selected = self.selected_machines(&name.namespace, selector);
        self.dirty.machines.extend(selected);
    }

    /// WorkloadEntries that a service selected or selects.
    pub(super) fn machines_selected(&self, name: &Name, services: [&Option<Service>; 2]) -> Vec<Name> {
        let selectors = services.into_iter().flatten().map(|s| &s.membership.selector);
        selectors.flat_map(|selector| self.selected_machines(&name.namespace, selector)).collect()
    }

    /// WorkloadEntries of a namespace that have the labels.
    fn selected_machines(&self, namespace: &Arc<str>, selector: &Labels) -> Vec<Name> {
        let all = self.entries.machines_in.of(namespace);
        let selected = all.filter(|m| self.entries.machines.get(*m).is_some_and(|m| selector.select(&m.labels)));
        selected.cloned().collect()
    }

    pub(super) fn set_workload_entry(&mut self, name: &Name, machine: Option<WorkloadEntry>) {
        if self.entries.machines.get(name) == machine.as_ref() {
            return;
        }
        self.dirty.machines.insert(name.clone());
        let ip = |machine: &WorkloadEntry| match &machine.address {
            Address::Ip(ip) => Some(*ip),
            Address::Name(_) => None,
        };
        if let Some(old) = self.entries.machines.remove(name) {
            self.entries.machines_in.remove(&name.namespace, name);
            if let Some(ip) = ip(&old) {
                self.dirty.machines.extend(self.entries.machine_addresses.remove(ip, name));
            }
        }
        let Some(machine) = machine else { return };
        self.entries.machines_in.add(&name.namespace, name);
        if let Some(ip) = ip(&machine) {
            self.dirty.machines.extend(self.entries.machine_addresses.add(ip, name, false));
        }
        self.entries.machines.insert(name.clone(), machine);
    }

    /// An address is or is no longer that of a pod or of a service of Kubernetes: entries that know it depend on that.
    pub(super) fn address_taken(&mut self, ip: IpAddr) {
        self.dirty.entries.extend(self.entries.of_endpoint.of(&ip).cloned());
        self.dirty.machines.extend(self.entries.machine_addresses.claimants(ip).cloned());
        for name in self.entries.of_vip.of(&ip) {
            let hosts = self.entries.all.get(name).map(|e| &e.hosts[..]).unwrap_or_default();
            self.dirty.hosts.extend(hosts.iter().cloned());
        }
    }

    /// What a namespace says about its services counts for its entries.
    pub(super) fn entries_in_touched(&mut self, namespace: &Arc<str>) {
        for name in self.entries.in_namespace.of(namespace) {
            let hosts = self.entries.all.get(name).map(|e| &e.hosts[..]).unwrap_or_default();
            self.dirty.hosts.extend(hosts.iter().cloned());
        }
    }

    /// The service of Kubernetes that goes by a name.
    pub(super) fn kubernetes_service(&self, host: &Hostname) -> Option<Name> {
        let name = host.as_str().strip_suffix(&*self.mesh.cluster_domain)?.strip_suffix(".svc.")?;
        let (name, namespace) = name.split_once('.')?;
        let name = Name::new(namespace, name);
        self.services.contains_key(&name).then_some(name)
    }

    /// The services that an entry declares: its hosts, but for those that belong to somebody else of its namespace.
    pub(super) fn declared(&self, name: &Name, entry: &ServiceEntry) -> Vec<ServiceKey> {
        let declares = |host: &&Hostname| {
            let mut here = self.entries.of_host(host).filter(|n| n.namespace == name.namespace);
            here.next() == Some(name)
                && self.kubernetes_service(host).is_none_or(|service| service.namespace != name.namespace)
        };
        let key = |host: &Hostname| ServiceKey::shared(Arc::clone(&name.namespace), host.clone()).ok();
        entry.hosts.iter().filter(declares).filter_map(key).collect()
    }

    /// Gives addresses to hosts that have none, and notes whose are others than before.
    pub(super) fn allocate(&mut self) {
        let wants = |(name, entry): &(&Name, &ServiceEntry)| {
            matches!(entry.addresses, Addresses::Allocated).then(|| Seniority::of(name, entry))
        };
        let mut entries: Vec<_> = self.entries.all.iter().filter_map(|e| wants(&e)).collect();
        entries.sort();
        // What looks like a pattern is no name that anybody resolves.
        let keys =
            entries.iter().filter_map(|s| Some(self.declared(&s.name, self.entries.all.get(&s.name)?))).flatten();
        let keys: Vec<ServiceKey> = keys.filter(|k| !k.hostname.as_str().starts_with("*.")).collect();
        let slots = allocate(keys, |ip| self.entries.of_vip.of(&ip).next().is_some());
        let old = std::mem::replace(&mut self.entries.slots, slots);
        let slots = &self.entries.slots;
        let moved = old.keys().chain(slots.keys()).filter(|key| old.get(*key) != slots.get(*key));
        self.dirty.hosts.extend(moved.map(|key| key.hostname.clone()));
    }
}

/// Where an endpoint outside Kubernetes serves the ports of a service.
pub(super) fn ports_at(machine: &WorkloadEntry, ports: &[service::Port]) -> Arc<[Port]> {
    let port = |port: &service::Port| {
        let own = machine.port(&port.name).filter(|_| !port.name.is_empty());
        let target = own.or(match &port.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => machine.port(name),
        });
        target.map(|target_port| Port { service_port: port.number, target_port, app_protocol: port.protocol })
    };
    ports.iter().filter_map(port).collect()
}
