//! Routes, the services they are for, and the waypoints that hear of them.

mod told;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use loam_core::http::route::{Kind as RouteKind, Order, Route, RouteKey, ServiceRoutes};
use loam_core::http::traffic::{ServiceTraffic, Traffic};
use loam_core::ids::ServiceKey;
use loam_core::service::Port;
use loam_manifest::Kind;

use super::Index;
use super::waypoints::User;
use crate::resource::Name;
use crate::resource::service::{self, Target};
use crate::routes::{
    Compiled as Rules, Neighbours, Parent, TlsPolicy, TrafficPolicy, Written, attach, compile, parent,
};

/// Resources of waypoints by name; `None` is one that is gone.
pub(super) type Told<T> = Vec<(Arc<str>, Resource<T>)>;
/// What one says, after the name of its Gateway.
type Resource<T> = Option<(Arc<str>, T)>;

/// Most routes of one service: ten thousand, and as many again from other namespaces.
const MAX_ROUTES: usize = 20_000;

/// The routes, and who depends on them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    all: BTreeMap<RouteKey, Held>,
    /// By the service or entry that is the parent.
    of_parent: HashMap<User, BTreeSet<RouteKey>>,
    /// By a service that is referred to.
    of_backend: HashMap<Name, BTreeSet<RouteKey>>,
    /// Names of resources that waypoints know of each service.
    told: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    traffic: BTreeMap<Name, (Age, TrafficPolicy)>,
    tls: BTreeMap<Name, (Age, TlsPolicy)>,
    traffic_told: BTreeSet<Arc<str>>,
}

/// The older one counts. One without a date is younger than one with.
type Age = (bool, Option<k8s_openapi::jiff::Timestamp>);

#[derive(Debug)]
struct Held {
    written: Written,
    rules: Rules,
}

/// What is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    routes: BTreeSet<RouteKey>,
    parents: BTreeSet<User>,
    /// Services of entries that may be no more.
    gone: BTreeSet<ServiceKey>,
    /// Whether policies about backends may be about others than before.
    traffic: bool,
}

impl Routes {
    fn file(&mut self, key: &RouteKey, written: &Written) {
        for user in parents(key, written) {
            self.of_parent.entry(user).or_default().insert(key.clone());
        }
        for name in written.spec.backends(&key.namespace) {
            self.of_backend.entry(name).or_default().insert(key.clone());
        }
    }

    fn forget(&mut self, key: &RouteKey, written: &Written) {
        for user in parents(key, written) {
            drop_from(&mut self.of_parent, &user, key);
        }
        for name in written.spec.backends(&key.namespace) {
            drop_from(&mut self.of_backend, &name, key);
        }
    }

    /// The oldest policy about a port of a service, or about all of it.
    fn about<'a, P>(
        policies: &'a BTreeMap<Name, (Age, P)>,
        services: impl Fn(&'a P) -> &'a [(Arc<str>, Option<Arc<str>>)],
        service: &Name,
        port: Option<&str>,
    ) -> Option<(&'a Name, &'a P)> {
        let about = policies.iter().filter(|(name, _)| name.namespace == service.namespace);
        let of_target = |policy: &'a P, section: Option<&str>| {
            services(policy).iter().any(|(name, s)| *name == service.name && s.as_deref() == section)
        };
        let oldest = |section: Option<&str>| {
            let fits = about.clone().filter(|(_, (_, policy))| of_target(policy, section));
            fits.min_by_key(|(name, (age, _))| (*age, *name)).map(|(name, (_, policy))| (name, policy))
        };
        // What names the port is nearer.
        port.and_then(|port| oldest(Some(port))).or_else(|| oldest(None))
    }

    /// The policy about TLS of a port of a service.
    fn tls_of(&self, service: &Name, port: &str) -> Option<(&Name, &TlsPolicy)> {
        Self::about(&self.tls, |policy| &policy.services, service, Some(port).filter(|port| !port.is_empty()))
    }

    fn traffic_of(&self, service: &Name) -> Option<(&Name, &TrafficPolicy)> {
        Self::about(&self.traffic, |policy| &policy.services, service, None)
    }
}

fn drop_from<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<RouteKey>>, from: &K, key: &RouteKey) {
    if let Some(members) = map.get_mut(from) {
        members.remove(key);
        if members.is_empty() {
            map.remove(from);
        }
    }
}

/// Those of whom somebody has to hear that a route is different.
fn parents(key: &RouteKey, written: &Written) -> Vec<User> {
    let user = |reference| match parent(&key.namespace, reference) {
        Parent::Service(name) => Some(User::Service(name)),
        Parent::Entry(name) => Some(User::Entry(name)),
        Parent::Gateway(_) | Parent::Misspelt | Parent::Foreign => None,
    };
    written.spec.parents().iter().filter_map(user).collect()
}

/// The kind of a route's object.
pub(super) fn route_kind(kind: Kind) -> Option<RouteKind> {
    match kind {
        Kind::HttpRoute => Some(RouteKind::Http),
        Kind::GrpcRoute => Some(RouteKind::Grpc),
        Kind::TlsRoute => Some(RouteKind::Tls),
        Kind::TcpRoute => Some(RouteKind::Tcp),
        _ => None,
    }
}

impl Neighbours for Index {
    fn service(&self, name: &Name) -> Option<(ServiceKey, Vec<Port>)> {
        let record = self.services.get(name)?;
        Some((self.service_key(name).ok()?, record.membership.ports.iter().map(as_port).collect()))
    }

    fn unmet(&self, name: &Name, port: u16) -> Option<String> {
        let record = self.services.get(name)?;
        let port = record.membership.ports.iter().find(|p| p.number == port)?;
        let (policy, tls) = self.routes.tls_of(name, &port.name)?;
        let condition = tls.tls.as_ref().err()?;
        Some(format!("BackendTLSPolicy {policy} cannot be kept: {}", condition.message))
    }
}

fn as_port(port: &service::Port) -> Port {
    Port {
        service_port: port.number,
        target_port: match &port.target {
            Target::Number(number) => *number,
            Target::Name(_) => 0,
        },
        app_protocol: port.protocol,
    }
}

impl Index {
    pub(super) fn set_route(&mut self, key: &RouteKey, written: Option<Written>) {
        if let Some(old) = self.routes.all.get(key) {
            if written.as_ref() == Some(&old.written) {
                return;
            }
            self.dirty.routes.parents.extend(parents(key, &old.written));
        }
        if let Some(old) = self.routes.all.remove(key) {
            self.routes.forget(key, &old.written);
        }
        if let Some(written) = written {
            self.routes.file(key, &written);
            self.routes.all.insert(key.clone(), Held { written, rules: Rules::default() });
        }
        self.dirty.routes.routes.insert(key.clone());
        self.dirty.routes.traffic = true;
    }

    pub(super) fn set_traffic_policy(&mut self, name: &Name, policy: Option<(Age, TrafficPolicy)>) {
        match policy {
            Some(policy) => drop(self.routes.traffic.insert(name.clone(), policy)),
            None => drop(self.routes.traffic.remove(name)),
        }
        self.dirty.routes.traffic = true;
    }

    pub(super) fn set_tls_policy(&mut self, name: &Name, policy: Option<(Age, TlsPolicy)>) {
        let old = self.routes.tls.remove(name);
        let about = [&old, &policy].into_iter().flatten().flat_map(|(_, policy)| &policy.services);
        let services: Vec<Name> =
            about.map(|(service, _)| Name::new(Arc::clone(&name.namespace), Arc::clone(service))).collect();
        services.iter().for_each(|service| self.backend_touched(service));
        if let Some(policy) = policy {
            self.routes.tls.insert(name.clone(), policy);
        }
        self.dirty.routes.traffic = true;
    }

    /// A service that routes refer to, or that they are for, is different.
    pub(super) fn backend_touched(&mut self, service: &Name) {
        self.dirty.routes.routes.extend(self.routes.of_backend.get(service).into_iter().flatten().cloned());
        self.dirty.routes.parents.insert(User::Service(service.clone()));
        self.dirty.routes.traffic |= self.routes.of_backend.contains_key(service);
    }

    /// Somebody whom routes are for is different.
    pub(super) fn parent_touched(&mut self, user: User) {
        self.dirty.routes.parents.insert(user);
    }

    /// An entry may lose its hosts.
    pub(super) fn entry_parent_moves(&mut self, entry: &Name) {
        let keys = self.keys_of(&User::Entry(entry.clone()));
        self.dirty.routes.gone.extend(keys);
        self.parent_touched(User::Entry(entry.clone()));
    }

    /// Compiles what became different about routes.
    pub(super) fn compile_routes(&mut self) -> (Told<ServiceRoutes>, Told<ServiceTraffic>) {
        let dirty = std::mem::take(&mut self.dirty.routes);
        let (mut routes, mut touched) = (BTreeMap::new(), dirty.parents);
        for service in &dirty.gone {
            let told = self.routes.told.remove(service).unwrap_or_default();
            routes.extend(told.into_iter().map(|name| (name, None)));
        }
        for key in &dirty.routes {
            let Some(held) = self.routes.all.get(key) else { continue };
            let rules = compile(key, &held.written.spec, &*self);
            touched.extend(parents(key, &held.written));
            if let Some(held) = self.routes.all.get_mut(key) {
                held.rules = rules;
            }
        }
        let moved = dirty.traffic || !touched.is_empty() || !dirty.gone.is_empty();
        for user in touched {
            for service in self.keys_of(&user) {
                self.tell_routes(&user, service, &mut routes);
            }
        }
        let traffic = if moved { self.tell_traffic() } else { Vec::new() };
        (routes.into_iter().collect(), traffic)
    }

    /// The services that somebody is.
    fn keys_of(&self, user: &User) -> Vec<ServiceKey> {
        match user {
            User::Service(name) => self.service_key(name).into_iter().collect(),
            User::Entry(name) => self.entries.all.get(name).map(|entry| self.declared(name, entry)).unwrap_or_default(),
            User::Pod(_) | User::Machine(_) => Vec::new(),
        }
    }

    fn tell_routes(
        &mut self,
        user: &User,
        service: ServiceKey,
        told: &mut BTreeMap<Arc<str>, Resource<ServiceRoutes>>,
    ) {
        let mut gateways = self.waypoints.binding(user).map(|binding| binding.gateways.clone()).unwrap_or_default();
        gateways.retain(|gateway| !self.is_judged(user, gateway));
        let mut now = BTreeSet::new();
        if !gateways.is_empty() {
            let routes = ServiceRoutes { service: service.clone(), routes: self.routes_for(user) };
            for gateway in gateways {
                let name: Arc<str> = format!("{gateway}/{service}").into();
                now.insert(Arc::clone(&name));
                told.insert(name, Some((gateway.to_string().into(), routes.clone())));
            }
        }
        let before = self.routes.told.remove(&service).unwrap_or_default();
        told.extend(before.difference(&now).map(|name| (Arc::clone(name), None)));
        if !now.is_empty() {
            self.routes.told.insert(service, now);
        }
    }

    /// The routes of a service or entry.
    fn routes_for(&self, user: &User) -> Vec<Arc<Route>> {
        let keys = self.routes.of_parent.get(user).into_iter().flatten().take(MAX_ROUTES);
        keys.filter_map(|key| Some(Arc::new(self.route_for(user, key)?))).collect()
    }

    fn route_for(&self, user: &User, key: &RouteKey) -> Option<Route> {
        let held = self.routes.all.get(key)?;
        let named = self.named_ports(user)?;
        let references =
            held.written.spec.parents().iter().filter(|reference| match parent(&key.namespace, reference) {
                Parent::Service(name) => User::Service(name) == *user,
                Parent::Entry(name) => User::Entry(name) == *user,
                Parent::Gateway(_) | Parent::Misspelt | Parent::Foreign => false,
            });
        let ports: BTreeSet<u16> =
            references.filter_map(|reference| attach(reference, &named).ok()).flat_map(|a| a.ports).collect();
        if ports.is_empty() || held.rules.rules.is_empty() {
            return None;
        }
        Some(Route {
            key: key.clone(),
            created: held.written.created.and_then(|at| u64::try_from(at.as_second()).ok()).unwrap_or(u64::MAX),
            ports: ports.into_iter().collect(),
            hostnames: held.rules.hostnames.clone(),
            order: Order::Specific,
            rules: held.rules.rules.clone(),
        })
    }

    /// The ports of a parent with their names; `None` for one that cannot have routes.
    pub(super) fn named_ports(&self, user: &User) -> Option<Vec<(&str, Port)>> {
        let membership = match user {
            User::Service(name) => {
                let service = self.services.get(name)?;
                // Nobody dials a headless service: its callers dial its pods.
                (!service.addresses.is_empty()).then_some(&service.membership)?
            }
            User::Entry(name) => &self.entries.all.get(name)?.membership,
            User::Pod(_) | User::Machine(_) => return None,
        };
        Some(membership.ports.iter().map(|port| (&*port.name, as_port(port))).collect())
    }

    /// How services are spoken to that have a policy about it, by each waypoint that may have to.
    fn tell_traffic(&mut self) -> Told<ServiceTraffic> {
        let of_traffic = self.routes.traffic.iter().flat_map(|(name, (_, policy))| {
            policy.services.iter().map(|(service, _)| Name::new(Arc::clone(&name.namespace), Arc::clone(service)))
        });
        let of_tls = self.routes.tls.iter().flat_map(|(name, (_, policy))| {
            policy.services.iter().map(|(service, _)| Name::new(Arc::clone(&name.namespace), Arc::clone(service)))
        });
        let services: BTreeSet<Name> = of_traffic.chain(of_tls).collect();
        let (mut told, mut now) = (Vec::new(), BTreeSet::new());
        for name in services {
            let Some(traffic) = self.traffic_of(&name) else { continue };
            for gateway in self.gateways_that_reach(&name) {
                let resource: Arc<str> = format!("{gateway}/{}", traffic.service).into();
                now.insert(Arc::clone(&resource));
                told.push((resource, Some((gateway.to_string().into(), traffic.clone()))));
            }
        }
        let before = std::mem::replace(&mut self.routes.traffic_told, now);
        told.extend(before.difference(&self.routes.traffic_told).map(|name| (Arc::clone(name), None)));
        told
    }

    fn gateways_that_reach(&self, service: &Name) -> BTreeSet<Name> {
        let own = [User::Service(service.clone())];
        let routes = self.routes.of_backend.get(service).into_iter().flatten();
        let parents = routes.filter_map(|key| Some(parents(key, &self.routes.all.get(key)?.written))).flatten();
        let bindings = own.into_iter().chain(parents).filter_map(|user| self.waypoints.binding(&user));
        bindings.flat_map(|binding| binding.gateways.iter().cloned()).collect()
    }

    fn traffic_of(&self, name: &Name) -> Option<ServiceTraffic> {
        let service = self.services.get(name)?;
        let policy = self.routes.traffic_of(name).map(|(_, policy)| policy);
        let common = Traffic {
            budget: policy.and_then(|policy| policy.budget).unwrap_or_default(),
            session: policy.and_then(|policy| policy.session.clone()),
            ..Traffic::default()
        };
        let port = |port: &service::Port| {
            let tls = self.routes.tls_of(name, &port.name)?.1.tls.as_ref().ok()?;
            Some((port.number, Traffic { tls: Some(tls.clone()), ..common.clone() }))
        };
        Some(ServiceTraffic {
            service: self.service_key(name).ok()?,
            ports: service.membership.ports.iter().filter_map(port).collect(),
            subsets: Vec::new(),
            traffic: common,
        })
    }
}
