//! From routes as they are written to routes as waypoints know them. Pure: what there is besides is asked for through
//! [`Neighbours`].
//!
//! What a rule asks for and nobody here understands is never passed over: a filter of which nothing is known makes the
//! rule answer with an error, and a match of which nothing is known leaves the rule out.

mod backends;
mod duration;
mod filters;
mod parents;
mod rules;
#[cfg(test)]
mod tests;
mod traffic;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use loam_core::http::host::HostPattern;
use loam_core::http::route::{Kind, RouteKey, Rule};
use loam_core::ids::ServiceKey;
use loam_core::service::Port;
use loam_manifest::gateway::{GrpcRouteSpec, HttpRouteSpec, ParentRef, TcpRouteSpec, TlsRouteSpec};

pub use parents::{Attached, Parent, attach, parent};
pub use traffic::{TlsPolicy, TrafficPolicy, backend_tls, backend_traffic};

use crate::resource::{Flaw, Name};
use crate::status::{Condition, Reason};

/// Says whether a parent takes a route.
pub const ACCEPTED: &str = "Accepted";
/// Says whether what a route refers to is there.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Says that some rules are not in force.
pub const PARTIALLY_INVALID: &str = "PartiallyInvalid";

/// Bounds of one route, which are those of the API.
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_FILTERS: usize = 16;
const MAX_BACKENDS: usize = 16;

/// A route of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// `HTTPRoute`.
    Http(HttpRouteSpec),
    /// `GRPCRoute`.
    Grpc(GrpcRouteSpec),
    /// `TLSRoute`.
    Tls(TlsRouteSpec),
    /// `TCPRoute`.
    Tcp(TcpRouteSpec),
}

/// A route as it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// What it says.
    pub spec: Spec,
    /// When it was made, if that is known.
    pub created: Option<Timestamp>,
    /// The version of the object.
    pub generation: Option<i64>,
}

/// What became of a route, whoever its parents are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Compiled {
    /// Its rules, as far as they can be in force.
    pub rules: Vec<Arc<Rule>>,
    /// The names it is for; of TLS only.
    pub hostnames: Vec<HostPattern>,
    /// What is wrong with rules.
    pub flaws: Vec<Flaw>,
    /// Whether at least one rule is in force as it is written.
    pub sound: bool,
    /// The first reference that leads nowhere, and why.
    pub unresolved: Option<(Reason, String)>,
}

/// What a route may refer to.
pub trait Neighbours {
    /// The service of Kubernetes with this name, and its ports.
    fn service(&self, name: &Name) -> Option<(ServiceKey, Vec<Port>)>;
    /// Why nobody may be asked on this port of the service, if so: a policy about it cannot be kept.
    fn unmet(&self, name: &Name, port: u16) -> Option<String>;
}

impl Spec {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Spec::Http(_) => Kind::Http,
            Spec::Grpc(_) => Kind::Grpc,
            Spec::Tls(_) => Kind::Tls,
            Spec::Tcp(_) => Kind::Tcp,
        }
    }

    /// What it is for.
    pub fn parents(&self) -> &[ParentRef] {
        match self {
            Spec::Http(spec) => &spec.parent_refs,
            Spec::Grpc(spec) => &spec.parent_refs,
            Spec::Tls(spec) => &spec.parent_refs,
            Spec::Tcp(spec) => &spec.parent_refs,
        }
    }

    /// The services it refers to, wherever.
    pub fn backends(&self, namespace: &Arc<str>) -> Vec<Name> {
        let mut names = Vec::new();
        let mut add = |object: &loam_manifest::gateway::ObjectRef| {
            let namespace = object.namespace.as_deref().map_or_else(|| Arc::clone(namespace), Arc::from);
            names.push(Name { namespace, name: object.name.as_str().into() });
        };
        let mut request = |filters: &[loam_manifest::gateway::Filter], refs: &[loam_manifest::gateway::BackendRef]| {
            let own = refs.iter().flat_map(|r| r.filters.iter());
            filters.iter().chain(own).filter_map(|f| f.request_mirror.as_ref()).for_each(|m| add(&m.backend_ref));
            refs.iter().for_each(|r| add(&r.object));
        };
        match self {
            Spec::Http(s) => s.rules.iter().flatten().for_each(|rule| request(&rule.filters, &rule.backend_refs)),
            Spec::Grpc(s) => s.rules.iter().for_each(|rule| request(&rule.filters, &rule.backend_refs)),
            Spec::Tls(s) => s.rules.iter().for_each(|rule| request(&[], &rule.backend_refs)),
            Spec::Tcp(s) => s.rules.iter().for_each(|rule| request(&[], &rule.backend_refs)),
        }
        names
    }
}

/// Compiles what a route says.
pub fn compile(key: &RouteKey, spec: &Spec, neighbours: &impl Neighbours) -> Compiled {
    let mut out = rules::Rules::new(key, neighbours);
    out.count(match spec {
        Spec::Http(spec) => spec.rules.as_ref().map_or(0, Vec::len),
        Spec::Grpc(spec) => spec.rules.len(),
        Spec::Tls(spec) => spec.rules.len(),
        Spec::Tcp(spec) => spec.rules.len(),
    });
    match spec {
        Spec::Http(spec) => match &spec.rules {
            Some(rules) => rules.iter().take(MAX_RULES).for_each(|rule| out.http(rule)),
            // What the API puts there when nothing is said.
            None => out.http(&loam_manifest::gateway::HttpRule::default()),
        },
        Spec::Grpc(spec) => spec.rules.iter().take(MAX_RULES).for_each(|rule| out.grpc(rule)),
        Spec::Tls(spec) => {
            if out.hostnames(&spec.hostnames) {
                spec.rules.iter().take(MAX_RULES).for_each(|rule| out.stream(rule));
            }
        }
        Spec::Tcp(spec) => spec.rules.iter().take(MAX_RULES).for_each(|rule| out.stream(rule)),
    }
    out.end()
}

impl Compiled {
    /// What is said to every parent that would take the route.
    pub fn conditions(&self) -> Vec<Condition> {
        let mut conditions = Vec::new();
        let flaws = self.flaws.join("; ");
        match (self.flaws.is_empty(), self.sound) {
            (true, _) => conditions.push(Condition::is(ACCEPTED, Reason::Accepted, "all rules are in force")),
            (false, true) => {
                conditions.push(Condition::is(ACCEPTED, Reason::Accepted, "some rules are in force"));
                let message = format!("Dropped Rule: {flaws}");
                conditions.push(Condition::is(PARTIALLY_INVALID, Reason::UnsupportedValue, message));
            }
            (false, false) => conditions.push(Condition::is_not(ACCEPTED, Reason::UnsupportedValue, flaws)),
        }
        conditions.push(self.resolved());
        conditions
    }

    /// Whether what it refers to is there.
    pub fn resolved(&self) -> Condition {
        match &self.unresolved {
            None => Condition::is(RESOLVED_REFS, Reason::ResolvedRefs, "all references are resolved"),
            Some((reason, message)) => Condition::is_not(RESOLVED_REFS, *reason, message.as_str()),
        }
    }
}
