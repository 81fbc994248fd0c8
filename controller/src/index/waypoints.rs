//! Waypoints, and who has which in front of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use loam_core::ids::ServiceKey;
use loam_core::service::WeightedWaypoint;
use loam_core::workload::{GatewayAddr, GatewayDestination, Health};
use loam_manifest::{Key, Kind};

use super::{Groups, Index, Problem};
use crate::resource::gateway::{Admits, CLASS, Class, Gateway, HBONE_PORT, Traffic};
use crate::resource::use_waypoint::{CanaryFlaw, Named, UNAVAILABLE, UseWaypoint};
use crate::resource::{Labels, Name};
use crate::status::{Condition, Reason};

/// The condition of whoever names a waypoint.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

/// Gateways, and what is known of those that are waypoints.
#[derive(Debug, Default)]
pub(super) struct Waypoints {
    pub(super) gateways: HashMap<Name, Gateway>,
    pub(super) classes: HashMap<Arc<str>, Class>,
    gateways_of_class: Groups<Arc<str>>,
    pods: Groups<Name>,
    /// Those that are ours.
    views: HashMap<Name, View>,
    users: HashMap<Name, BTreeSet<User>>,
    bindings: HashMap<User, Binding>,
}

/// A waypoint, as far as others depend on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) class: Arc<str>,
    traffic: Traffic,
    /// By each listener that waypoints have.
    admits: Box<[Admits]>,
    /// Whether one of its pods may receive connections.
    pub(super) ready: bool,
    /// Whether what it protects is reached through it only.
    pub(super) must_be_passed: bool,
    /// The accounts of its pods.
    accounts: BTreeSet<Arc<str>>,
}

/// Somebody who may have a waypoint in front of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum User {
    Service(Name),
    /// A ServiceEntry.
    Entry(Name),
    Pod(Name),
    /// A WorkloadEntry.
    Machine(Name),
}

/// What is in front of somebody.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Binding {
    /// What is named, whether or not it is there.
    named: Vec<Name>,
    /// The waypoint that has to be passed.
    pub(super) waypoint: Option<Arc<GatewayAddr>>,
    /// Those that share, if several do.
    pub(super) weighted: Vec<WeightedWaypoint>,
    /// The Gateways that carry the traffic.
    pub(super) gateways: Vec<Name>,
    /// What there is to be said about it.
    pub(super) condition: Option<Condition>,
}

/// How a waypoint that is named stands to who names it.
enum Standing {
    Ready,
    NotReady,
    Missing,
    /// It does not take this traffic.
    Other(Traffic),
    /// It does not admit the namespace.
    Denied,
}

impl User {
    pub(super) fn name(&self) -> &Name {
        match self {
            User::Service(name) | User::Entry(name) | User::Pod(name) | User::Machine(name) => name,
        }
    }

    fn takes(&self, traffic: Traffic) -> bool {
        match self {
            User::Service(_) | User::Entry(_) => traffic.has_services(),
            User::Pod(_) | User::Machine(_) => traffic.has_workloads(),
        }
    }
}

impl Waypoints {
    /// The waypoint of a Gateway that is ours.
    pub(super) fn view(&self, gateway: &Name) -> Option<&View> {
        self.views.get(gateway)
    }

    /// What is in front of somebody, as of the last compilation.
    pub(super) fn binding(&self, user: &User) -> Option<&Binding> {
        self.bindings.get(user)
    }

    /// Everybody who is told something about a waypoint.
    pub(super) fn conditions(&self) -> impl Iterator<Item = (&User, &Condition)> {
        self.bindings.iter().filter_map(|(user, binding)| Some((user, binding.condition.as_ref()?)))
    }

    /// The pods that say that they are of a gateway.
    pub(super) fn pods(&self, gateway: &Name) -> impl Iterator<Item = &Name> {
        self.pods.of(gateway)
    }

    /// Those who name a gateway.
    pub(super) fn users(&self, gateway: &Name) -> impl Iterator<Item = &User> {
        self.users.get(gateway).into_iter().flatten()
    }

    /// Those of a namespace who name a gateway.
    pub(super) fn users_in(&self, namespace: &Arc<str>) -> Vec<User> {
        self.bindings.keys().filter(|user| user.name().namespace == *namespace).cloned().collect()
    }

    /// Whether a gateway's class is ours. A class that nobody made is what its name says.
    pub(super) fn is_ours(&self, gateway: &Gateway) -> bool {
        self.classes.get(&gateway.class).map_or(&*gateway.class == CLASS, |class| class.is_ours)
    }

    pub(super) fn traffic(&self, gateway: &Gateway) -> Traffic {
        let of_class = || self.classes.get(&gateway.class).and_then(|class| class.traffic);
        gateway.traffic.or_else(of_class).unwrap_or(Traffic::Service)
    }

    /// Remembers what is in front of somebody.
    pub(super) fn bind(&mut self, user: User, binding: Option<Binding>) {
        if let Some(old) = self.bindings.get(&user) {
            for gateway in &old.named {
                if let Some(users) = self.users.get_mut(gateway) {
                    users.remove(&user);
                    if users.is_empty() {
                        self.users.remove(gateway);
                    }
                }
            }
        }
        match binding.filter(|binding| !binding.named.is_empty()) {
            Some(binding) => {
                for gateway in &binding.named {
                    self.users.entry(gateway.clone()).or_default().insert(user.clone());
                }
                self.bindings.insert(user, binding);
            }
            None => drop(self.bindings.remove(&user)),
        }
    }

    pub(super) fn set_pod(&mut self, pod: &Name, old: Option<&str>, new: Option<&str>) {
        let gateway = |name: &str| Name::new(Arc::clone(&pod.namespace), name);
        if let Some(old) = old.filter(|_| old != new) {
            self.pods.remove(&gateway(old), pod);
        }
        if let Some(new) = new {
            self.pods.add(&gateway(new), pod);
        }
    }
}

impl Index {
    pub(super) fn set_gateway(&mut self, name: &Name, gateway: Option<Gateway>) {
        if let Some(old) = self.waypoints.gateways.remove(name) {
            self.waypoints.gateways_of_class.remove(&old.class, name);
        }
        if let Some(gateway) = gateway {
            self.waypoints.gateways_of_class.add(&gateway.class, name);
            self.waypoints.gateways.insert(name.clone(), gateway);
        }
        self.dirty.gateways.insert(name.clone());
    }

    pub(super) fn set_class(&mut self, name: &Arc<str>, class: Option<Class>) {
        match class {
            Some(class) => drop(self.waypoints.classes.insert(Arc::clone(name), class)),
            None => drop(self.waypoints.classes.remove(name)),
        }
        self.dirty.gateways.extend(self.waypoints.gateways_of_class.of(name).cloned());
    }

    /// Takes in what became of gateways: whoever names one that looks different is compiled again.
    pub(super) fn gateways_moved(&mut self, moved: BTreeSet<Name>) {
        for name in moved {
            let view = self.look_at(&name);
            if self.waypoints.views.get(&name) == view.as_ref() {
                continue;
            }
            let users: Vec<User> = self.waypoints.users(&name).cloned().collect();
            // What was protected until now is looked at again, whatever becomes of it.
            for user in &users {
                if self.is_protected(user) {
                    self.dirty.pods.extend(self.pods_in.of(&user.name().namespace).cloned());
                }
            }
            match view {
                Some(view) => drop(self.waypoints.views.insert(name.clone(), view)),
                None => drop(self.waypoints.views.remove(&name)),
            }
            // Its own service and pods have no waypoint while it is one.
            self.dirty.services.insert(name.clone());
            self.dirty.pods.extend(self.waypoints.pods(&name).cloned());
            for user in users {
                self.user_touched(user);
            }
        }
    }

    pub(super) fn user_touched(&mut self, user: User) {
        match user {
            User::Service(name) => drop(self.dirty.services.insert(name)),
            User::Pod(name) => drop(self.dirty.pods.insert(name)),
            User::Machine(name) => drop(self.dirty.machines.insert(name)),
            User::Entry(name) => {
                let hosts = self.entries.all.get(&name).map(|entry| &entry.hosts[..]).unwrap_or_default();
                self.dirty.hosts.extend(hosts.iter().cloned());
            }
        }
    }

    fn look_at(&self, name: &Name) -> Option<View> {
        let gateway = self.waypoints.gateways.get(name).filter(|gateway| self.waypoints.is_ours(gateway))?;
        let listeners = gateway.listeners.iter().filter(|listener| listener.is_hbone());
        Some(View {
            class: Arc::clone(&gateway.class),
            traffic: self.waypoints.traffic(gateway),
            admits: listeners.map(|listener| listener.admits.clone()).collect(),
            ready: self.services.contains_key(name) && self.ready_pods(name).next().is_some(),
            must_be_passed: gateway.must_be_passed,
            accounts: self.accounts(name),
        })
    }

    pub(super) fn accounts(&self, gateway: &Name) -> BTreeSet<Arc<str>> {
        let pods = self.waypoints.pods(gateway).filter_map(|pod| self.pods.get(pod));
        pods.filter(|pod| !pod.ended).map(|pod| Arc::clone(&pod.service_account)).collect()
    }

    /// The pods of a gateway that may receive connections.
    pub(super) fn ready_pods(&self, gateway: &Name) -> impl Iterator<Item = &Name> {
        let ready = move |pod: &&Name| {
            let pod = self.pods.get(*pod);
            pod.is_some_and(|pod| !pod.ended && !pod.addresses.is_empty() && pod.health == Health::Healthy)
        };
        self.waypoints.pods(gateway).filter(ready)
    }

    /// Whoever names a waypoint that is not in front of it as it should be.
    pub(super) fn waypoint_problems(&self) -> impl Iterator<Item = Problem> {
        self.waypoints.conditions().filter(|(_, condition)| !condition.holds).map(|(user, condition)| {
            let (kind, name) = match user {
                User::Service(name) => (Kind::Service, name),
                User::Entry(name) => (Kind::ServiceEntry, name),
                User::Pod(name) => (Kind::Pod, name),
                User::Machine(name) => (Kind::WorkloadEntry, name),
            };
            let object = Key { kind, namespace: Arc::clone(&name.namespace), name: Arc::clone(&name.name) };
            Problem::of(object, condition.message.clone())
        })
    }

    /// What is in front of somebody who says `says` about it.
    pub(super) fn binding(&self, user: &User, says: &UseWaypoint) -> Binding {
        let namespace = self.namespaces.get(&user.name().namespace);
        let (named, direct) = match (says, namespace.map(|namespace| &namespace.waypoint)) {
            (UseWaypoint::Never, _) => return Binding::default(),
            (UseWaypoint::Named(named), _) => (named, true),
            (UseWaypoint::Inherit, Some(UseWaypoint::Named(named))) => (named, false),
            (UseWaypoint::Inherit, _) => return Binding::default(),
        };
        let standing = self.standing(user, &named.gateway);
        let condition = self.condition(user, named, &standing, direct);
        let mut binding = Binding { named: vec![named.gateway.clone()], condition, ..Binding::default() };
        match standing {
            Standing::Other(_) => return binding,
            Standing::Denied => {
                binding.waypoint = not_allowed(&named.gateway);
                return binding;
            }
            Standing::Missing | Standing::NotReady | Standing::Ready => {
                binding.waypoint = self.gateway_address(&named.gateway, named.passes);
                binding.gateways.push(named.gateway.clone());
            }
        }
        if let Some(Ok((canary, weight))) = &named.canary {
            binding.named.push(canary.clone());
            // What is wrong with it costs no connection: the waypoint itself has them all then.
            if let (Standing::Ready, Some(gateway)) =
                (self.standing(user, canary), self.gateway_address(canary, named.passes))
                && let Some(first) = &binding.waypoint
            {
                binding.weighted = vec![
                    WeightedWaypoint { gateway: Arc::clone(first), weight: 100 - weight },
                    WeightedWaypoint { gateway, weight: *weight },
                ];
                binding.gateways.push(canary.clone());
            }
        }
        binding
    }

    fn standing(&self, user: &User, gateway: &Name) -> Standing {
        let Some(view) = self.waypoints.view(gateway) else { return Standing::Missing };
        if !user.takes(view.traffic) {
            return Standing::Other(view.traffic);
        }
        let namespace = &user.name().namespace;
        let nothing = Labels::default();
        let labels = self.namespaces.get(namespace).map_or(&nothing, |namespace| &namespace.labels);
        match view.admits.iter().any(|admits| admits.admits(&gateway.namespace, namespace, labels)) {
            false => Standing::Denied,
            true if view.ready => Standing::Ready,
            true => Standing::NotReady,
        }
    }

    fn condition(&self, user: &User, named: &Named, standing: &Standing, direct: bool) -> Option<Condition> {
        let gateway = &named.gateway;
        let meanwhile = match named.passes {
            true => format!("connections go past it, because {UNAVAILABLE} says so"),
            false => "connections are refused".to_owned(),
        };
        let (holds, reason, message) = match standing {
            Standing::Ready => match named.canary.as_ref().and_then(|canary| canary.as_ref().err()) {
                None => (true, Reason::WaypointAccepted, format!("bound to {gateway}")),
                Some(CanaryFlaw::Weight) => {
                    let message = format!("bound to {gateway} alone: the canary's weight is no number from 0 to 100");
                    (true, Reason::CanaryInvalidWeight, message)
                }
                Some(CanaryFlaw::Same) => {
                    let message = format!("bound to {gateway} alone: the canary is the same");
                    (true, Reason::CanarySameAsPrimary, message)
                }
            },
            Standing::NotReady => {
                (false, Reason::WaypointIsNotReady, format!("waypoint {gateway} has no pod that is ready: {meanwhile}"))
            }
            Standing::Missing => {
                let what = match self.waypoints.gateways.contains_key(gateway) {
                    true => "is a Gateway of another controller",
                    false => "does not exist",
                };
                (false, Reason::WaypointMissing, format!("waypoint {gateway} {what}: {meanwhile}"))
            }
            Standing::Other(_) if !direct => return None,
            Standing::Other(traffic) => {
                let message =
                    format!("waypoint {gateway} takes the traffic of {traffic} only, so none is in front of this");
                (false, Reason::UnsupportedTrafficType, message)
            }
            Standing::Denied => {
                let namespace = &user.name().namespace;
                let message = format!(
                    "no listener of waypoint {gateway} on 15008 with protocol HBONE admits namespace {namespace}: \
                     connections are refused"
                );
                (false, Reason::AttachmentDenied, message)
            }
        };
        Some(Condition { kind: WAYPOINT_BOUND, holds, reason, message })
    }

    /// A waypoint is known by its service, of which the pods are found when they are needed.
    fn gateway_address(&self, gateway: &Name, bypass: bool) -> Option<Arc<GatewayAddr>> {
        self.service_key(gateway).ok().map(|key| address_of(key, bypass))
    }
}

/// A place where nobody is: a waypoint that does not admit somebody is no reason to go past it.
fn not_allowed(gateway: &Name) -> Option<Arc<GatewayAddr>> {
    let host = format!("not-allowed.{}.{}.invalid", gateway.name, gateway.namespace);
    let key = ServiceKey::shared(Arc::clone(&gateway.namespace), host.parse().ok()?).ok()?;
    Some(address_of(key, false))
}

fn address_of(key: ServiceKey, bypass: bool) -> Arc<GatewayAddr> {
    Arc::new(GatewayAddr { destination: GatewayDestination::Service(key), hbone_port: HBONE_PORT, bypass })
}
