//! What is told about routes, and about policies for backends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use loam_core::http::route::{Kind as RouteKind, RouteKey};
use loam_manifest::gateway::ParentRef;
use loam_manifest::{Key, Kind};

use super::Held;
use crate::index::waypoints::User;
use crate::index::{Index, Problem};
use crate::resource::Name;
use crate::routes::{ACCEPTED, Parent, attach, parent};
use crate::status::{Ancestor, Condition, Reason, RouteStatus};

/// Says whether a waypoint carries a route out.
const RESOLVED_WAYPOINTS: &str = "ResolvedWaypoints";

fn object(key: &RouteKey) -> Key {
    let kind = match key.kind {
        RouteKind::Http => Kind::HttpRoute,
        RouteKind::Grpc => Kind::GrpcRoute,
        RouteKind::Tls => Kind::TlsRoute,
        RouteKind::Tcp => Kind::TcpRoute,
    };
    Key { kind, namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) }
}

impl Index {
    /// What is told about each route, to each parent that is ours.
    pub(in crate::index) fn route_statuses(&self) -> impl Iterator<Item = (Key, RouteStatus)> {
        self.routes.all.iter().map(move |(key, held)| {
            let to = |reference: &ParentRef| Some((reference.clone(), self.to_parent(key, held, reference)?));
            let parents = held.written.spec.parents().iter().filter_map(to).collect();
            (object(key), RouteStatus { generation: held.written.generation, parents })
        })
    }

    /// Parts of routes that are not in force.
    pub(in crate::index) fn route_problems(&self) -> impl Iterator<Item = Problem> {
        self.routes.all.iter().flat_map(|(key, held)| {
            let unresolved = held.rules.unresolved.iter().map(|(_, message)| message.clone());
            let messages = held.rules.flaws.iter().cloned().chain(unresolved);
            messages.map(move |message| Problem::of(object(key), message))
        })
    }

    fn to_parent(&self, key: &RouteKey, held: &Held, reference: &ParentRef) -> Option<Vec<Condition>> {
        let refused =
            |reason, message: &str| Some(vec![Condition::is_not(ACCEPTED, reason, message), held.rules.resolved()]);
        let user = match parent(&key.namespace, reference) {
            Parent::Service(name) => User::Service(name),
            Parent::Entry(name) => User::Entry(name),
            Parent::Gateway(name) => {
                self.waypoints.view(&name)?;
                let message = "a waypoint takes no routes: name the service that it serves as the parent";
                return refused(Reason::NotAllowedByListeners, message);
            }
            Parent::Misspelt => return refused(Reason::NoMatchingParent, "the group of Service is \"\""),
            Parent::Foreign => return None,
        };
        let Some(named) = self.named_ports(&user) else {
            let message = "the parent does not exist, or has no address that callers could dial";
            return refused(Reason::NoMatchingParent, message);
        };
        let ports = match attach(reference, &named) {
            Ok(attached) => attached.ports,
            Err(condition) => return Some(vec![condition, held.rules.resolved()]),
        };
        if let Some(winner) = self.conflict(&user, key, &ports) {
            return refused(Reason::Conflicted, &format!("{winner} is for the same ports, and its kind comes first"));
        }
        let mut conditions = held.rules.conditions();
        conditions.push(match self.waypoints.binding(&user).and_then(|binding| binding.gateways.first()) {
            Some(gateway) => Condition::is(
                RESOLVED_WAYPOINTS,
                Reason::ResolvedWaypoints,
                format!("waypoint {gateway} carries it out"),
            ),
            None => {
                let message = "the parent has no waypoint, so nobody carries it out: label it istio.io/use-waypoint";
                Condition::is_not(RESOLVED_WAYPOINTS, Reason::WaypointMissing, message)
            }
        });
        Some(conditions)
    }

    /// A route of a kind that comes first on every one of the ports, for the same callers (GEP-1294).
    fn conflict(&self, user: &User, key: &RouteKey, ports: &BTreeSet<u16>) -> Option<RouteKey> {
        let of_parent = self.routes.of_parent.get(user)?.iter();
        // They are in the order of their kinds.
        let better = of_parent.take_while(|other| other.kind < key.kind);
        let others = better.filter(|other| other.namespace == key.namespace);
        let others: Vec<_> = others.filter_map(|other| self.route_for(user, other)).collect();
        let winner = |port: &u16| others.iter().find(|other| other.ports.contains(port));
        let winners: Option<Vec<_>> = ports.iter().map(winner).collect();
        winners?.first().map(|route| route.key.clone())
    }

    /// What is told about policies for backends, to each waypoint that reaches one of their services.
    pub(in crate::index) fn backend_policy_statuses(&self) -> Vec<(Key, Option<i64>, Vec<Ancestor>)> {
        let key =
            |kind, name: &Name| Key { kind, namespace: Arc::clone(&name.namespace), name: Arc::clone(&name.name) };
        let traffic = self.routes.traffic.iter().map(|(name, (_, policy))| {
            let in_force =
                |service: &Name, _: Option<&str>| self.routes.traffic_of(service).map(|(name, _)| name.clone());
            let ancestors = self.ancestors(name, &policy.services, &policy.accepted, &[], in_force);
            (key(Kind::BackendTrafficPolicy, name), policy.generation, ancestors)
        });
        let tls = self.routes.tls.iter().map(|(name, (_, policy))| {
            let accepted = match &policy.tls {
                Ok(_) => Condition::is(ACCEPTED, Reason::Accepted, "the policy is in force"),
                Err(condition) => condition.clone(),
            };
            let in_force = |service: &Name, port: Option<&str>| {
                self.routes.tls_of(service, port.unwrap_or_default()).map(|(name, _)| name.clone())
            };
            let resolved = std::slice::from_ref(&policy.resolved);
            let ancestors = self.ancestors(name, &policy.services, &accepted, resolved, in_force);
            (key(Kind::BackendTlsPolicy, name), policy.generation, ancestors)
        });
        traffic.chain(tls).collect()
    }

    fn ancestors(
        &self,
        policy: &Name,
        targets: &[(Arc<str>, Option<Arc<str>>)],
        accepted: &Condition,
        others: &[Condition],
        in_force: impl Fn(&Name, Option<&str>) -> Option<Name>,
    ) -> Vec<Ancestor> {
        let mut ancestors = BTreeMap::new();
        for (service, port) in targets {
            let service = Name::new(Arc::clone(&policy.namespace), Arc::clone(service));
            let condition = match (self.services.contains_key(&service), in_force(&service, port.as_deref())) {
                (false, _) => {
                    Condition::is_not(ACCEPTED, Reason::TargetNotFound, format!("Service {service} does not exist"))
                }
                (true, Some(other)) if other != *policy => {
                    Condition::is_not(ACCEPTED, Reason::Conflicted, format!("{other} is older and in force instead"))
                }
                (true, _) => accepted.clone(),
            };
            for gateway in self.gateways_that_reach(&service) {
                ancestors.entry(gateway).or_insert_with(|| [std::slice::from_ref(&condition), others].concat());
            }
        }
        ancestors.into_iter().map(|(gateway, conditions)| Ancestor { gateway, conditions }).collect()
    }
}
